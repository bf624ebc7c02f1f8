"""The CUDA kernel compiled by g++ and run thread by thread: indices, tails, samples, alignment.

An element that is missed, or stepped twice, differs from the reference. A misaligned 16-byte
access is caught by the sanitizer. What only a GPU shows stays with the `gpu` tests.
"""

import ctypes

import pytest
import torch
from building import EMULATOR, compiled
from references import reference

pytestmark = pytest.mark.sanitize

DTYPES = (torch.float32, torch.bfloat16, torch.float16)
SHAPES = [
    *((1, n) for n in (1, 3, 4, 7, 8, 9, 1023, 1024, 1025, 20_001)),
    *((3, 1), (3, 7), (5, 16), (4, 4104), (70_000, 2), (2, 20_008)),
]


@pytest.fixture(scope="module")
def step(tmp_path_factory):
    """The emulated launch, for a grid of at most eight blocks."""
    flags = ["-O2", "-fPIC", "-shared", "-fsanitize=undefined", "-fno-sanitize-recover=all"]
    output = tmp_path_factory.mktemp("cuda_on_cpu") / "step.so"
    compiled(output, [EMULATOR / "run.cpp"], [*flags, "-DRF_MAX_BLOCKS=8"])
    return ctypes.CDLL(str(output)).step


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
