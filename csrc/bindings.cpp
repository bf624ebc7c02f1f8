// The pybind11 module roli_fast._C: a function a kernel. Pointers come in as integers;
// roli_fast/ops/native.py is the only caller and has checked type, device, dtype, shape, layout and
// aliasing.
#include <pybind11/pybind11.h>
#include <pybind11/stl.h>

#include <initializer_list>
#include <stdexcept>
#include <string>
#include <tuple>
#include <vector>

#include "cpu/dispatch.h"
#include "ops.h"
#ifdef RF_CUDA
#include "cuda/device.h"
#endif

namespace py = pybind11;

namespace rf {
namespace {

constexpr int kInterface = 6;  // raise together with INTERFACE in roli_fast/ops/native.py

template <class T>
T* pointer(uintptr_t address) {
  return reinterpret_cast<T*>(address);
}

// (pointer or 0, value, stride)
using Amount = std::tuple<uintptr_t, float, int64_t>;

PerSample per_sample_of(const Amount& amount) {
  return {pointer<const float>(std::get<0>(amount)), std::get<1>(amount), std::get<2>(amount)};
}

// Python has checked everything; this catches a caller that went past it.
void check_call(int64_t samples, int64_t numel, int dtype,
                       std::initializer_list<uintptr_t> pointers) {
  if (dtype < 0 || dtype > 2) throw std::invalid_argument("roli_fast._C: unknown dtype code");
  if (samples <= 0 || numel <= 0 || numel % samples) {
    throw std::invalid_argument("roli_fast._C: numel is no multiple of samples");
  }
  for (uintptr_t address : pointers) {
    if (!address) throw std::invalid_argument("roli_fast._C: null pointer");
  }
}

// What the module calls: the arguments that `make` makes a call of, then `threads`.
template <class Call, class... Arguments>
auto on_cpu(Call (*make)(Arguments...), void (*kernel)(const Call&, int)) {
  return [make, kernel](Arguments... arguments, int threads) {
    const Call call = make(arguments...);
    pybind11::gil_scoped_release release;
    kernel(call, threads);
  };
}

#ifdef RF_CUDA
// Throws what CUDA says of a launch that failed.
void check_code(const char* op, int code) {
  if (code) throw std::runtime_error(std::string(op) + " on CUDA: " + cuda_error_text(code));
}

// As `on_cpu`, with `device` and `stream` last.
template <class Call, class... Arguments>
auto on_cuda(const char* op, Call (*make)(Arguments...), int (*kernel)(const Call&, int, void*)) {
  return [op, make, kernel](Arguments... arguments, int device, uintptr_t stream) {
    check_code(op, kernel(make(arguments...), device, pointer<void>(stream)));
  };
}
#endif

LinfStepCall linf_step_call(uintptr_t x_adv, uintptr_t grad, uintptr_t x, int64_t samples,
                                int64_t numel, int dtype, const Amount& eps,
                                const Amount& step_size, float low, float high) {
  check_call(samples, numel, dtype, {x_adv, grad, x});
  return {pointer<void>(x_adv),
          pointer<const void>(grad),
          pointer<const void>(x),
          samples,
          numel / samples,
          static_cast<DType>(dtype),
          per_sample_of(eps),
          per_sample_of(step_size),
          low,
          high};
}

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

LoraDropoutCall dropout_call(uintptr_t out, uintptr_t x, uintptr_t seed, int64_t n, int bytes,
                             uint32_t threshold) {
  check_call(1, n, 0, {out, x, seed});
  if (bytes != 2 && bytes != 4 && bytes != 8) {
    throw std::invalid_argument("roli_fast._C: elements of 2, 4 or 8 bytes");
  }
  return {pointer<void>(out), pointer<const void>(x), pointer<const int64_t>(seed), n, threshold,
          bytes};
}

#ifdef RF_CUDA
// (weight, merged, a, b, rows, columns, rank, scale)
using Part =
    std::tuple<uintptr_t, uintptr_t, uintptr_t, uintptr_t, int32_t, int32_t, int32_t, float>;

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

py::dict build_info() {
  py::dict info;
  info["interface"] = kInterface;
  info["compiler"] = RF_COMPILER;
  info["flags"] = RF_FLAGS;
  info["cpu_level"] = cpu_level();
  info["cpu_dispatch"] = RF_HAS_CLONES ? "x86-64-v4, x86-64-v3, default" : "none";
#ifdef _OPENMP
  info["openmp"] = _OPENMP;
#else
  info["openmp"] = py::none();
#endif
#ifdef RF_CUDA
  info["cuda"] = RF_CUDA_COMPILER;
  info["cuda_runtime"] = cuda_runtime_version();
#else
  info["cuda"] = py::none();
  info["cuda_runtime"] = py::none();
#endif
  info["cuda_architectures"] = RF_CUDA_ARCHITECTURES;
  return info;
}

void bind(py::module_& module) {
  module.doc() = "Compiled kernels of roli_fast; call them through roli_fast.ops.";
  module.def("build_info", &build_info);
  module.def("linf_step", on_cpu(linf_step_call, linf_step_cpu));
  module.def("l2_step", on_cpu(l2_call, l2_step_cpu));
  module.def("apgd_linf_step", on_cpu(apgd_call, apgd_linf_step_cpu));
  module.def("apgd_l2_step", on_cpu(apgd_call, apgd_l2_step_cpu));
  module.def("l1_project", on_cpu(l1_project_call, l1_project_cpu));
  module.def("l1_step", on_cpu(l1_step_call, l1_step_cpu));
  module.def("fab_step", on_cpu(fab_step_call, fab_step_cpu));
  module.def("random_start", on_cpu(random_start_call, random_start_cpu));
  module.def("select_best", on_cpu(select_call, select_best_cpu));
  module.def("lora_dropout", on_cpu(&dropout_call, &lora_dropout_cpu));
#ifdef RF_CUDA
  module.def("linf_step_cuda", on_cuda("linf_step_", linf_step_call, linf_step_cuda));
  module.def("l2_step_cuda", on_cuda("l2_step_", l2_call, l2_step_cuda));
  module.def("apgd_linf_step_cuda", on_cuda("apgd_linf_step_", apgd_call, apgd_linf_step_cuda));
  module.def("apgd_l2_step_cuda", on_cuda("apgd_l2_step_", apgd_call, apgd_l2_step_cuda));
  // How many doubles of workspace a reduction needs: (samples, elements a sample).
  module.def("reduction_workspace", &reduction_workspace);
  module.def("l1_project_cuda", on_cuda("l1_project_", l1_project_call, l1_project_cuda));
  module.def("l1_step_cuda", on_cuda("l1_step_", l1_step_call, l1_step_cuda));
  module.def("fab_step_cuda", on_cuda("FAB's step", fab_step_call, fab_step_cuda));
  module.def("random_start_cuda", on_cuda("a random start", random_start_call, random_start_cuda));
  module.def("select_best_cuda", on_cuda("select_best_", select_call, select_best_cuda));
  module.def("lora_merge_cuda", &merge_on_cuda);
  module.def("lora_dropout_cuda",
             on_cuda("dropout of lora_linear", &dropout_call, &lora_dropout_cuda));
  module.def("lora_backward_cuda", &backward_on_cuda);
  module.def("lora_backward_workspace", &lora_backward_workspace);
  module.def("cuda_driver_version", &cuda_driver_version);
  // "" if the kernels can run on this device, otherwise the reason why not.
  module.def("cuda_obstacle", &cuda_obstacle);
#endif
}

}  // namespace
}  // namespace rf

PYBIND11_MODULE(_C, module) { rf::bind(module); }
