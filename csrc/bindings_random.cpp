// The random starts in the module.
#include <pybind11/pybind11.h>

#include "bindings.h"
#include "ops.h"

namespace py = pybind11;

namespace rf {
namespace {

RandomStartCall random_start_call(uintptr_t out, uintptr_t x, uintptr_t key,
                                  uintptr_t sample_ids, int64_t samples, int64_t numel,
                                  int dtype, int64_t plane, int norm, const Amount& eps,
                                  float low, float high) {
  check_call(samples, numel, dtype, {out, x, key});
  if (norm < 0 || norm > 2) throw std::invalid_argument("roli_fast._C: unknown norm code");
  if (plane <= 0 || (numel / samples) % plane) {
    throw std::invalid_argument("roli_fast._C: a sample is no multiple of the plane");
  }
  return {pointer<void>(out),
          pointer<const void>(x),
          pointer<const int64_t>(key),
          pointer<const int64_t>(sample_ids),
          samples,
          numel / samples,
          plane,
          static_cast<DType>(dtype),
          static_cast<Norm>(norm),
          per_sample_of(eps),
          low,
          high};
}

// `totals`: memory that the CUDA kernels sum up in; unused on the CPU.
void random_start(uintptr_t out, uintptr_t x, uintptr_t key, uintptr_t sample_ids, uintptr_t,
                  int64_t samples, int64_t numel, int dtype, int64_t plane, int norm,
                  const Amount& eps, float low, float high, int threads) {
  const auto call = random_start_call(out, x, key, sample_ids, samples, numel, dtype, plane, norm,
                                      eps, low, high);
  py::gil_scoped_release release;
  random_start_cpu(call, threads);
}

#ifdef RF_CUDA
void random_start_on_cuda(uintptr_t out, uintptr_t x, uintptr_t key, uintptr_t sample_ids,
                          uintptr_t totals, int64_t samples, int64_t numel, int dtype,
                          int64_t plane, int norm, const Amount& eps, float low, float high,
                          int device, uintptr_t stream) {
  const auto call = random_start_call(out, x, key, sample_ids, samples, numel, dtype, plane, norm,
                                      eps, low, high);
  check_code("a random start",
             random_start_cuda(call, pointer<int64_t>(totals), device, pointer<void>(stream)));
}
#endif

}  // namespace

void bind_random(py::module_& module) {
  module.def("random_start", &random_start);
#ifdef RF_CUDA
  module.def("random_start_cuda", &random_start_on_cuda);
#endif
}

}  // namespace rf
