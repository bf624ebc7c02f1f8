"""The CUDA kernels for Linf, L1 and the random starts compiled by g++, run thread by thread.

Indices, tails, samples, barriers, histograms, sums over a block, vectors and their alignment, with
few threads and blocks, so that each comes round several times. An element that is missed, or
stepped twice, differs from the reference; a misaligned 16-byte access is caught by the sanitizer.
What only a GPU shows stays with the `gpu` tests. L2, APGD and FAB: see test_sanitizers.py.
"""

import ctypes

import pytest
import torch
from building import EMULATOR, compiled
from cases import near
from references import reference

pytestmark = pytest.mark.sanitize

DTYPES = (torch.float32, torch.bfloat16, torch.float16)
NORMS = ("linf", "l2", "l1")
SHAPES = [
    *((1, n) for n in (1, 3, 4, 7, 8, 9, 1023, 1024, 1025, 20_001)),
    *((3, 1), (3, 7), (5, 16), (4, 4104), (70_000, 2), (2, 20_008)),
]
L1_SHAPES = [*((1, n) for n in (1, 3, 7, 8, 63, 64, 65, 1029)), (3, 5), (5, 16), (11, 520)]
L1_SHAPES += [(2, 1201)]


def library(folder, program: str, *sizes: str):
    flags = ["-O2", "-fPIC", "-shared", "-fsanitize=undefined", "-fno-sanitize-recover=all"]
    compiled(folder / "kernels.so", [EMULATOR / program], [*flags, *sizes])
    return ctypes.CDLL(str(folder / "kernels.so"))


@pytest.fixture(scope="module")
def step(tmp_path_factory):
    """The emulated launch, for a grid of at most eight blocks."""
    return library(tmp_path_factory.mktemp("linf"), "run.cpp", "-DRF_MAX_BLOCKS=8").step


@pytest.fixture(scope="module")
def emulated(tmp_path_factory):
    """Blocks of 64 threads for L1, and at most four blocks."""
    sizes = ("-DRF_MAX_BLOCKS=4", "-DRF_L1_THREADS=64")
    return library(tmp_path_factory.mktemp("l1"), "run_l1.cpp", *sizes)


