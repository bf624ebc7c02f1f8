"""Faster functions in bf16 on the CPU: as exact as torch's, and taken where they may be alone."""

from pathlib import Path
from typing import Any
from unittest.mock import patch

import pytest
import torch
from test_merging import Low, network
from tiny_models import SIZES, Fused, images, tiny, untouched
from torch import Tensor, nn
from torch.nn import functional
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils.checkpoint import checkpoint

from roli_fast.engine import Engine, InputGradient, low_precision
from roli_fast.engine.input_gradient import keep_freed_memory
from roli_fast.engine.low_precision import (
    Faster,
    PackedWeights,
    can_pack,
    is_recomputed,
    surroundings,
)

BF16 = Engine(dtype=torch.bfloat16)
NO_WORSE = 1.1
"""What an error may be beside that of torch's own way in bf16."""


def drawn(*shape: int, seed: int = 0) -> Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed))


def errors(compute: Any, truth: Any, x: Tensor) -> list[float]:
    """How far result and gradient are from those in fp64."""

    def run(dtype: torch.dtype, way: Any) -> list[Tensor]:
        leaf = x.to(dtype).requires_grad_()
        out = way(leaf)
        weights = drawn(*out.shape, seed=9).bfloat16().to(out.dtype)
        return [t.detach().double() for t in (out, *torch.autograd.grad(out, leaf, weights))]

    pairs = zip(run(torch.bfloat16, compute), run(torch.float64, truth), strict=True)
    return [float((a - b).norm() / b.norm().clamp(min=1e-9)) for a, b in pairs]


class Calls(TorchDispatchMode):
    """Counts operations by their names."""

    def __init__(self) -> None:
        super().__init__()
        self.names: list[str] = []

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        self.names.append(str(func))
        return func(*args, **(kwargs or {}))

    def count(self, part: str) -> int:
        return sum(part in name for name in self.names)


class TestPacked:
    @pytest.mark.parametrize("shape", [(40, 24), (1, 24), (2, 3, 5, 24)], ids=str)
    @pytest.mark.parametrize("outputs", [1, 7, 64])
    def test_as_exact_as_torchs(self, shape: Any, outputs: int) -> None:
        weight, bias = drawn(outputs, 24).bfloat16(), drawn(outputs, seed=1).bfloat16()
        packed_weights = PackedWeights([weight])
        wide = [weight.double(), bias.double()]

        def packed(x: Tensor) -> Tensor:
            found = packed_weights.linear(x, weight, bias) if can_pack() else None
            return functional.linear(x, weight, bias) if found is None else found

        truth = lambda x: functional.linear(x, *wide)  # noqa: E731
        plain = lambda x: functional.linear(x, weight, bias)  # noqa: E731
        x = drawn(*shape, seed=2).bfloat16()
        ours, torchs = (errors(way, truth, x) for way in (packed, plain))
        assert all(a <= NO_WORSE * b + 1e-7 for a, b in zip(ours, torchs, strict=True))

    def test_what_is_left_to_torch(self) -> None:
        weight, x = drawn(3, 4).bfloat16(), drawn(2, 4)
        packed = PackedWeights([weight])
        assert packed.linear(x, weight.clone()) is None  # not one of them
        assert packed.linear(x[0], weight) is None and packed.linear(x[:0], weight) is None
        assert packed.linear(x, weight, torch.zeros(3, requires_grad=True)) is None

    @pytest.mark.skipif(not can_pack(), reason="this CPU or torch has no such products")
    def test_strided_rows_in_fp32(self) -> None:
        weight, x = drawn(3, 4).bfloat16(), drawn(4, 5).t().requires_grad_()
        out = PackedWeights([weight]).linear(x, weight)
        assert out is not None and out.dtype == torch.bfloat16
        assert torch.allclose(out.float(), x.bfloat16().float() @ weight.float().t(), atol=0.02)
        (grad,) = torch.autograd.grad(out.sum(), x)
        assert grad.dtype == torch.float32
        assert torch.allclose(grad, weight.float().sum(0).expand(5, 4), atol=0.02)

    def test_merged_layers_too(self) -> None:
        model, x = network(), images(4, 12)
        with untouched(model), InputGradient(BF16.bind(model)) as engine, Calls() as seen:
            engine(x, torch.tensor([0, 3, 1, 2]))
        assert isinstance(model[0], Low)
        layers = sum(isinstance(module, (nn.Linear, Low)) for module in model.modules())
        assert seen.count("_linear_pointwise") == (2 * layers if can_pack() else 0)


