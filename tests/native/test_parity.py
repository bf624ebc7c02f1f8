"""The kernels beside the references: sizes around every block, any bits, threads, a GPU."""

import pytest
import torch
from cases import STARTS, UPDATES, amounts, batch, near, wild
from references import reference
from torch import Tensor

from roli_fast import ops

DTYPES = (torch.float32, torch.bfloat16, torch.float16)
# Around the 16 lanes of a sum, the 512 of a block, the 4096 of a chunk, a thread's share of 32768.
SHAPES = [
    *((1, n) for n in (1, 3, 4, 5, 15, 16, 17, 31, 511, 512, 513, 529, 4095, 4097, 32769)),
    *((5,), (3, 5, 7, 11), (9, 3, 32, 32), (5, 1), (7, 9363), (300, 2), (2, 3, 4, 5, 6)),
]

pytestmark = pytest.mark.usefixtures("kernels")


@pytest.fixture(params=UPDATES)
def op(request):
    return UPDATES[request.param]


def tensors_of(op, shape, dtype: torch.dtype) -> list[Tensor]:
    """Pixels, some of them at walls, and gradients of many sizes."""
    tensors = dict(zip(op.tensors, batch(op, shape, torch.float32, spread=0.1), strict=True))
    tensors["x"] = tensors["x"].mul(1.2).sub(0.1).clamp(0, 1)
    if "grad" in tensors:
        tensors["grad"] = tensors["grad"] ** 3
    return [value.to(dtype) for value in tensors.values()]


def numbers_of(op, shape) -> list[dict]:
    """A number for all, and numbers a sample, for balls of all sizes."""
    per = {"l1": shape[-1] / 8, "l2": 0.5, "linf": 0.03}
    size = next(value for norm, value in per.items() if norm in op.name)
    each = amounts(op, 2 * size, shape[0])
    if "value" in each:  # planes at any share of what the box lets close
        each["value"] = 0.3 * shape[-1] * torch.linspace(-0.1, 2.0, shape[0])
    wide = amounts(op, 40 * size) | {"bounds": (-0.75, 1.5)}
    return [amounts(op, size), each, wide]


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
def test_equals_the_reference(op, dtype):
    for shape in SHAPES:
        tensors = tensors_of(op, shape, dtype)
        for options in numbers_of(op, shape):
            expected = op.reference(*tensors, **options)
            found = op.run(tensors[0].clone(), *tensors[1:], **options)
            # FAB's last entry takes up what is left, with the fp32 roundings of all before it.
            assert near(found, expected, 10.0 if "fab" in op.name else 1.5), shape


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
def test_any_bits(op, dtype):
    """Gradients of any bits, and some samples with points and images of any bits."""
    for n in (1, 40, 700):
        tensors = tensors_of(op, (120, n), dtype)
        x = tensors[-1]
        for place, name in enumerate(op.tensors):
            if name == "grad":
                grad = wild(x.shape, dtype, 1)
                tensors[place] = torch.where(x > 0.5, tensors[place], grad)
            else:
                rows = slice(place, None, 5)
                tensors[place][rows] = wild(tensors[place][rows].shape, dtype, 2 + place)
        options = amounts(op, 0.7) | {"bounds": (-1.0, 2.0)}
        if "value" in options:
            options["value"] = wild((120,), torch.float32, 9)
        expected = op.reference(*tensors, **options)
        found = op.run(*tensors, **options)
        if "fab" in op.name:  # all of fp32's range in one scalar product: fp64 sees more of it
            assert torch.equal(found.isnan(), expected.isnan())
            assert ((found >= -1) & (found <= 2) | found.isnan()).all()
        else:
            assert near(found, expected, 2.0)


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize("name", STARTS)
def test_random_starts(name, dtype):
    bounds, seeded = (-0.25, 1.5), torch.Generator().manual_seed
    for shape in SHAPES:
        x = torch.rand(shape, generator=seeded(0)).to(dtype)
        ids = torch.randint(-(2**63), 2**63 - 1, (shape[0],))
        for sample_ids, eps in ((None, 0.5), (ids, torch.linspace(0.1, 9.0, shape[0]))):
            key = torch.randint(-(2**63), 2**63 - 1, (1,), generator=seeded(4))
            options = {"eps": eps, "bounds": bounds}
            expected = getattr(reference, name)(x, key, sample_ids, **options)
            options |= {"sample_ids": sample_ids}
            moved = getattr(ops, name)(x, generator=seeded(4), **options)
            assert near(moved, expected, 9.0)
            if len(shape) == 4:
                last = x.contiguous(memory_format=torch.channels_last)
                again = getattr(ops, name)(last, generator=seeded(4), **options)
                assert torch.equal(again, moved)


@pytest.mark.parametrize("name", ["linf_step_", "apgd_linf_step_"])
def test_wild_numbers_among_tame_ones_in_bf16(name):
    """A block of 32 that holds one leaves the AVX-512 lanes for the scalar rule."""
    op, each = UPDATES[name], {"eps": [0.0, 1e-40, 2.0**-9, 8 / 255, 0.5, 3e4]}
    each |= {"step_size": [0.0, 2.0**-12, 2 / 255, 1e-39, 1e31, 7e3]}
    each |= {"momentum": [1.0, 0.75, 0.0, 1.0, 0.3, 0.75]}
    options = {key: torch.tensor(each[key]) for key in op.amounts} | {"bounds": (-2.0, 2.5)}
    for place, wrong in enumerate((torch.nan, torch.inf, -torch.inf, 3e38, 2e30)):
        tensors = batch(op, (6, 1111), torch.bfloat16, place)
        for index, value in enumerate(tensors):
            value[:, 40 + index :: 300] = wrong
            value[:, 5 + index :: 97] = 0.0
        expected = op.reference(*tensors, **options)
        assert near(op.run(*tensors, **options), expected, 2.0)


@pytest.mark.gpu
@pytest.mark.parametrize("dtype", DTYPES, ids=str)
def test_cuda_equals_the_cpu(op, dtype):
    if not torch.cuda.is_available():
        pytest.skip("no CUDA device")
    chosen = ops.backend(op.name, "cuda", dtype)
    assert chosen.name == "native", chosen.reason
    for shape in SHAPES:
        tensors, options = tensors_of(op, shape, dtype), numbers_of(op, shape)[1]
        numbers = {key: value.cuda() for key, value in options.items()}
        with torch.cuda.stream(torch.cuda.Stream()):
            moved = op.run(*[value.cuda() for value in tensors], **numbers)
            again = op.run(*[value.cuda() for value in tensors], **numbers)
        torch.cuda.synchronize()
        assert torch.equal(moved, again)
        assert near(moved.cpu(), op.run(*tensors, **options))


@pytest.mark.gpu
@pytest.mark.parametrize("name", STARTS)
def test_starts_on_cuda_equal_the_reference(name):
    if not torch.cuda.is_available():
        pytest.skip("no CUDA device")
    start, span = getattr(ops, name), (-(2**63), 2**63 - 1, (1,))
    for dtype in DTYPES:
        for shape in SHAPES:
            x = torch.rand(shape).to(dtype)
            moved = start(x.cuda(), eps=0.5, generator=torch.Generator("cuda").manual_seed(1))
            generator = torch.Generator("cuda").manual_seed(1)
            key = torch.randint(*span, generator=generator, device="cuda").cpu()
            assert near(moved.cpu(), getattr(reference, name)(x, key, None, eps=0.5, bounds=(0, 1)))
