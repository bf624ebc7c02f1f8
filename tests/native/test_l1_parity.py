"""The L1 kernels and the random starts equal the reference bit for bit, however work is cut."""

import pytest
import torch
from references import reference
from torch import Tensor

from roli_fast import ops

DTYPES = (torch.float32, torch.bfloat16, torch.float16)
NORMS = ("linf", "l2", "l1")
# Around the 16 lanes of a sum, the 512 of a block, and the 32768 of a thread's share.
SHAPES = [
    *((1, n) for n in (1, 3, 4, 5, 15, 16, 17, 31, 511, 512, 513, 529, 32769)),
    *((3, 5, 7, 11), (2, 3, 32, 32), (5, 1), (7, 9363)),
]

pytestmark = pytest.mark.usefixtures("kernels")


def triple(shape, dtype: torch.dtype, seed: int = 0) -> list[Tensor]:
    generator = torch.Generator().manual_seed(seed)
    x = torch.rand(shape, generator=generator)
    noise = 0.2 * torch.randn(shape, generator=generator)
    grad = torch.randn(shape, generator=generator) ** 3
    return [value.to(dtype) for value in (x + noise, grad, x)]


def wild(shape, dtype: torch.dtype, seed: int) -> Tensor:
    """Any bits at all: subnormals, infinities, NaN, both zeros, any magnitude."""
    generator = torch.Generator().manual_seed(seed)
    bits = torch.randint(-(2**31), 2**31, shape, generator=generator)
    if dtype is torch.float32:
        return bits.to(torch.int32).view(dtype)
    return bits.to(torch.int16).view(dtype)


def assert_same(actual: Tensor, expected: Tensor) -> None:
    assert torch.equal(actual.isnan(), expected.isnan())
    bits = torch.int32 if actual.dtype is torch.float32 else torch.int16
    different = (actual.view(bits) != expected.view(bits)) & ~expected.isnan()
    assert not different.any(), (actual[different][:5], expected[different][:5])


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize("per_sample", [False, True], ids=["floats", "tensors"])
def test_projection_and_step(dtype, per_sample):
    for shape in SHAPES:
        x_adv, grad, x = triple(shape, dtype)
        size = x[0].numel()
        for share in (0.0, 0.002, 0.05, 1.0):
            eps, length, density = share * size, 0.1 * size, 0.3
            if per_sample:
                eps = torch.linspace(0.1 * eps, 2 * eps, shape[0], dtype=torch.float64)
                length = torch.linspace(0.0, length, shape[0])
                density = torch.linspace(0.0, 1.0, shape[0]).half()
            options = {"eps": eps, "bounds": (0.0, 1.0) if share < 1 else (-1.7, 0.8)}
            expected = reference.l1_project(x_adv, x, **options)
            assert_same(ops.l1_project_(x_adv.clone(), x, **options), expected)
            options |= {"step_size": length, "density": density}
            expected = reference.l1_step(x_adv, grad, x, **options)
            assert_same(ops.l1_step_(x_adv.clone(), grad, x, **options), expected)


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
def test_any_bits(dtype):
    for n in (1, 40, 700):
        x_adv, grad = (wild((200, n), dtype, seed) for seed in (1, 2))
        _, _, x = triple((200, n), dtype)
        for places in (grad[:, ::3], x_adv[:, 1::2]):
            places.copy_(x[:, : places.shape[1]])
        x[:, ::17] = wild((200, n), dtype, 3)[:, ::17]
        options = {"eps": 0.7, "step_size": 0.5, "density": 0.4, "bounds": (-1.0, 2.0)}
        expected = reference.l1_step(x_adv, grad, x, **options)
        assert_same(ops.l1_step_(x_adv, grad, x, **options), expected)


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize("norm", NORMS)
def test_random_starts(norm, dtype):
    specified = getattr(reference, f"{norm}_random_start")
    native = getattr(ops, f"{norm}_random_start")
    bounds = (-0.25, 1.5)
    for shape in SHAPES:
        x = triple(shape, dtype)[2]
        ids = torch.randint(-(2**63), 2**63 - 1, (shape[0],))
        for sample_ids, eps in ((None, 0.5), (ids, torch.linspace(0.1, 9.0, shape[0]))):
            generator = torch.Generator().manual_seed(4)
            key = torch.randint(-(2**63), 2**63 - 1, (1,), generator=generator)
            expected = specified(x, key, sample_ids, eps=eps, bounds=bounds)
            options = {"eps": eps, "bounds": bounds, "sample_ids": sample_ids}
            moved = native(x, generator=generator.manual_seed(4), **options)
            assert_same(moved, expected)
            if len(shape) == 4:
                last = x.contiguous(memory_format=torch.channels_last)
                moved = native(last, generator=generator.manual_seed(4), **options)
                assert_same(moved.contiguous(), expected)


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
def test_any_number_of_threads_gives_the_same_bits(dtype):
    x_adv, grad, x = triple((5, 3, 97, 101), dtype)
    options = {"eps": 50.0, "step_size": 40.0, "density": 0.1}
    before, results = torch.get_num_threads(), []
    try:
        for threads in (1, 2, 3):
            torch.set_num_threads(threads)
            moved = [ops.l1_step_(x_adv.clone(), grad, x, **options)]
            moved += [ops.l1_project_(x_adv.clone(), x, eps=50.0)]
            for norm in NORMS:
                generator = torch.Generator().manual_seed(0)
                start = getattr(ops, f"{norm}_random_start")
                moved.append(start(x, eps=2.0, generator=generator))
            results.append(torch.stack(moved))
    finally:
        torch.set_num_threads(before)
    assert_same(results[1], results[0])
    assert_same(results[2], results[0])


def test_nothing_around_the_tensor_is_written():
    buffer = torch.full((5000,), 9.0)
    for start, n in ((1, 1), (3, 17), (5, 4000)):
        buffer.fill_(9.0)
        grad, x = torch.randn(1, n), torch.rand(1, n)
        target = buffer[start : start + n].view(1, n)
        ops.l1_step_(target, grad, x, eps=0.1, step_size=0.1, density=0.5)
        assert (buffer[:start] == 9.0).all() and (buffer[start + n :] == 9.0).all()
        assert (buffer[start : start + n] <= 1.0).all()


@pytest.mark.gpu
@pytest.mark.parametrize("dtype", DTYPES, ids=str)
def test_cuda_equals_the_reference(dtype):
    if not torch.cuda.is_available():
        pytest.skip("no CUDA device")
    assert ops.backend("l1_step_", "cuda", dtype).name == "native"
    for shape in SHAPES:
        x_adv, grad, x = triple(shape, dtype)
        size = x[0].numel()
        options = {"eps": 0.05 * size, "step_size": 0.1 * size, "density": 0.3}
        expected = reference.l1_step(x_adv, grad, x, **options)
        on_gpu = [value.cuda() for value in (x_adv, grad, x)]
        assert_same(ops.l1_step_(*on_gpu, **options).cpu(), expected)
        for norm in NORMS:
            start = getattr(ops, f"{norm}_random_start")
            moved = start(on_gpu[2], eps=0.5, generator=torch.Generator("cuda").manual_seed(1))
            generator = torch.Generator("cuda").manual_seed(1)
            key = torch.randint(
                -(2**63), 2**63 - 1, (1,), generator=generator, device="cuda", dtype=torch.int64
            )
            specified = getattr(reference, f"{norm}_random_start")
            expected = specified(x, key.cpu(), None, eps=0.5, bounds=(0.0, 1.0))
            assert_same(moved.cpu(), expected)