class TestProducts:
    QKV = drawn(3, 2, 3, 5, 8).double()

    @pytest.mark.parametrize(
        "options",
        [
            {},
            {"scale": 0.5},
            {"attn_mask": drawn(5, 5).double()},
            {"attn_mask": torch.ones(5, 5).tril().bool()},
            {"is_causal": True},
        ],
        ids=lambda options: next(iter(options), "plain"),
    )
    def test_numbers_and_gradients_of_torchs(self, options: Any) -> None:
        leaf = self.QKV.clone().requires_grad_(True)
        truth = functional.scaled_dot_product_attention(*leaf, **options)
        with Faster(products=True, products_back=True):
            found = functional.scaled_dot_product_attention(*leaf, **options)
        assert torch.allclose(found, truth, rtol=1e-12, atol=1e-14)
        weight = drawn(*truth.shape).double()
        ours, theirs = (torch.autograd.grad((z * weight).sum(), leaf)[0] for z in (found, truth))
        assert torch.allclose(ours, theirs, rtol=1e-12, atol=1e-14)

    @pytest.mark.parametrize("shape", [(5, 8), (3, 5, 8), (2, 3, 4, 5, 8)], ids=len)
    @pytest.mark.parametrize("masked", [False, True])
    def test_any_number_of_leading_axes(self, shape: tuple[int, ...], masked: bool) -> None:
        query, key, value = (drawn(*shape).double() + n for n in range(3))
        key, value = key[..., :4, :], value[..., :4, :]
        mask = drawn(*shape[:-2], 5, 4).double() if masked else None
        truth = functional.scaled_dot_product_attention(query, key, value, mask)
        with Faster(products=True, products_back=True):
            found = functional.scaled_dot_product_attention(query, key, value, mask)
        assert torch.allclose(found, truth, rtol=1e-12, atol=1e-14)

    def test_keys_that_are_broadcast_go_to_torchs(self) -> None:
        query, key, value = self.QKV
        truth = functional.scaled_dot_product_attention(query, key[:1], value[:1])
        with Faster(products=True, products_back=True):
            found = functional.scaled_dot_product_attention(query, key[:1], value[:1])
        assert torch.equal(found, truth)

    def test_a_trained_mask_has_its_gradient(self) -> None:
        query, key, value = self.QKV
        mask = drawn(1, 3, 5, 5).double().requires_grad_(True)  # one a head, as Swin's
        grads = []
        for products in (True, False):
            with Faster(products, products):
                out = functional.scaled_dot_product_attention(query, key, value, mask)
            grads += torch.autograd.grad(out.square().sum(), mask)
        assert torch.allclose(*grads, rtol=1e-10, atol=1e-12)

    def test_too_many_tokens_go_to_torchs(self, monkeypatch: pytest.MonkeyPatch) -> None:
        monkeypatch.setattr(low_precision, "MOST_TOKENS", 4)
        query, key, value = self.QKV.float()
        with Faster(products=True, products_back=True), Fused() as counted:
            functional.scaled_dot_product_attention(query, key, value)
        assert counted.count == 1


def fused_kernels(engine: Engine) -> tuple[int, int]:
    """Those in a gradient and in a forward of two layers of attention."""
    model, x, y = tiny("vit_tiny_patch16_224"), images(2, 3, 8, 8), torch.tensor([0, 1])
    with InputGradient(engine.bind(model)) as gradient:
        for first in (gradient, gradient.evaluate):  # which compare one image folded and plain
            first(x, y)
        with Fused() as in_gradient:
            gradient(x, y)
        with Fused() as in_forward:
            gradient.evaluate(x, y)
    return in_gradient.count, in_forward.count


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=str)
def test_which_attention(dtype: torch.dtype) -> None:
    assert fused_kernels(Engine(dtype=dtype, attention="products")) == (0, 0)
    assert fused_kernels(Engine(dtype=dtype, attention="fused")) == (2, 2)
    auto = (0, 2) if dtype == torch.bfloat16 else (2, 2)
    assert fused_kernels(Engine(dtype=dtype)) == auto


