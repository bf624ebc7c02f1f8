"""Passes in bf16 and fp16: fp32 outside, right inside, the model's weights untouched, LoRA merged;
and faster functions on the CPU, as exact as torch's, taken where they may be alone."""

import gc
import weakref
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from test_merging import Low, network
from tiny_models import SIZES, FixedLogits, Fused, Mixed, images, tiny, untouched
from torch import Tensor, nn
from torch.nn import functional
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils.checkpoint import checkpoint

from roli_fast.engine import Engine, InputGradient, buffers, forget, low_precision
from roli_fast.engine.input_gradient import keep_freed_memory
from roli_fast.engine.low_precision import (
    Faster,
    PackedWeights,
    SecondWeights,
    can_pack,
    is_recomputed,
    surroundings,
)
from roli_fast.errors import ArgumentTypeError

BF16 = Engine(dtype=torch.bfloat16)
NO_WORSE = 1.1
"""What an error may be beside that of torch's own way in bf16."""
X, Y = images(4, 3, 6, 6), torch.tensor([0, 3, 1, 2])
LOW_PRECISION = [torch.bfloat16, torch.float16]


def cosine(a: Tensor, b: Tensor) -> Tensor:
    return functional.cosine_similarity(a.flatten(1), b.flatten(1), dim=1)


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
    @pytest.mark.parametrize("outputs", [1, 64])
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

    @pytest.mark.skipif(not can_pack(), reason="this CPU or torch has no such products")
    def test_strided_rows_in_fp32(self) -> None:
        weight, x = drawn(3, 4).bfloat16(), drawn(4, 5).t().requires_grad_()
        packed = PackedWeights([weight])
        assert packed.linear(x, weight.clone()) is None  # not one of them
        out = packed.linear(x, weight)
        assert out is not None and out.dtype == torch.bfloat16
        assert torch.allclose(out.float(), x.bfloat16().float() @ weight.float().t(), atol=0.02)
        (grad,) = torch.autograd.grad(out.sum(), x)
        assert grad.dtype == torch.float32
        assert torch.allclose(grad, weight.float().sum(0).expand(5, 4), atol=0.02)

    def test_merged_layers_too(self) -> None:
        """In low precision, and in fp32 again."""
        model, x = network(), images(4, 12)
        with untouched(model), InputGradient(BF16.bind(model)) as engine, Calls() as seen:
            engine(x, Y)
        layers = sum(isinstance(module, (nn.Linear, Low)) for module in model.modules())
        assert seen.count("_linear_pointwise") == (2 * layers if can_pack() else 0)
        with InputGradient(model) as engine:
            engine(x, Y)
        assert model[0].ways == ["torch.bfloat16", "torch.float32"]  # type: ignore[index]


