"""The L1 kernels and the random starts for CUDA, run by g++ thread by thread: the reference's bits.

Barriers, histograms, sums over a block, tails, vectors and their alignment. Few threads and blocks,
so that each comes round several times. What only a GPU shows stays with the `gpu` tests.
"""

import ctypes

import pytest
import torch
from building import EMULATOR, compiled
from references import reference

pytestmark = pytest.mark.sanitize

DTYPES = (torch.float32, torch.bfloat16, torch.float16)
NORMS = ("linf", "l2", "l1")
SHAPES = [*((1, n) for n in (1, 3, 7, 8, 63, 64, 65, 1029)), (3, 5), (5, 16), (11, 520), (2, 1201)]


@pytest.fixture(scope="module")
def emulated(tmp_path_factory):
    """Blocks of 64 threads for L1, and at most four blocks."""
    flags = ["-O2", "-fPIC", "-shared", "-fsanitize=undefined", "-fno-sanitize-recover=all"]
    output = tmp_path_factory.mktemp("cuda_on_cpu") / "l1.so"
    sizes = ["-DRF_MAX_BLOCKS=4", "-DRF_L1_THREADS=64"]
    compiled(output, [EMULATOR / "run_l1.cpp"], [*flags, *sizes])
    return ctypes.CDLL(str(output))


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
    for shape in SHAPES:
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
        assert torch.equal(target, expected)
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
                assert ended >= 0 and torch.equal(out, expected)


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
