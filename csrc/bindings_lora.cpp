// The LoRA kernels in the module.
#include <pybind11/pybind11.h>
#include <pybind11/stl.h>

#include <vector>

#include "bindings.h"
#include "lora.h"

namespace py = pybind11;

namespace rf {
namespace {

LoraDropoutCall dropout_call(uintptr_t out, uintptr_t x, uintptr_t seed, int64_t n, int bytes,
                             uint32_t threshold) {
  check_call(1, n, 0, {out, x, seed});
  if (bytes != 2 && bytes != 4 && bytes != 8) {
    throw std::invalid_argument("roli_fast._C: elements of 2, 4 or 8 bytes");
  }
  return {pointer<void>(out), pointer<const void>(x), pointer<const int64_t>(seed), n, threshold,
          bytes};
}

void lora_dropout(uintptr_t out, uintptr_t x, uintptr_t seed, int64_t n, int bytes,
                  uint32_t threshold, int threads) {
  const auto call = dropout_call(out, x, seed, n, bytes, threshold);
  py::gil_scoped_release release;
  lora_dropout_cpu(call, threads);
}

#ifdef RF_CUDA
// (weight, merged, a, b, rows, columns, rank, scale)
using Part = std::tuple<uintptr_t, uintptr_t, uintptr_t, uintptr_t, int32_t, int32_t, int32_t, float>;

std::vector<MergePart> parts_of(const std::vector<Part>& parts, int from, int to) {
  check_call(1, 1, from, {});
  check_call(1, 1, to, {});
  if (from != to && from != 0) throw std::invalid_argument("roli_fast._C: widening merge");
  std::vector<MergePart> out;
  out.reserve(parts.size());
  for (const auto& [weight, merged, a, b, rows, columns, rank, scale] : parts) {
    check_call(rows, static_cast<int64_t>(rows) * columns, from, {weight, merged});
    if (rank < 0 || rank > kMostRank || (rank && !(a && b))) {
      throw std::invalid_argument("roli_fast._C: wrong rank or factors");
    }
    out.push_back({pointer<const void>(weight), pointer<void>(merged), pointer<const float>(a),
                   pointer<const float>(b), rows, columns, rank, scale});
  }
  return out;
}

void merge_on_cuda(const std::vector<Part>& parts, int from, int to, int device,
                   uintptr_t stream) {
  const auto list = parts_of(parts, from, to);
  check_code("lora_merge_", lora_merge_cuda({list.data(), static_cast<int64_t>(list.size()),
                                             static_cast<DType>(from), static_cast<DType>(to)},
                                            device, pointer<void>(stream)));
}

void dropout_on_cuda(uintptr_t out, uintptr_t x, uintptr_t seed, int64_t n, int bytes,
                     uint32_t threshold, int device, uintptr_t stream) {
  const auto call = dropout_call(out, x, seed, n, bytes, threshold);
  check_code("dropout of lora_linear", lora_dropout_cuda(call, device, pointer<void>(stream)));
}

// slices: (start, length) of columns of dy. seed and ds may be 0.
void backward_on_cuda(uintptr_t x, uintptr_t dy, uintptr_t a, uintptr_t b_turned, uintptr_t ds,
                      uintptr_t da, uintptr_t db, uintptr_t workspace, uintptr_t seed,
                      int64_t tokens, int64_t inputs, int64_t dy_stride,
                      const std::vector<std::tuple<int64_t, int64_t>>& slices, int rank,
                      uint32_t threshold, float gain, int dtype, int device, uintptr_t stream) {
  check_call(1, tokens, dtype, {x, dy, a, b_turned, da, db, workspace});
  LoraBackwardCall call = {
      pointer<const void>(x), pointer<const void>(dy), pointer<const void>(a),
      pointer<const void>(b_turned), pointer<void>(ds), pointer<float>(da), pointer<float>(db),
      pointer<float>(workspace), pointer<const int64_t>(seed), tokens, inputs, 0, dy_stride, {},
      static_cast<int32_t>(slices.size()), rank, threshold, gain, static_cast<DType>(dtype)};
  bool good = dtype != 0 && inputs > 0 && inputs % 8 == 0 && dy_stride % 8 == 0 && rank > 0 &&
              rank <= kMostRank && !slices.empty() && slices.size() <= kMostSlices &&
              rank % static_cast<int>(slices.size()) == 0;
  for (size_t i = 0; good && i < slices.size(); ++i) {
    const auto [start, length] = slices[i];
    good = start >= 0 && start % 8 == 0 && length > 0 && length % 8 == 0 &&
           start + length <= dy_stride;
    call.slices[i] = {start, length};
    call.outputs += length;
  }
  if (!good) throw std::invalid_argument("roli_fast._C: sizes that lora_backward cannot take");
  check_code("backward of lora_linear",
             lora_backward_cuda(call, device, pointer<void>(stream)));
}
#endif

}  // namespace

void bind_lora(py::module_& module) {
  module.def("lora_dropout", &lora_dropout);
#ifdef RF_CUDA
  module.def("lora_merge_cuda", &merge_on_cuda);
  module.def("lora_dropout_cuda", &dropout_on_cuda);
  module.def("lora_backward_cuda", &backward_on_cuda);
  module.def("lora_backward_workspace", &lora_backward_workspace);
#endif
}

}  // namespace rf
