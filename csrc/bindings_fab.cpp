// FAB's step in the module.
#include <pybind11/pybind11.h>

#include "bindings.h"
#include "ops.h"

namespace py = pybind11;

namespace rf {
namespace {

FabStepCall fab_step_call(uintptr_t x_adv, uintptr_t grad, uintptr_t x, int64_t samples,
                          int64_t numel, int dtype, const Amount& value, const Amount& alpha_max,
                          const Amount& eta, float low, float high, int norm) {
  check_call(samples, numel, dtype, {x_adv, grad, x});
  if (norm < 0 || norm > 2) throw std::invalid_argument("roli_fast._C: unknown norm code");
  return {pointer<void>(x_adv),
          pointer<const void>(grad),
          pointer<const void>(x),
          samples,
          numel / samples,
          static_cast<DType>(dtype),
          static_cast<Norm>(norm),
          per_sample_of(value),
          per_sample_of(alpha_max),
          per_sample_of(eta),
          low,
          high};
}

}  // namespace

void bind_fab(py::module_& module) {
  module.def("fab_step", on_cpu(fab_step_call, fab_step_cpu));
#ifdef RF_CUDA
  module.def("fab_step_cuda", on_cuda("FAB's step", fab_step_call, fab_step_cuda));
#endif
}

}  // namespace rf
