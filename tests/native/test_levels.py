"""The CPU sources compiled for each level on its own: the reference's numbers.

Run-time dispatch hides all levels but one from the other tests. Sums go by 16 lanes on every level.
"""

import ctypes
import functools
from ctypes import c_int, c_int64
from pathlib import Path

import pytest
import torch
from building import compiled, cpu_sources
from cases import near
from references import reference

pytestmark = pytest.mark.sanitize

LEVELS = {
    "default": ["-march=x86-64", "-DRF_NO_DISPATCH"],
    "x86-64-v3": ["-march=x86-64-v3"],
}
DTYPES = (torch.float32, torch.bfloat16, torch.float16)
SHIM = """
#include "ops.h"
using namespace rf;
extern "C" void linf(void* x_adv, const void* grad, const void* x, int64_t samples,
                     int64_t per_sample, int dtype, const float* eps, const float* size) {
  linf_step_cpu({x_adv, grad, x, samples, per_sample, static_cast<DType>(dtype), {eps, 0, 1},
                 {size, 0, 1}, -59904.0f, 59904.0f}, 2);
}
extern "C" void fab(void* x_adv, const void* grad, const void* x, int64_t samples,
                    int64_t per_sample, int dtype, int norm, const float* value) {
  fab_step_cpu({x_adv, grad, x, samples, per_sample, static_cast<DType>(dtype),
                static_cast<Norm>(norm), {value, 0, 1}, {nullptr, 0.1f, 0}, {nullptr, 1.05f, 0},
                0.0f, 1.0f}, 2);
}
extern "C" void l1(void* x_adv, const void* grad, const void* x, int64_t samples,
                   int64_t per_sample, int dtype, const float* eps, const float* size,
                   const float* density) {
  l1_step_cpu({x_adv, grad, x, samples, per_sample, static_cast<DType>(dtype), {eps, 0, 1},
               {size, 0, 1}, {density, 0, 1}, 0.0f, 1.0f}, 2);
}
extern "C" void start(void* out, const void* x, const int64_t* key, int64_t samples,
                      int64_t per_sample, int dtype, int norm, const float* eps) {
  random_start_cpu({out, x, key, nullptr, samples, per_sample, per_sample,
                    static_cast<DType>(dtype), static_cast<Norm>(norm), {eps, 0, 1}, 0.0f, 1.0f},
                   2);
}
"""
SHAPE = (5, 1111)
SIZES = (c_int64(5), c_int64(1111))


@functools.cache
def supported() -> str:
    cpu = Path("/proc/cpuinfo")
    return cpu.read_text() if cpu.exists() else ""


@pytest.fixture(scope="module", params=LEVELS)
def library(request, tmp_path_factory):
    if "avx2" not in supported():
        pytest.skip("the levels are those of x86-64 with AVX2")
    folder = tmp_path_factory.mktemp("level")
    (folder / "shim.cpp").write_text(SHIM)
    flags = ["-O3", "-fno-trapping-math", "-fPIC", "-shared", "-fopenmp", *LEVELS[request.param]]
    compiled(folder / "steps.so", [folder / "shim.cpp", *cpu_sources()], flags)
    return ctypes.CDLL(str(folder / "steps.so"))


def pointers(*tensors: torch.Tensor) -> list[ctypes.c_void_p]:
    return [ctypes.c_void_p(tensor.data_ptr()) for tensor in tensors]


@pytest.fixture(params=range(3), ids=[str(dtype) for dtype in DTYPES])
def case(request):
    """The dtype's code, pixels, points near them, and any bits."""
    code, generator = request.param, torch.Generator().manual_seed(request.param)
    x = torch.rand(SHAPE, generator=generator).to(DTYPES[code])
    x_adv = (x.float() + 0.2 * torch.randn(SHAPE, generator=generator)).to(DTYPES[code])
    bits = torch.randint(0, 2**32, (3, *SHAPE), generator=generator)
    wild = (bits - 2**31).to(torch.int32).view(torch.float32).to(DTYPES[code])
    return c_int(code), x, x_adv, wild, bits


def test_linf(library, case):
    code, x, _, wild, bits = case
    # Half a spacing of bf16, of fp16 and of fp16's subnormals: ties, which go to the even number.
    size = torch.tensor([0.01, 2**-9, 2**-12, 2**-25, 1e-6])
    eps = torch.tensor([0.03, 0.4, 0.4, 1e-6, 0.0])
    x = x * torch.tensor([1.0, 1.0, 1.0, 2**-15, 1.0])[:, None].to(x.dtype)
    x_adv = torch.where(bits[0] % 3 == 0, wild[0], x)
    x = torch.where(bits[1] % 3 == 0, wild[1], x)
    bounds = (-59904.0, 59904.0)  # a number of every dtype
    expected = reference.linf_step(x_adv, wild[2], x, eps=eps, step_size=size, bounds=bounds)
    library.linf(*pointers(x_adv, wild[2], x), *SIZES, code, *pointers(eps, size))
    assert torch.equal(x_adv.isnan(), expected.isnan())
    assert torch.equal(x_adv[~x_adv.isnan()], expected[~expected.isnan()])


def test_l1(library, case):
    code, x, x_adv, wild, bits = case
    x_adv = torch.where(bits[0] % 50 == 0, wild[0], x_adv)
    grad = torch.where(bits[1] % 3 == 0, wild[1], x_adv - x)
    eps = torch.tensor([0.0, 0.5, 7.0, 40.0, 1e4])
    length, density = 0.7 * eps.flip(0), torch.tensor([0.0, 0.01, 0.3, 0.9, 1.0])
    options = {"eps": eps, "step_size": length, "density": density}
    expected = reference.l1_step(x_adv, grad, x, **options)
    library.l1(*pointers(x_adv, grad, x), *SIZES, code, *pointers(eps, length, density))
    assert near(x_adv, expected)


@pytest.mark.parametrize("norm", range(3), ids=["linf", "l2", "l1"])
def test_fab_and_starts(library, case, norm):
    code, x, x_adv, _, bits = case
    name = ("linf", "l2", "l1")[norm]
    value = torch.tensor([-90.0, -2.0, 0.0, 3.0, 1e6])
    grad = (x_adv - x) * 5
    grad[:, ::9], grad[:, 1::9] = torch.inf, 0.0
    x_adv = x_adv.clamp(0, 1)
    options = {"value": value, "alpha_max": 0.1, "eta": 1.05}
    expected = getattr(reference, f"fab_{name}_step")(x_adv, grad, x, **options)
    library.fab(*pointers(x_adv, grad, x), *SIZES, code, c_int(norm), *pointers(value))
    assert near(x_adv, expected, 10.0)
    key, out, eps = bits[2, :1, 0] * 2**31 + 5, torch.empty_like(x), torch.rand(5)
    specified = getattr(reference, f"{name}_random_start")
    expected = specified(x, key, None, eps=eps, bounds=(0.0, 1.0))
    library.start(*pointers(out, x, key), *SIZES, code, c_int(norm), *pointers(eps))
    assert near(out, expected)
