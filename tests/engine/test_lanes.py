"""Faster ways in bf16 on the CPU: as exact as torch's, taken where they may be and nowhere else."""

from pathlib import Path
from typing import Any
from unittest.mock import patch

import pytest
import torch
from test_merging import Low, network
from tiny_models import SIZES, images, tiny, untouched
from torch import Tensor, nn
from torch.nn import functional
from torch.utils._python_dispatch import TorchDispatchMode

from roli_fast import ops
from roli_fast.engine import Engine, InputGradient, streams
from roli_fast.engine.attention import ChosenAttention
from roli_fast.engine.heap import keep_heap
from roli_fast.engine.lanes import Replacing
from roli_fast.engine.packed import PackedWeights, can_pack
from roli_fast.engine.products import attention_products, can_multiply
from roli_fast.ops import rows

BF16 = Engine(dtype=torch.bfloat16)
NO_WORSE = 1.1
"""What an error may be beside that of torch's own way in bf16."""


def drawn(*shape: int, seed: int = 0) -> Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed))


def errors(compute: Any, tensors: list[Tensor]) -> list[float]:
    """How far the result and the gradients are from those in fp64, and they in bf16."""

    def run(dtype: torch.dtype, way: Any) -> list[Tensor]:
        leaves = [t.to(dtype).requires_grad_() for t in tensors]
        out = way(*leaves)
        weights = drawn(*out.shape, seed=9).bfloat16().to(out.dtype)
        return [t.detach().double() for t in (out, *torch.autograd.grad(out, leaves, weights))]

    exact = [t.bfloat16() for t in tensors]
    tensors[:] = exact
    found, truth = run(torch.bfloat16, compute[0]), run(torch.float64, compute[1])
    pairs = zip(found, truth, strict=True)
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
    def test_as_exact_as_torchs(self, shape, outputs):
        weight, bias = drawn(outputs, 24).bfloat16(), drawn(outputs, seed=1).bfloat16()
        lanes = PackedWeights([weight])
        wide = [weight.double(), bias.double()]

        def packed(x: Tensor) -> Tensor:
            found = lanes.linear(x, weight, bias) if can_pack() else None
            return functional.linear(x, weight, bias) if found is None else found

        truth = lambda x: functional.linear(x, *wide)  # noqa: E731
        plain = lambda x: functional.linear(x, weight, bias)  # noqa: E731
        ours, torchs = (errors((way, truth), [drawn(*shape, seed=2)]) for way in (packed, plain))
        assert all(a <= NO_WORSE * b + 1e-7 for a, b in zip(ours, torchs, strict=True))

    def test_what_is_left_to_torch(self):
        weight, x = drawn(3, 4).bfloat16(), drawn(2, 4)
        lanes = PackedWeights([weight])
        assert lanes.linear(x, weight.clone()) is None  # not one of them
        assert lanes.linear(x[0], weight) is None and lanes.linear(x[:0], weight) is None
        assert lanes.linear(x, weight, torch.zeros(3, requires_grad=True)) is None

    @pytest.mark.skipif(not can_pack(), reason="this CPU or torch has no such products")
    def test_strided_rows_in_fp32(self):
        weight, x = drawn(3, 4).bfloat16(), drawn(4, 5).t().requires_grad_()
        out = PackedWeights([weight]).linear(x, weight)
        assert out is not None and out.dtype == torch.bfloat16
        assert torch.allclose(out.float(), x.bfloat16().float() @ weight.float().t(), atol=0.02)
        (grad,) = torch.autograd.grad(out.sum(), x)
        assert grad.dtype == torch.float32
        assert torch.allclose(grad, weight.float().sum(0).expand(5, 4), atol=0.02)

    def test_merged_layers_too(self):
        model, x = network(), images(4, 12)
        with untouched(model), InputGradient(BF16.bind(model)) as engine, Calls() as seen:
            engine(x, torch.tensor([0, 3, 1, 2]))
        assert isinstance(model[0], Low)
        layers = sum(isinstance(module, (nn.Linear, Low)) for module in model.modules())
        assert seen.count("_linear_pointwise") == (2 * layers if can_pack() else 0)


