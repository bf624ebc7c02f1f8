// The L1 ops in the module.
#include <pybind11/pybind11.h>

#include "bindings.h"
#include "ops.h"

namespace py = pybind11;

namespace rf {
namespace {

L1ProjectCall l1_project_call(uintptr_t x_adv, uintptr_t x, int64_t samples, int64_t numel,
                              int dtype, const Amount& eps, float low, float high) {
  check_call(samples, numel, dtype, {x_adv, x});
  return {pointer<void>(x_adv),
          pointer<const void>(x),
          samples,
          numel / samples,
          static_cast<DType>(dtype),
          per_sample_of(eps),
          low,
          high};
}

L1StepCall l1_step_call(uintptr_t x_adv, uintptr_t grad, uintptr_t x, int64_t samples,
                        int64_t numel, int dtype, const Amount& eps, const Amount& step_size,
                        const Amount& density, float low, float high) {
  check_call(samples, numel, dtype, {grad});
  return {l1_project_call(x_adv, x, samples, numel, dtype, eps, low, high),
          pointer<const void>(grad), per_sample_of(step_size), per_sample_of(density)};
}

}  // namespace

void bind_l1(py::module_& module) {
  module.def("l1_project", on_cpu(l1_project_call, l1_project_cpu));
  module.def("l1_step", on_cpu(l1_step_call, l1_step_cpu));
#ifdef RF_CUDA
  module.def("l1_project_cuda", on_cuda("l1_project_", l1_project_call, l1_project_cuda));
  module.def("l1_step_cuda", on_cuda("l1_step_", l1_step_call, l1_step_cuda));
#endif
}

}  // namespace rf