@pytest.mark.parametrize("code", range(3), ids=[str(dtype) for dtype in DTYPES])
@pytest.mark.parametrize("per_sample", [False, True], ids=["one eps", "eps per sample"])
@pytest.mark.parametrize("offset", [0, 1], ids=["aligned", "misaligned"])
def test_every_element_is_stepped_once(step, code, per_sample, offset):
    dtype = DTYPES[code]
    for shape in SHAPES:
        samples, length = shape
        generator = torch.Generator().manual_seed(length)
        memory = torch.rand(3, samples * length + 64, generator=generator).to(dtype)
        x_adv, grad, x = (row[offset : offset + samples * length].clone() for row in memory)
        storage = torch.full((samples * length + 32,), 9.0, dtype=dtype)
        start = offset + (-(storage.data_ptr() // storage.element_size())) % 16
        target = storage[start : start + samples * length]
        target.copy_(x_adv)
        grad = grad - 0.5
        eps = torch.linspace(0.05, 0.4, samples if per_sample else 1)
        expected = reference.linf_step(
            *(value.view(shape) for value in (x_adv, grad, x)), eps=eps, step_size=0.015625
        )
        vectors = step(
            *(ctypes.c_void_p(value.data_ptr()) for value in (target, grad, x)),
            *(ctypes.c_int64(samples), ctypes.c_int64(length), ctypes.c_int(code)),
            *(ctypes.c_void_p(eps.data_ptr()), ctypes.c_int64(int(per_sample))),
        )
        assert torch.equal(target.view(shape), expected)
        assert (storage[:start] == 9.0).all() and (storage[start + target.numel() :] == 9.0).all()
        whole = samples == 1 or not per_sample or length * dtype.itemsize % 16 == 0
        assert bool(vectors) == (offset == 0 and whole)


def pointer(tensor: torch.Tensor | None) -> ctypes.c_void_p:
    return ctypes.c_void_p(tensor.data_ptr() if tensor is not None else None)


def placed(value: torch.Tensor, offset: int) -> tuple[torch.Tensor, torch.Tensor]:
    """A copy `offset` elements past a 16-byte border, and the memory around it."""
    memory = torch.full((value.numel() + 64,), 9.0, dtype=value.dtype)
    start = offset + (-(memory.data_ptr() // memory.element_size())) % 16
    copy = memory[start : start + value.numel()].view(value.shape)
    copy.copy_(value)
    return copy, memory


def sizes(*numbers: int) -> list[ctypes.c_int64]:
    return [ctypes.c_int64(number) for number in numbers]


@pytest.mark.parametrize("code", range(3), ids=[str(dtype) for dtype in DTYPES])
@pytest.mark.parametrize("offset", [0, 1], ids=["aligned", "misaligned"])
@pytest.mark.parametrize("step", [False, True], ids=["project", "step"])
def test_l1_kernels(emulated, code, offset, step):
    dtype = DTYPES[code]
    for shape in L1_SHAPES:
        samples, length = shape
        generator = torch.Generator().manual_seed(length)
        x = torch.rand(shape, generator=generator).to(dtype)
        x_adv = (x.float() + 0.2 * torch.randn(shape, generator=generator)).to(dtype)
        grad = (torch.randn(shape, generator=generator) ** 3).to(dtype)
        grad[:, ::5] = grad[0, 0]  # ties
        grad[:, 1::7] = float("nan")
        eps = torch.linspace(0.01, 0.3, samples) * length
        amounts = {"step_size": 0.3 * eps, "density": torch.linspace(0.7, 0.0, samples)}
        expected = reference.l1_project(x_adv, x, eps=eps)
        if step:
            expected = reference.l1_step(x_adv, grad, x, eps=eps, **amounts)
        target, memory = placed(x_adv, offset)
        origin, _x_memory = placed(x, offset)
        slope, _grad_memory = placed(grad, offset)
        vectors = emulated.l1(
            *(pointer(target), pointer(slope if step else None), pointer(origin)),
            *(*sizes(*shape), ctypes.c_int(code), pointer(eps)),
            *(pointer(value) for value in amounts.values()),
        )
        assert vectors >= 0, "a block could not come to its end"
        assert near(target, expected)
        assert (memory == 9.0).sum() >= 64
        whole = samples == 1 or length * dtype.itemsize % 16 == 0
        assert bool(vectors) == (offset == 0 and whole)


@pytest.mark.parametrize("code", range(3), ids=[str(dtype) for dtype in DTYPES])
@pytest.mark.parametrize("norm", range(3), ids=NORMS)
def test_random_starts(emulated, code, norm):
    dtype = DTYPES[code]
    specified = getattr(reference, f"{NORMS[norm]}_random_start")
    shapes = [(2, 3, 5, 7), (1, 2, 9, 41), (9, 4, 8, 8), (1, 1, 1, 1), (3, 1, 1, 9001)]
    for samples, channels, height, width in shapes:
        shape, per_sample = (samples, channels, height, width), channels * height * width
        generator = torch.Generator().manual_seed(per_sample)
        x = torch.rand(shape, generator=generator).to(dtype)
        key = torch.randint(-(2**63), 2**63 - 1, (1,), generator=generator)
        ids = torch.randint(-(2**63), 2**63 - 1, (samples,), generator=generator)
        eps = torch.linspace(0.1, 3.0, samples)
        for sample_ids in (None, ids):
            expected = specified(x, key, sample_ids, eps=eps, bounds=(0.0, 1.0))
            for layout in (torch.contiguous_format, torch.channels_last):
                own = x.contiguous(memory_format=layout)
                out, totals = torch.full_like(own, 9.0), torch.zeros(samples, dtype=torch.int64)
                plane = per_sample if layout is torch.contiguous_format else height * width
                ended = emulated.start(
                    *(pointer(out), pointer(own), pointer(key), pointer(sample_ids)),
                    *(pointer(totals), *sizes(samples, per_sample, plane)),
                    *(ctypes.c_int(code), ctypes.c_int(norm), pointer(eps)),
                )
                assert ended >= 0 and near(out, expected, 3.0)


@pytest.mark.parametrize(
    ("key", "low", "high", "expected"),
    [
        (0, 0, 0, (0x6627E8D5, 0xE169C58D, 0xBC57AC4C, 0x9B00DBD8)),
        *[(2**64 - 1,) * 3 + ((0x408F276D, 0x41C83B0E, 0xA20BC7C6, 0x6D5451FD),)],
        (
            *(0x299F31D0A4093822, 0x85A308D3243F6A88, 0x0370734413198A2E),
            (0xD16CFE09, 0x94FDCCEB, 0x5001E420, 0x24126EA1),
        ),
    ],
    ids=["zeros", "ones", "pi"],
)
def test_philox_known_answers(emulated, key, low, high, expected):
    """Random123's vectors for philox4x32-10, of the rule that all kernels share."""
    words = torch.zeros(4, dtype=torch.int32)
    emulated.philox(*(ctypes.c_uint64(value) for value in (key, low, high)), pointer(words))
    assert [word % 2**32 for word in words.tolist()] == list(expected)
