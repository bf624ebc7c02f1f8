"""Steps over bf16 rows: against fp64, at most a hair more than one rounding away."""

import math

import pytest
import torch
from torch import Tensor

from roli_fast import ops
from roli_fast.ops import native, rows

SHAPES = [(1, 1), (3, 2), (5, 15), (7, 16), (4, 33), (12, 197), (3, 384), (2, 1024), (2, 4096)]
HAIR = 1.01
"""What fp32 may add to the error of one rounding."""


@pytest.fixture(params=native.BACKENDS)
def backend(request):
    with ops.use_backend(request.param):
        yield request.param


def drawn(*shape: int, seed: int = 0) -> Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed))


def half_spacing(truth: Tensor) -> Tensor:
    """Of bf16, which has eight digits, around these numbers."""
    return 2.0 ** (torch.frexp(truth.abs())[1].double() - 9)


def close(found: Tensor, truth: Tensor, slack: float | Tensor = 1e-30) -> bool:
    return bool(((found.double() - truth).abs() <= HAIR * half_spacing(truth) + slack).all())


@pytest.mark.parametrize("scale", [1.0, 0.125, 40.0])
@pytest.mark.parametrize("shape", SHAPES, ids=str)
def test_softmax(backend, shape, scale):
    scores = (3 * drawn(*shape)).bfloat16()
    truth = torch.softmax(scores.double() * scale, dim=-1)
    found = rows.softmax_(scores, scale)
    # with a scale of 40 scores are rounded in fp32 before the exponential: 400 ulps of 2^-24
    assert found is scores and close(found, truth, 1e-5 if scale == 40.0 else 1e-30)


def test_softmax_by_hand(backend):
    inf, nan = math.inf, math.nan
    rows_in = [
        [0.0, 0.0, -inf, -inf],
        [-inf, 5.0, -inf, 5.0],
        [0.0, -100.0, -3e38, 0.0],
        [-inf] * 4,
        [1.0, nan, 1.0, 1.0],
        [inf, 0.0, 0.0, 0.0],
        [3e38, -3e38, 0.0, 0.0],
    ]
    found = rows.softmax_(torch.tensor(rows_in).bfloat16(), 1.0)
    assert found[0].tolist() == [0.5, 0.5, 0, 0] and found[1].tolist() == [0, 0.5, 0, 0.5]
    assert found[2, 0].item() == found[2, 3].item() == 0.5 and (found[2, 1:3] < 1e-37).all()
    assert found[3:5].isnan().all() and found[5].isnan().any()
    assert found[6].tolist() == [1, 0, 0, 0]


@pytest.mark.parametrize("shape", SHAPES, ids=str)
def test_softmax_backward(backend, shape):
    chance = torch.softmax(2 * drawn(*shape), dim=-1).bfloat16()
    grad = drawn(*shape, seed=1).bfloat16()
    p, g = chance.double(), grad.double()
    truth = 0.25 * p * (g - (g * p).sum(-1, keepdim=True))
    found = rows.softmax_backward_(grad, chance, 0.25)
    # the sum in fp32 is 1e-6 of the gradient's size off
    assert found is grad and close(found, truth, 1e-6 * p)


@pytest.mark.parametrize("affine", ["both", "weight", "none"])
@pytest.mark.parametrize("shape", SHAPES[1:], ids=str)
def test_norm(backend, shape, affine):
    x = (drawn(*shape) * 2 + 1).requires_grad_()
    weight = None if affine == "none" else drawn(shape[1], seed=1)
    bias = drawn(shape[1], seed=2) if affine == "both" else None
    grad = drawn(*shape, seed=3).bfloat16()
    exact = x.detach().double().requires_grad_()
    own = [None if t is None else t.double() for t in (weight, bias)]
    truth = torch.nn.functional.layer_norm(exact, shape[1:], *own, eps=1e-3)
    truth.backward(grad.double())
    with torch.no_grad():
        found, mean, factor = rows.norm(x, weight, bias, 1e-3)
        slope = rows.norm_backward(grad, x, mean, factor, weight)
    assert found.dtype == torch.bfloat16 and slope.dtype == mean.dtype == torch.float32
    assert close(found, truth.detach(), 2e-5)
    assert exact.grad is not None
    assert torch.allclose(slope.double(), exact.grad, rtol=1e-4, atol=2e-4)


def test_widen_add(backend):
    x, y = drawn(3, 777), drawn(3, 777, seed=1).bfloat16()
    found = rows.widen_add(x, y)
    assert found.dtype == torch.float32 and torch.equal(found, x + y.float())


def test_one_and_two_threads_give_the_same():
    before, results = torch.get_num_threads(), []
    try:
        for threads in (1, 2):
            torch.set_num_threads(threads)
            scores, x = drawn(900, 197).bfloat16(), drawn(900, 197)
            chance = rows.softmax_(scores, 0.5)
            slope = rows.softmax_backward_(x.bfloat16(), chance, 0.5)
            out, mean, factor = rows.norm(x, None, None, 1e-5)
            back = rows.norm_backward(out, x, mean, factor, None)
            results.append((chance, slope, out, mean, factor, back, rows.widen_add(x, out)))
    finally:
        torch.set_num_threads(before)
    assert all(torch.equal(*pair) for pair in zip(*results, strict=True))


def test_where_there_are_kernels():
    here = native.backend("rows", "cpu", torch.bfloat16)
    assert rows.usable() == rows.usable(4096) == (here.name == "native")
    assert not rows.usable(0) and not rows.usable(4097)
    on_cuda = native.backend("rows", "cuda", torch.bfloat16)
    assert on_cuda.name == "reference" and on_cuda.reason
    with ops.use_backend("reference"):
        assert not rows.usable()