class TestProducts:
    QKV = drawn(3, 2, 3, 5, 8).double()

    @pytest.mark.parametrize(
        "options",
        [
            {"scale": 0.5},
            {"attn_mask": drawn(2, 3, 5, 5).double()},
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

    def test_a_trained_mask_has_its_gradient(self) -> None:
        query, key, value = self.QKV
        mask = drawn(1, 3, 5, 5).double().requires_grad_(True)  # one a head, as Swin's
        grads = []
        for products in (True, False):
            with Faster(products, products):
                out = functional.scaled_dot_product_attention(query, key, value, mask)
            grads += torch.autograd.grad(out.square().sum(), mask)
        assert torch.allclose(*grads, rtol=1e-10, atol=1e-12)

    def test_broadcast_keys_and_too_many_tokens_go_to_torchs(
        self, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        query, key, value = self.QKV.float()
        truth = functional.scaled_dot_product_attention(query, key[:1], value[:1])
        with Faster(products=True, products_back=True):
            found = functional.scaled_dot_product_attention(query, key[:1], value[:1])
        assert torch.equal(found, truth)
        monkeypatch.setattr(low_precision, "MOST_TOKENS", 4)
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


class TestRecomputing:
    """Gradient checkpointing: the second forward of a block saves what the first one saved."""

    @pytest.mark.parametrize(
        ("name", "engine"),
        [
            ("vit_tiny_patch16_224", Engine(attention="products")),
            ("vit_tiny_patch16_224", BF16),
            ("swin_tiny_patch4_window7_224", BF16),
        ],
        ids=str,
    )
    def test_an_attack(self, name: str, engine: Engine) -> None:
        model, x = tiny(name), images(4, 3, SIZES[name], SIZES[name])
        grads = []
        for recompute in (False, True):
            model.backbone.set_grad_checkpointing(recompute)  # type: ignore[operator]
            with untouched(model), InputGradient(engine.bind(model)) as gradient:
                grads.append(gradient(x, torch.tensor([0, 3, 1, 4]))[0])
        assert (cosine(*grads) > 0.98).all()

    def test_training(self) -> None:
        name = "swin_tiny_patch4_window7_224"
        x, grads = images(4, 3, SIZES[name], SIZES[name]), []
        for recompute in (False, True):
            model = tiny(name)
            model.backbone.set_grad_checkpointing(recompute)  # type: ignore[operator]
            with torch.random.fork_rng(), BF16.training(torch.device("cpu")):
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


def test_any_engine_keeps_freed_memory_and_fills_none() -> None:
    def resident() -> int:
        told = Path("/proc/self/statm")
        return int(told.read_text().split()[1]) * 4096 if told.exists() else 0

    keep_freed_memory.cache_clear()
    before = resident()
    with InputGradient(torch.nn.Flatten()):
        assert keep_freed_memory.cache_info().currsize == 1
    assert resident() - before < 2**22


@pytest.mark.parametrize("dtype", LOW_PRECISION, ids=str)
@pytest.mark.parametrize("name", SIZES)
def test_close_to_fp32_and_fp32_outside(name: str, dtype: torch.dtype) -> None:
    model, side = tiny(name), SIZES[name]
    x, y = images(4, 3, side, side), torch.tensor([0, 3, 1, 4])
    with InputGradient(model) as engine:
        truth = engine(x, y)
    with untouched(model), InputGradient(Engine(batch_size=3, dtype=dtype).bind(model)) as engine:
        found, seen = engine(x, y), engine.evaluate(x, y)
        assert {p.dtype for p in model.parameters()} == {torch.float32}
    assert {tensor.dtype for tensor in (*found, *seen)} == {torch.float32}
    assert (cosine(found[0], truth[0]) > 0.97).all()
    # the last digit of bf16 is worth 2^-8 of a number; a few layers add a few of them
    assert torch.allclose(found[2], truth[2], rtol=0, atol=0.04 * truth[2].abs().max().item())
    assert not torch.equal(found[2], truth[2])
    assert torch.allclose(seen[1], found[2], rtol=0, atol=0.04 * truth[2].abs().max().item())


class Looking(nn.Module):
    """Notes what its layers compute with."""

    def __init__(self) -> None:
        super().__init__()
        self.conv, self.norm = nn.Conv2d(3, 4, 3), nn.BatchNorm2d(4)
        self.head = nn.Linear(64, 4)
        self.twin = self.head  # tied
        self.seen: dict[str, Any] = {}

    def forward(self, x: Tensor) -> Tensor:
        maps = self.norm(self.conv(x))
        self.seen = {
            "x": x.dtype,
            "conv": self.conv.weight.dtype,
            "rows": self.conv.weight.is_contiguous(memory_format=torch.channels_last),
            "norm": self.norm.weight.dtype,
            "maps": maps.dtype,
            "last": maps.is_contiguous(memory_format=torch.channels_last),
            "head": self.head.weight.dtype,
            "tied": self.twin.weight is self.head.weight,
            "pointer": self.head.weight.data_ptr(),
        }
        return self.twin(maps.flatten(1))


def test_what_a_forward_computes_with() -> None:
    model, short = Looking(), torch.bfloat16
    with untouched(model), InputGradient(Engine(dtype=short).bind(model)) as engine:
        engine(X, Y)
        first = dict(model.seen)
        engine.evaluate(X, Y)
    assert first == {
        "x": torch.float32,
        "conv": short,
        "rows": True,
        "norm": torch.float32,
        "maps": short,
        "last": True,
        "head": short,
        "tied": True,
        "pointer": model.seen["pointer"],  # converted once, not at each call
    }


def test_a_model_that_gets_no_better_by_hand() -> None:
    """1 + 2^-9 is no bf16 number: the weight is rounded to 1, exactly once, and logits are not."""
    model = FixedLogits(torch.tensor([[1 + 2**-9], [0.0]]))
    with InputGradient(BF16.bind(model)) as engine:
        grad, _loss, logits = engine(torch.ones(1, 1), torch.tensor([1]), lambda z, y: z[:, 0])
    assert logits.tolist() == [[1.0, 0.0]] and grad.tolist() == [[1.0]]


def test_a_small_gradient_does_not_vanish_in_fp16() -> None:
    """Logits (0, -20), label 0: the loss falls with the second by e^-20 = 2e-9, and fp16 ends at
    6e-8."""
    model = FixedLogits(torch.tensor([[0.0], [-20.0]]))
    x, y = torch.ones(1, 1), torch.tensor([0])
    with InputGradient(Engine(dtype=torch.float16).bind(model)) as engine:
        grad = engine(x, y)[0]
        again = engine.keep(x, y).gradient(functional_loss)[0]
    assert grad.item() == again.item() == pytest.approx(-20 * 2.0612e-9, rel=0.1)


def functional_loss(logits: Tensor, y: Tensor) -> Tensor:
    return functional.cross_entropy(logits, y, reduction="none")


def test_a_callable_is_served_by_autocast() -> None:
    weight = images(4, 108)
    model = BF16.bind(lambda x: x.flatten(1) @ weight.t())
    with InputGradient(model) as engine:
        grad, _loss, logits = engine(X, Y)
    truth = X.flatten(1) @ weight.t()
    assert grad.dtype == logits.dtype == torch.float32
    assert torch.allclose(logits, truth, rtol=0.02) and not torch.equal(logits, truth)


def test_logits_inside_of_what_a_model_returns() -> None:
    """As in transformers: converted and scaled like those of any other."""

    class Wrapped(Mixed):
        def forward(self, x: Tensor) -> Any:
            return SimpleNamespace(logits=super().forward(x))

    for dtype in LOW_PRECISION:
        with InputGradient(Engine(dtype=dtype).bind(Wrapped())) as engine:
            found = engine(X, Y)
        with InputGradient(Engine(dtype=dtype).bind(Mixed())) as engine:
            truth = engine(X, Y)
        assert all(map(torch.equal, found, truth)) and found[2].dtype == torch.float32


class Caching(nn.Module):
    """Keeps in eval mode what it derives from its parameter, as LeViT does its attention's bias."""

    def __init__(self) -> None:
        super().__init__()
        self.head, self.table = nn.Linear(108, 4), nn.Parameter(images(8) / 3)
        self.cache: Tensor | None = None

    def forward(self, x: Tensor) -> Tensor:
        if self.cache is None:
            self.cache = self.table[[1, 3, 5, 7]]
        return self.head(x.flatten(1)) + self.cache


def test_what_a_model_keeps_of_its_parameters_stays_fp32() -> None:
    model = Caching().eval()
    truth = model(X)
    model.cache = None  # made anew by a pass in bf16
    with untouched(model), InputGradient(BF16.bind(model)) as engine:
        engine.evaluate(X, Y)
    assert model.cache is not None and torch.equal(model(X), truth)


def test_attention_that_holds_its_weights_itself() -> None:
    attention = nn.MultiheadAttention(8, 2, batch_first=True)
    seen = []

    def forward(x: Tensor) -> Tensor:
        seen.append(attention.in_proj_weight.dtype)
        return attention(x, x, x, need_weights=False)[0].mean(1)

    model = nn.Module()
    model.attention, model.forward = attention, forward
    x = images(4, 5, 8)
    with InputGradient(model) as engine:
        truth = engine(x, Y)
    with untouched(model), InputGradient(BF16.bind(model)) as engine:
        found = engine(x, Y)
    assert seen == [torch.float32, torch.bfloat16]
    assert (cosine(found[0], truth[0]) > 0.97).all()


COMPUTED = {
    "spectral_norm": nn.utils.spectral_norm,
    "weight_norm": nn.utils.weight_norm,
    "spectral_parametrization": nn.utils.parametrizations.spectral_norm,
}


@pytest.mark.parametrize("name", COMPUTED)
@pytest.mark.filterwarnings("ignore:.*weight_norm.* is deprecated:FutureWarning")
def test_a_weight_computed_from_another(name: str) -> None:
    norm: Any = COMPUTED[name]
    torch.manual_seed(0)
    model = nn.Sequential(norm(nn.Conv2d(3, 4, 3)), nn.Flatten(), norm(nn.Linear(64, 4)))
    model(X)  # in train mode: a step towards the largest singular value
    model.eval()
    truth = model(X).detach()
    with InputGradient(BF16.bind(model)) as engine:
        logits = engine(X, Y)[2]
    # two layers of bf16, whose last digit is worth 2^-8
    assert torch.allclose(logits, truth, rtol=0, atol=0.04 * truth.abs().max().item())
    assert torch.equal(model(X), truth)


class Viewing(nn.Module):
    """Its view asks for maps that lie channel by channel; `when` there are that many images."""

    def __init__(self, when: int = 0) -> None:
        super().__init__()
        self.conv, self.head, self.when = nn.Conv2d(3, 4, 3), nn.Linear(64, 4), when
        self.rows: list[bool] = []

    def forward(self, x: Tensor) -> Tensor:
        rows = self.conv.weight.is_contiguous(memory_format=torch.channels_last)
        self.rows.append(rows)
        maps = self.conv(x)
        return self.head(maps.view(len(x), -1) if len(x) >= self.when else maps.flatten(1))


class TestViews:
    @pytest.mark.parametrize("dtype", LOW_PRECISION, ids=str)
    def test_as_in_fp32(self, dtype: torch.dtype) -> None:
        model = Viewing()
        with InputGradient(model) as engine:
            truth = engine(X, Y)
        with torch.inference_mode(), InputGradient(Engine(dtype=dtype).bind(model)) as engine:
            logits = engine.evaluate(X, Y)[1]
            after = engine(X, Y)[0]
        assert model.rows == [False, True, False, False]  # tried once
        with InputGradient(Engine(dtype=dtype).bind(model)) as engine:
            found = engine(X, Y)
        assert torch.allclose(logits, truth[2], atol=0.03)
        assert torch.allclose(found[2], truth[2], atol=0.03)
        assert (cosine(found[0], truth[0]) > 0.99).all() and torch.equal(after, found[0])

    def test_a_graph_from_before(self) -> None:
        model = Viewing(when=3)
        with InputGradient(BF16.bind(model)) as engine:
            alone = engine(X[:2], Y[:2])[0]
            kept = engine.keep(X[:2], Y[:2])
            engine(X, Y)
            assert model.rows == [True, True, True, False]
            assert torch.equal(kept.gradient(functional_loss)[0], alone)


def test_images_in_fp64_are_refused() -> None:
    with pytest.raises(ArgumentTypeError, match="`x`: expected fp32 images, got torch.float64"):
        with InputGradient(BF16.bind(Mixed())) as engine:
            engine(X.double(), Y)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=str)
@pytest.mark.parametrize("asked", ["auto", True, False])
def test_channels_last_as_asked(dtype: torch.dtype, asked: Any) -> None:
    model = Looking()
    with InputGradient(model) as engine:
        truth = engine(X, Y)[0]
    bound = Engine(dtype=dtype, channels_last=asked).bind(model)
    with untouched(model), InputGradient(bound) as engine:
        grad = engine(X, Y)[0]
    expected = dtype != torch.float32 if asked == "auto" else asked
    assert (model.seen["rows"], model.seen["last"]) == (expected, expected)
    assert model.conv.weight.is_contiguous() and (cosine(grad, truth) > 0.99).all()


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device")
@pytest.mark.parametrize("name", SIZES)
@pytest.mark.parametrize(
    "engine",
    [
        Engine(dtype=torch.bfloat16),
        Engine(dtype=torch.float16, attention="products"),
        Engine(channels_last=True, attention="products"),
    ],
    ids=str,
)
def test_on_a_gpu(name: str, engine: Engine) -> None:
    model, side = tiny(name).cuda(), SIZES[name]
    x, y = images(4, 3, side, side).cuda(), torch.tensor([0, 3, 1, 4]).cuda()
    with InputGradient(model) as gradient:
        truth = gradient(x, y)
    with untouched(model), InputGradient(engine.bind(model)) as gradient:
        found = gradient(x, y)
    assert (cosine(found[0], truth[0]) > 0.97).all()
    assert {tensor.dtype for tensor in found} == {torch.float32}


def second(model: nn.Module) -> list[Tensor]:
    """The weights of an attack in bf16."""
    return SecondWeights(model, torch.bfloat16, torch.channels_last).tensors


def test_second_weights_are_filled_again_where_they_are() -> None:
    model = nn.Sequential(nn.Conv2d(3, 4, 3), nn.Flatten(), nn.Linear(64, 4))
    before = [tensor.data_ptr() for tensor in second(model)]
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.add_(1.0)
    model[2].bias = nn.Parameter(torch.ones(4))  # type: ignore[union-attr]
    again = second(model)
    assert len(before) == 4 and [tensor.data_ptr() for tensor in again] == before
    for ours, own in zip(again, model.parameters(), strict=True):
        assert torch.equal(ours, own.bfloat16())


def test_they_go_with_the_model_or_when_asked() -> None:
    model = Mixed()
    second(model)
    held = weakref.ref(next(iter(buffers._buffers[model.conv].values())))
    gc.collect()
    assert held() is not None
    forget(model)
    assert held() is None
    second(model)
    held, whole = weakref.ref(next(iter(buffers._buffers[model.conv].values()))), weakref.ref(model)
    del model
    gc.collect()
    assert whole() is None and held() is None
