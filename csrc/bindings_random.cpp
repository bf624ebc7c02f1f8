// The random starts in the module.
#include <pybind11/pybind11.h>

#include "bindings.h"
#include "ops.h"

namespace py = pybind11;

namespace rf {
namespace {

RandomStartCall random_start_call(uintptr_t out, uintptr_t x, uintptr_t key,
                                  uintptr_t sample_ids, uintptr_t totals, int64_t samples,
                                  int64_t numel, int dtype, int64_t plane, int norm,
                                  const Amount& eps, float low, float high) {
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
          high,
          pointer<int64_t>(totals)};
}

}  // namespace

void bind_random(py::module_& module) {
  module.def("random_start", on_cpu(random_start_call, random_start_cpu));
#ifdef RF_CUDA
  module.def("random_start_cuda", on_cuda("a random start", random_start_call, random_start_cuda));
#endif
}

}  // namespace rf
