"""FAB's kernels beside the reference: sizes around every block, any bits, threads, a GPU."""

import sys
from pathlib import Path

import pytest
import torch
from references import reference
from torch import Tensor

from roli_fast import ops

sys.path.append(str(Path(__file__).resolve().parents[1] / "ops"))
from l2_cases import same_numbers  # noqa: E402
from tolerances import OTHER_SUMS  # noqa: E402

DTYPES = (torch.float32, torch.bfloat16, torch.float16)
NORMS = ("linf", "l2", "l1")
# Around the 16 lanes, the 512 of a block and the 32768 of a thread's share.
SHAPES = [
    *((1, n) for n in (1, 15, 16, 17, 31, 511, 512, 513, 529, 32769)),
    *((3, 5, 7, 11), (9, 3, 32, 32), (5, 1), (40, 2)),
]

pytestmark = pytest.mark.usefixtures("kernels")


def batch(shape, dtype: torch.dtype, seed: int = 0) -> tuple[list[Tensor], Tensor]:
    """Points near x, both partly at walls; planes at any share of what the box lets close."""
    source = torch.Generator().manual_seed(seed)
    x = torch.rand(shape, generator=source).mul(1.2).sub(0.1).clamp(0, 1)
    x_adv = (x + 0.05 * torch.randn(shape, generator=source)).clamp(0, 1)
    grad = torch.randn(shape, generator=source) ** 3
    value = 0.3 * grad.flatten(1).abs().sum(1) * torch.linspace(-0.1, 2.0, shape[0])
    return [tensor.to(dtype) for tensor in (x_adv, grad, x)], value


def run(norm: str, tensors: list[Tensor], **options) -> Tensor:
    return getattr(ops, f"fab_{norm}_step_")(tensors[0].clone(), *tensors[1:], **options)


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize("norm", NORMS)
def test_equals_the_reference(norm, dtype):
    specified = getattr(reference, f"fab_{norm}_step")
    for shape in SHAPES:
        tensors, value = batch(shape, dtype)
        for options in (
            {"value": value, "alpha_max": 0.1, "eta": 1.05},
            {"value": -0.02 * value, "alpha_max": torch.linspace(0, 1, shape[0]), "eta": 1.0},
            {"value": 0.7, "alpha_max": 0.0, "eta": 2.0, "bounds": (-0.75, 1.5)},
        ):
            expected = specified(*tensors, **options)
            assert same_numbers(run(norm, tensors, **options), expected, OTHER_SUMS), shape


def wild(shape, dtype: torch.dtype, seed: int) -> Tensor:
    """Any bits at all: subnormals, infinities, NaN, both zeros, any magnitude."""
    source = torch.Generator().manual_seed(seed)
    bits = torch.randint(-(2**31), 2**31, shape, generator=source)
    if dtype is torch.float32:
        return bits.to(torch.int32).view(dtype)
    return bits.to(torch.int16).view(dtype)


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize("norm", NORMS)
def test_any_bits(norm, dtype):
    """Normals of any bits, and some samples with points and images of any bits."""
    for n in (1, 40, 700):
        (x_adv, grad, x), value = batch((120, n), dtype)
        grad = torch.where(x > 0.5, grad, wild(grad.shape, dtype, 1))
        value = torch.where(value > 0, value, wild(value.shape, torch.float32, 2))
        x_adv[::5], x[1::5] = wild(x_adv[::5].shape, dtype, 3), wild(x[1::5].shape, dtype, 4)
        options = {"value": value, "alpha_max": 0.1, "eta": 1.05, "bounds": (-1.0, 2.0)}
        expected = getattr(reference, f"fab_{norm}_step")(x_adv, grad, x, **options)
        assert same_numbers(run(norm, [x_adv, grad, x], **options), expected, OTHER_SUMS)


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize("norm", NORMS)
def test_every_number_of_threads_gives_the_same_bits(norm, dtype):
    before = torch.get_num_threads()
    for shape in ((5, 3, 97, 101), (12, 3, 61, 67)):
        (tensors, value), results = batch(shape, dtype), []
        try:
            for threads in (1, 2, 3):
                torch.set_num_threads(threads)
                results.append(run(norm, tensors, value=value, alpha_max=0.1, eta=1.05))
        finally:
            torch.set_num_threads(before)
        assert torch.equal(results[0], results[1]) and torch.equal(results[0], results[2])


@pytest.mark.parametrize("norm", NORMS)
def test_nothing_around_the_tensor_is_written(norm):
    buffer = torch.full((5000,), 9.0)
    for start, n in ((1, 1), (3, 17), (5, 4500)):
        buffer.fill_(9.0)
        (x_adv, grad, x), value = batch((1, n), torch.float32)
        target = buffer[start : start + n].view(1, n).copy_(x_adv)
        step = getattr(ops, f"fab_{norm}_step_")
        step(target, grad, x, value=value, alpha_max=0.1, eta=1.05)
        assert (buffer[:start] == 9.0).all() and (buffer[start + n :] == 9.0).all()
        assert (target <= 1.0).all()


@pytest.mark.gpu
@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize("norm", NORMS)
def test_cuda_equals_the_cpu(norm, dtype):
    if not torch.cuda.is_available():
        pytest.skip("no CUDA device")
    chosen = ops.backend(f"fab_{norm}_step_", "cuda", dtype)
    assert chosen.name == "native", chosen.reason
    for shape in SHAPES:
        tensors, value = batch(shape, dtype)
        options = {"alpha_max": 0.1, "eta": 1.05}
        expected = run(norm, tensors, value=value, **options)
        on_gpu = [tensor.cuda() for tensor in tensors]
        moved = run(norm, on_gpu, value=value.cuda(), **options)
        assert torch.equal(moved, run(norm, on_gpu, value=value.cuda(), **options))
        assert same_numbers(moved.cpu(), expected, OTHER_SUMS)
