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
#include "math/l2.h"
#include "ops.h"
#ifdef RF_CUDA
#include "cuda/device.h"
#endif

namespace py = pybind11;

namespace rf {
namespace {

constexpr int kInterface = 7;  // raise together with INTERFACE in roli_fast/ops/native.py

using Address = uintptr_t;

// An address as whichever pointer a call wants.
struct At {
  Address address;
  template <class T>
  operator T*() const {
    return reinterpret_cast<T*>(address);
  }
};

// (address or 0, value, stride)
using Amount = std::tuple<Address, float, int64_t>;
const Amount kNone = {0, 0.0f, 0};

PerSample per_sample(const Amount& amount) {
  return {At{std::get<0>(amount)}, std::get<1>(amount), std::get<2>(amount)};
}

// Python has checked everything; this catches a caller that went past it.
void check(bool good, const char* what) {
  if (!good) throw std::invalid_argument(std::string("roli_fast._C: ") + what);
}

void check_pointers(std::initializer_list<Address> pointers) {
  for (Address address : pointers) check(address != 0, "null pointer");
}

DType dtype_of(int code) {
  check(code >= 0 && code <= 2, "unknown dtype code");
  return static_cast<DType>(code);
}

// Elements of one sample.
int64_t length_of(int64_t samples, int64_t numel) {
  check(samples > 0 && numel > 0 && numel % samples == 0, "numel is no multiple of samples");
  return numel / samples;
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
  return [op, make, kernel](Arguments... arguments, int device, Address stream) {
    check_code(op, kernel(make(arguments...), device, At{stream}));
  };
}

// The same for a call with a workspace of `reduction_workspace` doubles, which comes before them.
template <class Call, class... Arguments>
auto on_cuda_summing(const char* op, Call (*make)(Arguments...),
                     int (*kernel)(const Call&, int, void*)) {
  return [op, make, kernel](Arguments... arguments, Address workspace, int device, Address stream) {
    check_pointers({workspace});
    Call call = make(arguments...);
    call.workspace = At{workspace};
    check_code(op, kernel(call, device, At{stream}));
  };
}
#endif

StepCall linf_step(Address x_adv, Address grad, Address x, int64_t samples, int64_t numel,
                   int dtype, const Amount& eps, const Amount& step_size, float low, float high) {
  check_pointers({x_adv, grad, x});
  return {At{x_adv}, At{grad}, At{x}, samples, length_of(samples, numel), dtype_of(dtype),
          per_sample(eps), per_sample(step_size), low, high, 0.0, nullptr};
}

// grad: 0 for a projection.
StepCall l2_step(Address x_adv, Address grad, Address x, int64_t samples, int64_t numel, int dtype,
                 const Amount& eps, const Amount& step_size, float low, float high) {
  check_pointers({x_adv, x});
  const int64_t length = length_of(samples, numel);
  const double slack = rounding_slack(length, low, high, dtype_of(dtype));
  return {At{x_adv}, At{grad}, At{x}, samples, length, dtype_of(dtype),
          per_sample(eps), per_sample(step_size), low, high, slack, nullptr};
}

StepCall l2_project(Address x_adv, Address x, int64_t samples, int64_t numel, int dtype,
                    const Amount& eps, float low, float high) {
  return l2_step(x_adv, 0, x, samples, numel, dtype, eps, kNone, low, high);
}

ApgdStepCall apgd_step(Address x_adv, Address x_prev, Address grad, Address x, int64_t samples,
                       int64_t numel, int dtype, const Amount& eps, const Amount& step_size,
                       const Amount& momentum, float low, float high) {
  check_pointers({x_adv, x_prev, grad, x});
  const int64_t length = length_of(samples, numel);
  const double slack = rounding_slack(length, low, high, dtype_of(dtype));
  return {At{x_adv}, At{x_prev}, At{grad}, At{x}, samples, length, dtype_of(dtype),
          per_sample(eps), per_sample(step_size), per_sample(momentum), low, high, slack, nullptr};
}

// grad: 0 for a projection.
L1StepCall l1_step(Address x_adv, Address grad, Address x, int64_t samples, int64_t numel,
                   int dtype, const Amount& eps, const Amount& step_size, const Amount& density,
                   float low, float high) {
  check_pointers({x_adv, x});
  return {At{x_adv}, At{grad}, At{x}, samples, length_of(samples, numel), dtype_of(dtype),
          per_sample(eps), per_sample(step_size), per_sample(density), low, high};
}

L1StepCall l1_project(Address x_adv, Address x, int64_t samples, int64_t numel, int dtype,
                      const Amount& eps, float low, float high) {
  return l1_step(x_adv, 0, x, samples, numel, dtype, eps, kNone, kNone, low, high);
}

template <Norm kNorm>
FabStepCall fab_step(Address x_adv, Address grad, Address x, int64_t samples, int64_t numel,
                     int dtype, const Amount& value, const Amount& alpha_max, const Amount& eta,
                     float low, float high) {
  check_pointers({x_adv, grad, x});
  return {At{x_adv}, At{grad}, At{x}, samples, length_of(samples, numel), dtype_of(dtype), kNorm,
          per_sample(value), per_sample(alpha_max), per_sample(eta), low, high};
}

RandomStartCall random_start(Address out, Address x, Address key, Address sample_ids,
                             Address totals, int64_t samples, int64_t numel, int dtype,
                             int64_t plane, int norm, const Amount& eps, float low, float high) {
  check_pointers({out, x, key});
  check(norm >= 0 && norm <= 2, "unknown norm code");
  const int64_t length = length_of(samples, numel);
  check(plane > 0 && length % plane == 0, "a sample is no multiple of the plane");
  return {At{out}, At{x}, At{key}, At{sample_ids}, samples, length, plane, dtype_of(dtype),
          static_cast<Norm>(norm), per_sample(eps), low, high, At{totals}};
}

SelectBestCall select_best(Address best_x, Address best_grad, Address best_loss, Address x_adv,
                           Address grad, Address loss, Address improved, int64_t samples,
                           int64_t row_bytes, int loss_type) {
  check_pointers({best_x, best_grad, best_loss, x_adv, grad, loss, improved});
  check(samples > 0 && row_bytes > 0, "an empty batch");
  check(loss_type >= 0 && loss_type <= 3, "unknown dtype code");
  return {At{best_x}, At{best_grad}, At{best_loss}, At{improved}, At{x_adv}, At{grad}, At{loss},
          samples, row_bytes, static_cast<LossType>(loss_type)};
}

LoraDropoutCall lora_dropout(Address out, Address x, Address seed, int64_t n, int bytes,
                             uint32_t threshold) {
  check_pointers({out, x, seed});
  check(n > 0 && (bytes == 2 || bytes == 4 || bytes == 8), "n elements of 2, 4 or 8 bytes");
  return {At{out}, At{x}, At{seed}, n, threshold, bytes};
}

#ifdef RF_CUDA
// (weight, merged, a, b, rows, columns, rank, scale)
using Part = std::tuple<Address, Address, Address, Address, int32_t, int32_t, int32_t, float>;

void lora_merge_on_cuda(const std::vector<Part>& parts, int from, int to, int device,
                        Address stream) {
  check(from == to || from == 0, "widening merge");
  std::vector<MergePart> list;
  list.reserve(parts.size());
  for (const auto& [weight, merged, a, b, rows, columns, rank, scale] : parts) {
    check_pointers({weight, merged});
    check(rows > 0 && columns > 0, "an empty part");
    check(rank >= 0 && rank <= kMostRank && (!rank || (a && b)), "wrong rank or factors");
    list.push_back({At{weight}, At{merged}, At{a}, At{b}, rows, columns, rank, scale});
  }
  const LoraMergeCall call = {list.data(), static_cast<int64_t>(list.size()), dtype_of(from),
                              dtype_of(to)};
  check_code("lora_merge_", lora_merge_cuda(call, device, At{stream}));
}

// slices: (start, length) of columns of dy. seed and ds may be 0.
void lora_backward_on_cuda(Address x, Address dy, Address a, Address b_turned, Address ds,
                           Address da, Address db, Address workspace, Address seed, int64_t tokens,
                           int64_t inputs, int64_t dy_stride,
                           const std::vector<std::tuple<int64_t, int64_t>>& slices, int rank,
                           uint32_t threshold, float gain, int dtype, int device, Address stream) {
  check_pointers({x, dy, a, b_turned, da, db, workspace});
  const auto count = static_cast<int>(slices.size());
  LoraBackwardCall call = {At{x}, At{dy}, At{a}, At{b_turned}, At{ds}, At{da}, At{db},
                           At{workspace}, At{seed}, tokens, inputs, 0, dy_stride, {}, count, rank,
                           threshold, gain, dtype_of(dtype)};
  bool good = tokens > 0 && dtype != 0 && inputs > 0 && inputs % 8 == 0 && dy_stride % 8 == 0 &&
              rank > 0 && rank <= kMostRank && count > 0 && count <= kMostSlices &&
              rank % count == 0;
  for (Address address : {x, dy, a, b_turned, workspace}) good = good && address % 16 == 0;
  for (int i = 0; good && i < count; ++i) {
    const auto [start, length] = slices[i];
    good = start >= 0 && start % 8 == 0 && length > 0 && length % 8 == 0 &&
           start + length <= dy_stride;
    call.slices[i] = {start, length};
    call.outputs += length;
  }
  check(good, "sizes or addresses that lora_backward cannot take");
  check_code("backward of lora_linear", lora_backward_cuda(call, device, At{stream}));
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
  module.def("linf_step", on_cpu(linf_step, linf_step_cpu));
  module.def("l2_step", on_cpu(l2_step, l2_step_cpu));
  module.def("l2_project", on_cpu(l2_project, l2_step_cpu));
  module.def("apgd_linf_step", on_cpu(apgd_step, apgd_linf_step_cpu));
  module.def("apgd_l2_step", on_cpu(apgd_step, apgd_l2_step_cpu));
  module.def("l1_project", on_cpu(l1_project, l1_step_cpu));
  module.def("l1_step", on_cpu(l1_step, l1_step_cpu));
  module.def("fab_linf_step", on_cpu(fab_step<Norm::linf>, fab_step_cpu));
  module.def("fab_l2_step", on_cpu(fab_step<Norm::l2>, fab_step_cpu));
  module.def("fab_l1_step", on_cpu(fab_step<Norm::l1>, fab_step_cpu));
  module.def("random_start", on_cpu(random_start, random_start_cpu));
  module.def("select_best", on_cpu(select_best, select_best_cpu));
  module.def("lora_dropout", on_cpu(lora_dropout, lora_dropout_cpu));
#ifdef RF_CUDA
  module.def("linf_step_cuda", on_cuda("linf_step_", linf_step, linf_step_cuda));
  module.def("l2_step_cuda", on_cuda_summing("l2_step_", l2_step, l2_step_cuda));
  module.def("l2_project_cuda", on_cuda_summing("l2_project_", l2_project, l2_step_cuda));
  module.def("apgd_linf_step_cuda", on_cuda("apgd_linf_step_", apgd_step, apgd_linf_step_cuda));
  module.def("apgd_l2_step_cuda", on_cuda_summing("apgd_l2_step_", apgd_step, apgd_l2_step_cuda));
  // How many doubles of workspace a reduction needs: (samples, elements a sample).
  module.def("reduction_workspace", &reduction_workspace);
  module.def("l1_project_cuda", on_cuda("l1_project_", l1_project, l1_step_cuda));
  module.def("l1_step_cuda", on_cuda("l1_step_", l1_step, l1_step_cuda));
  module.def("fab_linf_step_cuda", on_cuda("fab_linf_step_", fab_step<Norm::linf>, fab_step_cuda));
  module.def("fab_l2_step_cuda", on_cuda("fab_l2_step_", fab_step<Norm::l2>, fab_step_cuda));
  module.def("fab_l1_step_cuda", on_cuda("fab_l1_step_", fab_step<Norm::l1>, fab_step_cuda));
  module.def("random_start_cuda", on_cuda("a random start", random_start, random_start_cuda));
  module.def("select_best_cuda", on_cuda("select_best_", select_best, select_best_cuda));
  module.def("lora_merge_cuda", &lora_merge_on_cuda);
  module.def("lora_dropout_cuda",
             on_cuda("dropout of lora_linear", lora_dropout, lora_dropout_cuda));
  module.def("lora_backward_cuda", &lora_backward_on_cuda);
  module.def("lora_backward_workspace", &lora_backward_workspace);
  module.def("cuda_driver_version", &cuda_driver_version);
  // "" if the kernels can run on this device, otherwise the reason why not.
  module.def("cuda_obstacle", &cuda_obstacle);
#endif
}

}  // namespace
}  // namespace rf

PYBIND11_MODULE(_C, module) { rf::bind(module); }
