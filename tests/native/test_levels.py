"""The CPU sources compiled for each level on its own, with sanitizers: the same bits everywhere.

Run-time dispatch hides all levels but one from the other tests.
"""

import ctypes
import functools
from pathlib import Path

import pytest
import torch
from building import compiled, cpu_sources
from references import reference

pytestmark = pytest.mark.sanitize

LEVELS = {
    "default": ["-march=x86-64", "-DRF_NO_DISPATCH"],
    "x86-64-v3": ["-march=x86-64-v3"],
    "undefined behaviour": ["-fsanitize=undefined", "-fno-sanitize-recover=all", "-O1"],
}
DTYPES = (torch.float32, torch.bfloat16, torch.float16)
SHIM = """
#include "ops.h"
extern "C" void step(void* x_adv, const void* grad, const void* x, int64_t samples,
                     int64_t per_sample, int dtype, const float* eps, const float* size) {
  rf::linf_step_cpu({x_adv, grad, x, samples, per_sample, static_cast<rf::DType>(dtype),
                     {eps, 0, 1}, {size, 0, 1}, -59904.0f, 59904.0f}, 2);
}
extern "C" void fab(void* x_adv, const void* grad, const void* x, int64_t samples,
                    int64_t per_sample, int dtype, int norm, const float* value) {
  rf::fab_step_cpu({x_adv, grad, x, samples, per_sample, static_cast<rf::DType>(dtype),
                    static_cast<rf::Norm>(norm), {value, 0, 1}, {nullptr, 0.1f, 0},
                    {nullptr, 1.05f, 0}, 0.0f, 1.0f}, 2);
}
"""


@functools.cache
def supported() -> str:
    cpu = Path("/proc/cpuinfo")
    return cpu.read_text() if cpu.exists() else ""


@pytest.fixture(params=LEVELS)
def library(request, tmp_path):
    if "avx2" not in supported():
        pytest.skip("the levels are those of x86-64 with AVX2")
    shim, output = tmp_path / "shim.cpp", tmp_path / "step.so"
    shim.write_text(SHIM)
    flags = ["-O3", "-fno-trapping-math", "-fPIC", "-shared", "-fopenmp", *LEVELS[request.param]]
    compiled(output, [shim, *cpu_sources()], flags)
    return ctypes.CDLL(str(output))


def pointer(tensor: torch.Tensor) -> ctypes.c_void_p:
    return ctypes.c_void_p(tensor.data_ptr())


def test_each_level_equals_the_reference(library):
    # Half a spacing of bf16, of fp16 and of fp16's subnormals: ties, which go to the even number.
    size = torch.tensor([0.01, 2**-9, 2**-12, 2**-25, 1e-6])
    eps = torch.tensor([0.03, 0.4, 0.4, 1e-6, 0.0])
    scale = torch.tensor([1.0, 1.0, 1.0, 2**-15, 1.0])[:, None]
    bounds = (-59904.0, 59904.0)  # a number of every dtype
    for code, dtype in enumerate(DTYPES):
        generator = torch.Generator().manual_seed(code)
        bits = torch.randint(0, 2**32, (3, 5, 1111), generator=generator)
        wild = (bits - 2**31).to(torch.int32).view(torch.float32).to(dtype)
        x = (torch.rand(5, 1111, generator=generator) * scale).to(dtype)
        x_adv = torch.where(bits[0] % 3 == 0, wild[0], x)
        x = torch.where(bits[1] % 3 == 0, wild[1], x)
        expected = reference.linf_step(x_adv, wild[2], x, eps=eps, step_size=size, bounds=bounds)
        library.step(
            *map(pointer, (x_adv, wild[2], x)),
            *(ctypes.c_int64(5), ctypes.c_int64(1111), ctypes.c_int(code)),
            *map(pointer, (eps, size)),
        )
        assert torch.equal(x_adv.isnan(), expected.isnan())
        assert torch.equal(x_adv[~x_adv.isnan()], expected[~expected.isnan()])


def test_fab_steps_on_each_level(library):
    """Sums go by 16 lanes on every level: fp64 sums in torch's order give the same levels."""
    value = torch.tensor([-90.0, -2.0, 0.0, 3.0, 1e6])
    for code, dtype in enumerate(DTYPES):
        generator = torch.Generator().manual_seed(code)
        x = torch.rand(5, 1111, generator=generator).to(dtype)
        x_adv = (x.float() + 0.1 * torch.randn(x.shape, generator=generator)).clamp(0, 1).to(dtype)
        grad = torch.randn(x.shape, generator=generator).to(dtype)
        grad[:, ::9], grad[:, 1::9] = torch.inf, 0.0
        for norm, name in enumerate(("linf", "l2", "l1")):
            specified, moved = getattr(reference, f"fab_{name}_step"), x_adv.clone()
            expected = specified(x_adv, grad, x, value=value, alpha_max=0.1, eta=1.05)
            library.fab(
                *map(pointer, (moved, grad, x)),
                *(ctypes.c_int64(5), ctypes.c_int64(1111), ctypes.c_int(code)),
                *(ctypes.c_int(norm), pointer(value)),
            )
            assert torch.equal(moved, expected), (dtype, name)