@pytest.mark.parametrize("masked", [False, True])
@pytest.mark.parametrize("tokens", [1, 5, 16, 50])
def test_attention_is_as_exact_as_torchs_products(tokens, masked):
    mask = drawn(3, tokens, tokens, seed=5).bfloat16() if masked else None
    arguments = {"attn_mask": mask, "scale": 0.3}

    def by_torch(q: Tensor, k: Tensor, v: Tensor) -> Tensor:
        scores = 0.3 * q @ k.transpose(-2, -1)
        scores = scores if mask is None else scores + mask.to(scores.dtype)
        return scores.softmax(-1) @ v

    def by_kernels(q: Tensor, k: Tensor, v: Tensor) -> Tensor:
        return attention_products(q, k, v, mask, 0.3)

    qkv = [2 * drawn(2, 3, tokens, 8, seed=i) for i in range(3)]
    ours, torchs = (errors((way, by_torch), list(qkv)) for way in (by_kernels, by_torch))
    assert all(a <= NO_WORSE * b + 1e-3 for a, b in zip(ours, torchs, strict=True))
    q = qkv[0].bfloat16()
    with ChosenAttention(lambda *_: True):
        found = functional.scaled_dot_product_attention(q, q, q, **arguments)
    if can_multiply(q, q, q, mask):
        assert torch.equal(found, by_kernels(q, q, q))


def test_the_heap_is_not_filled():
    keep_heap.cache_clear()
    before = resident()
    keep_heap()
    assert resident() - before < 2**22


def test_the_heap_is_the_hosts_whatever_the_default_device():
    keep_heap.cache_clear()
    with patch("torch.empty", wraps=torch.empty) as made, torch.device("meta"):
        keep_heap()
    assert made.call_args.kwargs["device"] == "cpu"


def resident() -> int:
    """Bytes of this process in memory; 0 where nobody tells."""
    told = Path("/proc/self/statm")
    return int(told.read_text().split()[1]) * 4096 if told.exists() else 0


def test_attention_that_torch_has_to_do():
    q = drawn(1, 2, 5, 8)
    short = q.bfloat16()
    assert can_multiply(short, short, short, None) == rows.usable()
    assert not can_multiply(q, q, q, None)  # fp32
    with torch.autocast("cpu", torch.bfloat16):
        assert can_multiply(q, q, q, None) == rows.usable()
    assert not can_multiply(short, short[0], short, None) and not can_multiply(
        *[short[0, 0]] * 3, None
    )
    assert not can_multiply(short, short, short, torch.zeros(5, 5, requires_grad=True))
    with ops.use_backend("reference"):
        assert not can_multiply(short, short, short, None)


class Norms(nn.Module):
    """One norm that a linear layer reads, one that the sum reads too, one that is shared."""

    def __init__(self) -> None:
        super().__init__()
        self.alone, self.both, self.shared = (nn.LayerNorm(8) for _ in range(3))
        self.layers = nn.ModuleList(nn.Linear(8, 8) for _ in range(4))
        self.seen: list[torch.dtype] = []

    def forward(self, x: Tensor) -> Tensor:
        alone = self.alone(x)
        x = x + self.layers[0](alone)
        both = self.both(x)
        x = both + self.layers[1](both)
        shared = self.shared(x)
        x = x + self.layers[2](shared) + self.layers[3](self.shared(x + 1).relu())
        self.seen = [alone.dtype, both.dtype, shared.dtype, x.dtype]
        return x


