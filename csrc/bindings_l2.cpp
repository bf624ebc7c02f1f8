// l2_step_, l2_project_ and APGD's steps in the module.
#include <pybind11/pybind11.h>

#include "bindings.h"
#include "ops.h"

namespace py = pybind11;

namespace rf {
namespace {

// grad: 0 for a projection.
L2StepCall l2_call(uintptr_t x_adv, uintptr_t grad, uintptr_t x, int64_t samples, int64_t numel,
                   int dtype, const Amount& eps, const Amount& step_size, float low, float high,
                   double slack, uintptr_t workspace) {
  check_call(samples, numel, dtype, {x_adv, x});
  return {pointer<void>(x_adv), pointer<const void>(grad),
          pointer<const void>(x), samples,
          numel / samples, static_cast<DType>(dtype),
          per_sample_of(eps), per_sample_of(step_size),
          low, high,
          slack, pointer<double>(workspace)};
}

// x_prev comes first: it is what is written.
ApgdStepCall apgd_call(uintptr_t x_prev, uintptr_t x_adv, uintptr_t grad, uintptr_t x,
                       int64_t samples, int64_t numel, int dtype, const Amount& eps,
                       const Amount& step_size, const Amount& momentum, float low, float high,
                       double slack, uintptr_t workspace) {
  check_call(samples, numel, dtype, {x_prev, x_adv, grad, x});
  return {pointer<const void>(x_adv), pointer<void>(x_prev),
          pointer<const void>(grad), pointer<const void>(x),
          samples, numel / samples,
          static_cast<DType>(dtype), per_sample_of(eps),
          per_sample_of(step_size), per_sample_of(momentum),
          low, high,
          slack, pointer<double>(workspace)};
}

}  // namespace

void bind_l2(py::module_& module) {
  module.def("l2_step", on_cpu(l2_call, l2_step_cpu));
  module.def("apgd_linf_step", on_cpu(apgd_call, apgd_linf_step_cpu));
  module.def("apgd_l2_step", on_cpu(apgd_call, apgd_l2_step_cpu));
#ifdef RF_CUDA
  module.def("l2_step_cuda", on_cuda("l2_step_", l2_call, l2_step_cuda));
  module.def("apgd_linf_step_cuda", on_cuda("apgd_linf_step_", apgd_call, apgd_linf_step_cuda));
  module.def("apgd_l2_step_cuda", on_cuda("apgd_l2_step_", apgd_call, apgd_l2_step_cuda));
  // How many doubles of workspace a reduction needs: (samples, elements a sample).
  module.def("reduction_workspace", &reduction_workspace);
#endif
}

}  // namespace rf
