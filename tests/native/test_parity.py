"""The kernels equal the reference bit for bit, however the work is cut."""

import pytest
import torch
from references import reference
from torch import Tensor

from roli_fast import ops

DTYPES = (torch.float32, torch.bfloat16, torch.float16)
BITS = {torch.float32: torch.int32, torch.bfloat16: torch.int16, torch.float16: torch.int16}
# Around the widths of vectors, the 512 of a converted block, and the 32768 of a thread's share.
SHAPES = [
    *((1, n) for n in (1, 7, 15, 16, 17, 31, 33, 511, 512, 513, 32767, 32769, 70001)),
    *((3, 5, 7, 11), (2, 3, 32, 32), (5, 1), (7, 9363)),
]

pytestmark = pytest.mark.usefixtures("kernels")


def wild(shape, dtype: torch.dtype, seed: int) -> Tensor:
    """Every kind of number: pixels, any magnitude, both zeros, subnormals, infinities, NaN."""
    generator = torch.Generator().manual_seed(seed)
    bits = torch.randint(-(2**31), 2**31, shape, generator=generator, dtype=torch.int64)
    anything = bits.to(torch.int32).view(torch.float32)
    anything = anything.to(dtype) if dtype is torch.float32 else bits.to(torch.int16).view(dtype)
    pixel = torch.rand(shape, generator=generator).to(dtype)
    zero = torch.where(pixel > 0.5, 0.0, -0.0).to(dtype)
    kind = torch.rand(shape, generator=generator)
    return torch.where(kind < 0.6, pixel, torch.where(kind < 0.9, anything, zero))


def pixels(shape, dtype: torch.dtype) -> tuple[Tensor, Tensor, Tensor]:
    generator = torch.Generator().manual_seed(0)
    x = torch.rand(shape, generator=generator)
    noise = 0.1 * torch.randn(shape, generator=generator)
    grad = torch.randn(shape, generator=generator)
    return (x + noise).to(dtype), grad.to(dtype), x.to(dtype)


def assert_same_bits(actual: Tensor, expected: Tensor) -> None:
    """Equal bit for bit; one NaN is as good as another."""
    assert torch.equal(actual.isnan(), expected.isnan())
    bits = BITS[expected.dtype]
    different = (actual.view(bits) != expected.view(bits)) & ~expected.isnan()
    assert not different.any(), (actual[different][:5], expected[different][:5])


def amounts(kind: str, samples: int):
    eps = torch.linspace(0.0, 0.4, samples, dtype=torch.float64)
    size = torch.linspace(0.3, 1e-9, samples)
    return {
        "floats": (8 / 255, 2 / 255),
        "tensors": (eps, size),
        "eps tensor": (eps, 0.01),
        "step tensor": (0.1, size.half()),
    }[kind]


@pytest.mark.parametrize("kind", ["floats", "tensors", "eps tensor", "step tensor"])
@pytest.mark.parametrize("dtype", DTYPES, ids=str)
def test_any_numbers_of_any_shape(dtype, kind):
    for shape in SHAPES:
        eps, size = amounts(kind, shape[0])
        x_adv, grad, x = (wild(shape, dtype, seed) for seed in (1, 2, 3))
        bounds = (0.0, 1.0) if len(shape) == 2 else (-1.7, 2.3)
        options = {"eps": eps, "step_size": size, "bounds": bounds}
        expected = reference.linf_step(x_adv, grad, x, **options)
        assert_same_bits(ops.linf_step_(x_adv.clone(), grad, x, **options), expected)


@pytest.mark.parametrize("dtype", (torch.bfloat16, torch.float16), ids=str)
@pytest.mark.parametrize("eps", (8 / 255, 0.3, 3e-5, 0.0, 70000.0))
def test_every_16_bit_number(dtype, eps):
    x = torch.arange(-(2**15), 2**15).to(torch.int16).view(dtype).reshape(1, -1)
    shuffled = x[:, torch.randperm(x.numel(), generator=torch.Generator().manual_seed(0))]
    for x_adv in (x, shuffled):
        for grad in (x.flip(1), shuffled):
            options = {"eps": eps, "step_size": 0.7 * eps, "bounds": (-30000.0, 30000.0)}
            expected = reference.linf_step(x_adv, grad, x, **options)
            assert_same_bits(ops.linf_step_(x_adv.clone(), grad, x, **options), expected)


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize("kind", ["floats", "tensors"])
def test_one_and_two_threads_give_the_same_bits(dtype, kind):
    x_adv, grad, x = pixels((5, 3, 97, 101), dtype)
    eps, size = amounts(kind, 5)
    before = torch.get_num_threads()
    results = []
    try:
        for threads in (1, 2, 3):
            torch.set_num_threads(threads)
            moved = ops.linf_step_(x_adv.clone(), grad, x, eps=eps, step_size=size)
            results.append(moved)
    finally:
        torch.set_num_threads(before)
    for moved in results:
        assert_same_bits(moved, reference.linf_step(x_adv, grad, x, eps=eps, step_size=size))


def test_nothing_around_the_tensor_is_written():
    buffer = torch.full((5000,), 9.0)
    for start, n in ((1, 1), (3, 17), (5, 4000)):
        buffer.fill_(9.0)
        x = torch.rand(1, n)
        ops.linf_step_(buffer[start : start + n].view(1, n), x, x.clone(), eps=0.1, step_size=0.1)
        assert (buffer[:start] == 9.0).all() and (buffer[start + n :] == 9.0).all()
        assert (buffer[start : start + n] <= 1.0).all()


@pytest.mark.gpu
@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize("kind", ["floats", "tensors"])
def test_cuda_equals_the_cpu(dtype, kind):
    if not torch.cuda.is_available():
        pytest.skip("no CUDA device")
    chosen = ops.backend("linf_step_", "cuda", dtype)
    assert chosen.name == "native", chosen.reason
    for shape in SHAPES:
        eps, size = amounts(kind, shape[0])
        x_adv, grad, x = (wild(shape, dtype, seed) for seed in (1, 2, 3))
        expected = reference.linf_step(x_adv, grad, x, eps=eps, step_size=size)
        on_gpu = [value.cuda() for value in (x_adv, grad, x)]
        if kind == "tensors":
            eps, size = eps.cuda(), size.cuda()
        with torch.cuda.stream(torch.cuda.Stream()):
            moved = ops.linf_step_(*on_gpu, eps=eps, step_size=size)
        torch.cuda.synchronize()
        assert_same_bits(moved.cpu(), expected)