def test_norms_that_only_linear_layers_read():
    model, x, y = Norms().eval(), drawn(4, 8), torch.tensor([0, 1, 2, 3])
    with InputGradient(model) as engine:
        truth = engine(x, y)
    with untouched(model), InputGradient(BF16.bind(model)) as engine:
        first = engine(x, y)
        assert model.seen == [torch.float32] * 4
        second = engine(x, y)
        short = torch.bfloat16 if can_pack() and rows.usable() else torch.float32
        assert model.seen == [short, *[torch.float32] * 3]
    for found in (first, second):
        assert torch.allclose(found[2], truth[2], atol=0.05)
        cosine = functional.cosine_similarity(found[0], truth[0])
        assert (cosine > 0.99).all()
    # rounded once either way: what fp32 sums in another order may move by a spacing, and no more
    assert torch.allclose(first[2], second[2], atol=0.02)


class BreaksOff(Norms):
    """The first pass ends before the sum has read the norm."""

    passes = 0

    def forward(self, x: Tensor) -> Tensor:
        self.passes += 1
        both = self.both(x)
        found = self.layers[1](both)
        if self.passes == 1:
            raise ZeroDivisionError
        self.seen = [both.dtype]
        return both + found


def test_a_first_pass_that_breaks_off_teaches_nothing():
    model, x, y = BreaksOff().eval(), drawn(4, 8), torch.tensor([0, 1, 2, 3])
    with InputGradient(BF16.bind(model)) as engine:
        with pytest.raises(ZeroDivisionError):
            engine(x, y)
        for _ in range(2):
            engine(x, y)
            assert model.seen == [torch.float32]


def test_sums_of_two_dtypes():
    x, y = drawn(3, 5).requires_grad_(), drawn(3, 5, seed=1).bfloat16().requires_grad_()
    for pair in ((x, y), (y, x)):
        found = streams.residual_sum(*pair)
        assert found is not None and torch.equal(found, x + y.float())
        of_x, of_y = torch.autograd.grad(found.sum(), (x, y))
        assert of_x.dtype == torch.float32 and of_y.dtype == torch.bfloat16
        assert (of_x == 1).all() and (of_y == 1).all()
    for left in ((x, x), (x, y[:1]), (x, 1.0), (x.t(), y.t()), (2, y)):
        assert streams.residual_sum(*left) is None
    assert streams.residual_sum(x, y, alpha=2) is None
    with Replacing({Tensor.add: streams.residual_sum, torch.add: streams.residual_sum}):
        assert torch.equal(x + y, x + y.float()) and torch.equal(torch.add(y, x), x + y.float())
        assert torch.equal(torch.add(x, y, alpha=2), x + 2 * y.float())


@pytest.mark.parametrize("way", [lambda t: t.permute(2, 0, 1, 3), lambda t: t[:, :, ::2].mT])
def test_unbind(way):
    base = drawn(2, 5, 4, 6).bfloat16().requires_grad_()
    grads = []
    for unbind in (Tensor.unbind, streams.unbind):
        parts = unbind(way(base), 0)
        assert parts is not None and all(map(torch.equal, parts, way(base).unbind(0)))
        total = sum((part * (i + 1)).sum() for i, part in enumerate(parts[1:]))
        grads.append(torch.autograd.grad(total, base)[0])
    assert torch.equal(*grads)
    assert streams.unbind(base) is None and streams.unbind(way(base.detach())) is None


@pytest.mark.parametrize("name", SIZES)
def test_a_model_is_as_exact_as_without(name):
    model, side = tiny(name).eval(), SIZES[name]
    x, y = images(6, 3, side, side), torch.tensor([0, 3, 1, 4, 2, 0])
    with InputGradient(model) as engine:
        truth = engine(x, y)
    off = []
    for backend in ("reference", "native"):
        with ops.use_backend(backend), InputGradient(BF16.bind(model)) as engine:
            engine(x, y)
            found = engine(x, y)
        off.append([float((found[i] - truth[i]).norm() / truth[i].norm()) for i in (0, 2)])
    # of so small nets the two errors are draws of one distribution
    assert all(ours <= 1.5 * torchs + 1e-3 for torchs, ours in zip(*off, strict=True))


def test_any_engine_keeps_the_heap():
    keep_heap.cache_clear()
    with InputGradient(torch.nn.Flatten()):
        assert keep_heap.cache_info().currsize == 1
