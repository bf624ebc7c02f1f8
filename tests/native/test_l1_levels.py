"""The L1 ops and the random starts compiled for each CPU level on its own: the same bits.

Sums go by 16 lanes on every level, and draws by plain arithmetic. See test_levels.py.
"""

import ctypes
from pathlib import Path

import pytest
import torch
from building import CSRC, compiled
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
                     int64_t per_sample, int dtype, const float* eps, const float* size,
                     const float* density) {
  const rf::L1ProjectCall project = {x_adv, x, samples, per_sample, static_cast<rf::DType>(dtype),
                                     {eps, 0, 1}, 0.0f, 1.0f};
  rf::l1_step_cpu({project, grad, {size, 0, 1}, {density, 0, 1}}, 2);
}
extern "C" void start(void* out, const void* x, const int64_t* key, int64_t samples,
                      int64_t per_sample, int dtype, int norm, const float* eps) {
  rf::random_start_cpu({out, x, key, nullptr, samples, per_sample, per_sample,
                        static_cast<rf::DType>(dtype), static_cast<rf::Norm>(norm), {eps, 0, 1},
                        0.0f, 1.0f}, 2);
}
"""


@pytest.fixture(params=LEVELS)
def library(request, tmp_path):
    cpu = Path("/proc/cpuinfo")
    if "avx2" not in (cpu.read_text() if cpu.exists() else ""):
        pytest.skip("the levels are those of x86-64 with AVX2")
    shim, output = tmp_path / "shim.cpp", tmp_path / "l1.so"
    shim.write_text(SHIM)
    names = ("l1_project", "l1_step", "random_start", "half", "words")
    sources = [CSRC / "cpu" / f"{name}.cpp" for name in names]
    flags = ["-O3", "-fno-trapping-math", "-fPIC", "-shared", "-fopenmp", *LEVELS[request.param]]
    compiled(output, [shim, *sources], flags)
    return ctypes.CDLL(str(output))


def pointer(tensor: torch.Tensor) -> ctypes.c_void_p:
    return ctypes.c_void_p(tensor.data_ptr())


def test_each_level_equals_the_reference(library):
    shape = (5, 1111)
    sizes = ctypes.c_int64(shape[0]), ctypes.c_int64(shape[1])
    eps = torch.tensor([0.0, 0.5, 7.0, 40.0, 1e4])
    length, density = 0.7 * eps.flip(0), torch.tensor([0.0, 0.01, 0.3, 0.9, 1.0])
    for code, dtype in enumerate(DTYPES):
        generator = torch.Generator().manual_seed(code)
        bits = torch.randint(0, 2**32, (3, *shape), generator=generator)
        wild = (bits - 2**31).to(torch.int32).view(torch.float32).to(dtype)
        x = torch.rand(shape, generator=generator).to(dtype)
        x_adv = (x.float() + 0.2 * torch.randn(shape, generator=generator)).to(dtype)
        x_adv = torch.where(bits[0] % 50 == 0, wild[0], x_adv)
        grad = torch.where(bits[1] % 3 == 0, wild[1], x_adv - x)
        options = {"eps": eps, "step_size": length, "density": density}
        expected = reference.l1_step(x_adv, grad, x, **options)
        amounts = map(pointer, (eps, length, density))
        library.step(*map(pointer, (x_adv, grad, x)), *sizes, ctypes.c_int(code), *amounts)
        assert torch.equal(x_adv.isnan(), expected.isnan())
        assert torch.equal(x_adv[~x_adv.isnan()], expected[~expected.isnan()])
        for norm, name in enumerate(("linf", "l2", "l1")):
            key, out = bits[2, :1, 0] * 2**31 + 5, torch.empty_like(x)
            specified = getattr(reference, f"{name}_random_start")
            expected = specified(x, key, None, eps=eps, bounds=(0.0, 1.0))
            codes = ctypes.c_int(code), ctypes.c_int(norm)
            library.start(*map(pointer, (out, x, key)), *sizes, *codes, pointer(eps))
            assert torch.equal(out, expected)
