// select_best_ in the module.
#include <pybind11/pybind11.h>

#include "bindings.h"
#include "ops.h"

namespace py = pybind11;

namespace rf {
namespace {

SelectBestCall select_call(uintptr_t best_x, uintptr_t best_grad, uintptr_t best_loss,
                           uintptr_t improved, uintptr_t x_adv, uintptr_t grad, uintptr_t loss,
                           int64_t samples, int64_t row_bytes, int loss_type) {
  check_call(samples, samples, 0, {best_x, best_grad, best_loss, improved, x_adv, grad, loss});
  if (row_bytes <= 0 || loss_type < 0 || loss_type > 3) {
    throw std::invalid_argument("roli_fast._C: wrong size or dtype code");
  }
  return {pointer<void>(best_x),       pointer<void>(best_grad),
          pointer<void>(best_loss),    pointer<uint8_t>(improved),
          pointer<const void>(x_adv),  pointer<const void>(grad),
          pointer<const void>(loss),   samples,
          row_bytes,                   static_cast<LossType>(loss_type)};
}

}  // namespace

void bind_select_best(py::module_& module) {
  module.def("select_best", on_cpu(select_call, select_best_cpu));
#ifdef RF_CUDA
  module.def("select_best_cuda", on_cuda("select_best_", select_call, select_best_cuda));
#endif
}

}  // namespace rf