def test_auto_is_torchs_kernel_on_a_gpu() -> None:
    leaf = drawn(1, 1, 5, 8).requires_grad_()
    with surroundings("cuda", None, "auto", cache=False), Fused() as counted:
        functional.scaled_dot_product_attention(leaf, leaf, leaf)
    assert counted.count == 1


@pytest.mark.parametrize("name", SIZES)
def test_a_model_is_as_exact_as_by_autocast(name: str) -> None:
    model, side = tiny(name).eval(), SIZES[name]
    x, y = images(6, 3, side, side), torch.tensor([0, 3, 1, 4, 2, 0])
    with InputGradient(model) as engine:
        truth = engine(x, y)
        with torch.autocast("cpu", torch.bfloat16):
            autocast = engine(x, y)
    with InputGradient(BF16.bind(model)) as engine:
        ours = engine(x, y)
    for place in (0, 2):
        off, torchs = (
            float((f[place] - truth[place]).norm() / truth[place].norm()) for f in (ours, autocast)
        )
        assert off <= 1.5 * torchs + 1e-3  # of so small nets both are draws of one distribution


ENGINES = [
    Engine(fold=True),
    Engine(attention="products"),
    Engine(dtype=torch.bfloat16),
    Engine(dtype=torch.bfloat16, attention="products", merge=False),
]


class TestRecomputing:
    """Gradient checkpointing: the second forward of a block saves what the first one saved."""

    @pytest.mark.parametrize("engine", ENGINES, ids=str)
    @pytest.mark.parametrize("name", SIZES)
    def test_an_attack(self, name: str, engine: Engine) -> None:
        model, x = tiny(name), images(4, 3, SIZES[name], SIZES[name])
        grads = []
        for recompute in (False, True):
            model.backbone.set_grad_checkpointing(recompute)  # type: ignore[operator]
            with untouched(model), InputGradient(engine.bind(model)) as gradient:
                grads.append(gradient(x, torch.tensor([0, 3, 1, 4]))[0])
        assert functional.cosine_similarity(*(g.flatten(1) for g in grads)).min() > 0.98

    @pytest.mark.parametrize("engine", ENGINES, ids=str)
    @pytest.mark.parametrize("name", ["vit_tiny_patch16_224", "swin_tiny_patch4_window7_224"])
    def test_training(self, name: str, engine: Engine) -> None:
        x, grads = images(4, 3, SIZES[name], SIZES[name]), []
        for recompute in (False, True):
            model = tiny(name)
            model.backbone.set_grad_checkpointing(recompute)  # type: ignore[operator]
            with torch.random.fork_rng(), engine.training(torch.device("cpu")):
                torch.manual_seed(0)  # of stochastic depth
                loss = functional.cross_entropy(model(x).float(), torch.tensor([0, 3, 1, 4]))
            loss.backward()
            grads.append(torch.cat([p.grad.flatten() for p in model.parameters()]))  # type: ignore[union-attr]
        assert functional.cosine_similarity(*grads, dim=0) > 0.98

    def test_only_blocks_that_are_computed_again_are_left_to_torch(self) -> None:
        seen: list[bool] = []

        def block(x: Any) -> Any:
            seen.append(is_recomputed())
            return functional.scaled_dot_product_attention(x, x, x)

        x = images(1, 1, 4, 8).requires_grad_()
        with Engine(attention="products").training(torch.device("cpu")), Fused() as counted:
            block(x)
            assert counted.count == 0
            out = checkpoint(block, x, use_reentrant=False)
            assert counted.count == 1
        torch.autograd.grad(out.sum(), x)  # type: ignore[union-attr]
        assert seen[:2] == [False, True] and not is_recomputed()


class TestHeap:
    def test_it_is_not_filled(self) -> None:
        keep_freed_memory.cache_clear()
        before = resident()
        keep_freed_memory()
        assert resident() - before < 2**22

    def test_any_engine_keeps_it(self) -> None:
        keep_freed_memory.cache_clear()
        with InputGradient(torch.nn.Flatten()):
            assert keep_freed_memory.cache_info().currsize == 1


def resident() -> int:
    """Bytes of this process in memory; 0 where nobody tells."""
    told = Path("/proc/self/statm")
    return int(told.read_text().split()[1]) * 4096 if told.exists() else 0
