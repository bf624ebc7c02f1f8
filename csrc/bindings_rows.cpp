// The steps over rows in the module; on the CPU alone.
#include <pybind11/pybind11.h>

#include "bindings.h"
#include "rows.h"

namespace py = pybind11;

namespace rf {
namespace {

void check_rows(int64_t rows, int64_t columns, std::initializer_list<uintptr_t> pointers) {
  check_call(rows, rows * columns, 1, pointers);
  if (columns > kMostColumns) throw std::invalid_argument("roli_fast._C: rows are too long");
}

SoftmaxCall softmax_call(uintptr_t scores, int64_t rows, int64_t columns, float scale) {
  check_rows(rows, columns, {scores});
  return {pointer<void>(scores), rows, columns, scale};
}

SoftmaxBackwardCall softmax_backward_call(uintptr_t grad, uintptr_t chance, int64_t rows,
                                          int64_t columns, float scale) {
  check_rows(rows, columns, {grad, chance});
  return {pointer<void>(grad), pointer<const void>(chance), rows, columns, scale};
}

NormCall norm_call(uintptr_t out, uintptr_t mean, uintptr_t factor, uintptr_t x, uintptr_t weight,
                   uintptr_t bias, int64_t rows, int64_t columns, float eps) {
  check_rows(rows, columns, {out, mean, factor, x});
  return {pointer<void>(out),
          pointer<float>(mean),
          pointer<float>(factor),
          pointer<const float>(x),
          pointer<const float>(weight),
          pointer<const float>(bias),
          rows,
          columns,
          eps};
}

NormBackwardCall norm_backward_call(uintptr_t out, uintptr_t grad, uintptr_t x, uintptr_t mean,
                                    uintptr_t factor, uintptr_t weight, int64_t rows,
                                    int64_t columns) {
  check_rows(rows, columns, {out, grad, x, mean, factor});
  return {pointer<float>(out),          pointer<const void>(grad),
          pointer<const float>(x),      pointer<const float>(mean),
          pointer<const float>(factor), pointer<const float>(weight),
          rows,                         columns};
}

WidenAddCall widen_add_call(uintptr_t out, uintptr_t x, uintptr_t y, int64_t n) {
  check_call(1, n, 1, {out, x, y});
  return {pointer<float>(out), pointer<const float>(x), pointer<const void>(y), n};
}

}  // namespace

void bind_rows(py::module_& module) {
  module.def("softmax_rows", on_cpu(softmax_call, softmax_rows_cpu));
  module.def("softmax_rows_backward", on_cpu(softmax_backward_call, softmax_rows_backward_cpu));
  module.def("norm_rows", on_cpu(norm_call, norm_rows_cpu));
  module.def("norm_rows_backward", on_cpu(norm_backward_call, norm_rows_backward_cpu));
  module.def("widen_add", on_cpu(widen_add_call, widen_add_cpu));
}

}  // namespace rf
