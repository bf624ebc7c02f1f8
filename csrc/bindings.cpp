// The pybind11 module roli_fast._C. Pointers come in as integers; roli_fast/ops/native.py is the
// only caller and has checked type, device, dtype, shape, layout and aliasing.
#include <pybind11/pybind11.h>

#include <stdexcept>
#include <string>

#include "bindings.h"
#include "cpu/dispatch.h"
#include "ops.h"
#ifdef RF_CUDA
#include "cuda/device.h"
#endif

namespace py = pybind11;
using rf::Amount;
using rf::check_call;
using rf::per_sample_of;
using rf::pointer;

namespace {

constexpr int kInterface = 2;  // raise together with INTERFACE in roli_fast/ops/native.py

rf::LinfStepCall linf_step_call(uintptr_t x_adv, uintptr_t grad, uintptr_t x, int64_t samples,
                                int64_t numel, int dtype, const Amount& eps,
                                const Amount& step_size, float low, float high) {
  check_call(samples, numel, dtype, {x_adv, grad, x});
  return {pointer<void>(x_adv),
          pointer<const void>(grad),
          pointer<const void>(x),
          samples,
          numel / samples,
          static_cast<rf::DType>(dtype),
          per_sample_of(eps),
          per_sample_of(step_size),
          low,
          high};
}

void linf_step(uintptr_t x_adv, uintptr_t grad, uintptr_t x, int64_t samples, int64_t numel,
               int dtype, const Amount& eps, const Amount& step_size, float low, float high,
               int threads) {
  const auto call =
      linf_step_call(x_adv, grad, x, samples, numel, dtype, eps, step_size, low, high);
  py::gil_scoped_release release;
  rf::linf_step_cpu(call, threads);
}

void check_size(int64_t samples, int64_t numel, int dtype) {
  if (dtype < 0 || dtype > 2) throw std::invalid_argument("roli_fast._C: unknown dtype code");
  if (samples <= 0 || numel <= 0 || numel % samples) {
    throw std::invalid_argument("roli_fast._C: numel is no multiple of samples");
  }
}

rf::L1ProjectCall l1_project_call(uintptr_t x_adv, uintptr_t x, int64_t samples, int64_t numel,
                                  int dtype, const Amount& eps, float low, float high) {
  check_size(samples, numel, dtype);
  if (!(x_adv && x)) throw std::invalid_argument("roli_fast._C: null pointer");
  return {pointer<void>(x_adv),
          pointer<const void>(x),
          samples,
          numel / samples,
          static_cast<rf::DType>(dtype),
          per_sample_of(eps),
          low,
          high};
}

rf::L1StepCall l1_step_call(uintptr_t x_adv, uintptr_t grad, uintptr_t x, int64_t samples,
                            int64_t numel, int dtype, const Amount& eps, const Amount& step_size,
                            const Amount& density, float low, float high) {
  if (!grad) throw std::invalid_argument("roli_fast._C: null pointer");
  return {l1_project_call(x_adv, x, samples, numel, dtype, eps, low, high),
          pointer<const void>(grad), per_sample_of(step_size), per_sample_of(density)};
}

rf::RandomStartCall random_start_call(uintptr_t out, uintptr_t x, uintptr_t key,
                                      uintptr_t sample_ids, int64_t samples, int64_t numel,
                                      int dtype, int64_t plane, int norm, const Amount& eps,
                                      float low, float high) {
  check_size(samples, numel, dtype);
  if (!(out && x && key)) throw std::invalid_argument("roli_fast._C: null pointer");
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
          static_cast<rf::DType>(dtype),
          static_cast<rf::Norm>(norm),
          per_sample_of(eps),
          low,
          high};
}

void l1_project(uintptr_t x_adv, uintptr_t x, int64_t samples, int64_t numel, int dtype,
                const Amount& eps, float low, float high, int threads) {
  const auto call = l1_project_call(x_adv, x, samples, numel, dtype, eps, low, high);
  py::gil_scoped_release release;
  rf::l1_project_cpu(call, threads);
}

void l1_step(uintptr_t x_adv, uintptr_t grad, uintptr_t x, int64_t samples, int64_t numel,
             int dtype, const Amount& eps, const Amount& step_size, const Amount& density,
             float low, float high, int threads) {
  const auto call =
      l1_step_call(x_adv, grad, x, samples, numel, dtype, eps, step_size, density, low, high);
  py::gil_scoped_release release;
  rf::l1_step_cpu(call, threads);
}

// `totals`: memory that the CUDA kernels sum up in; unused on the CPU.
void random_start(uintptr_t out, uintptr_t x, uintptr_t key, uintptr_t sample_ids, uintptr_t,
                  int64_t samples, int64_t numel, int dtype, int64_t plane, int norm,
                  const Amount& eps, float low, float high, int threads) {
  const auto call = random_start_call(out, x, key, sample_ids, samples, numel, dtype, plane, norm,
                                      eps, low, high);
  py::gil_scoped_release release;
  rf::random_start_cpu(call, threads);
}

#ifdef RF_CUDA
void l1_project_cuda(uintptr_t x_adv, uintptr_t x, int64_t samples, int64_t numel, int dtype,
                     const Amount& eps, float low, float high, int device, uintptr_t stream) {
  const auto call = l1_project_call(x_adv, x, samples, numel, dtype, eps, low, high);
  const int code = rf::l1_project_cuda(call, device, pointer<void>(stream));
  if (code) throw std::runtime_error("l1_project_ on CUDA: " + rf::cuda_error_text(code));
}

void l1_step_cuda(uintptr_t x_adv, uintptr_t grad, uintptr_t x, int64_t samples, int64_t numel,
                  int dtype, const Amount& eps, const Amount& step_size, const Amount& density,
                  float low, float high, int device, uintptr_t stream) {
  const auto call =
      l1_step_call(x_adv, grad, x, samples, numel, dtype, eps, step_size, density, low, high);
  const int code = rf::l1_step_cuda(call, device, pointer<void>(stream));
  if (code) throw std::runtime_error("l1_step_ on CUDA: " + rf::cuda_error_text(code));
}

void random_start_cuda(uintptr_t out, uintptr_t x, uintptr_t key, uintptr_t sample_ids,
                       uintptr_t totals, int64_t samples, int64_t numel, int dtype, int64_t plane,
                       int norm, const Amount& eps, float low, float high, int device,
                       uintptr_t stream) {
  const auto call = random_start_call(out, x, key, sample_ids, samples, numel, dtype, plane, norm,
                                      eps, low, high);
  const int code = rf::random_start_cuda(call, pointer<int64_t>(totals), device,
                                         pointer<void>(stream));
  if (code) throw std::runtime_error("a random start on CUDA: " + rf::cuda_error_text(code));
}

void linf_step_cuda(uintptr_t x_adv, uintptr_t grad, uintptr_t x, int64_t samples, int64_t numel,
                    int dtype, const Amount& eps, const Amount& step_size, float low, float high,
                    int device, uintptr_t stream) {
  const auto call =
      linf_step_call(x_adv, grad, x, samples, numel, dtype, eps, step_size, low, high);
  const int code = rf::linf_step_cuda(call, device, pointer<void>(stream));
  if (code) throw std::runtime_error("linf_step_ on CUDA: " + rf::cuda_error_text(code));
}
#endif

py::dict build_info() {
  py::dict info;
  info["interface"] = kInterface;
  info["compiler"] = RF_COMPILER;
  info["flags"] = RF_FLAGS;
  info["cpu_level"] = rf::cpu_level();
  info["cpu_dispatch"] = RF_HAS_CLONES ? "x86-64-v4, x86-64-v3, default" : "none";
#ifdef _OPENMP
  info["openmp"] = _OPENMP;
#else
  info["openmp"] = py::none();
#endif
#ifdef RF_CUDA
  info["cuda"] = RF_CUDA_COMPILER;
  info["cuda_runtime"] = rf::cuda_runtime_version();
#else
  info["cuda"] = py::none();
  info["cuda_runtime"] = py::none();
#endif
  info["cuda_architectures"] = RF_CUDA_ARCHITECTURES;
  return info;
}

}  // namespace

PYBIND11_MODULE(_C, module) {
  module.doc() = "Compiled kernels of roli_fast; call them through roli_fast.ops.";
  module.def("build_info", &build_info);
  module.def("linf_step", &linf_step);
  rf::bind_l2(module);
  rf::bind_select_best(module);
  module.def("l1_project", &l1_project);
  module.def("l1_step", &l1_step);
  module.def("random_start", &random_start);
#ifdef RF_CUDA
  module.def("l1_project_cuda", &l1_project_cuda);
  module.def("l1_step_cuda", &l1_step_cuda);
  module.def("random_start_cuda", &random_start_cuda);
  module.def("linf_step_cuda", &linf_step_cuda);
  module.def("cuda_driver_version", &rf::cuda_driver_version);
  // "" if the kernels can run on this device, otherwise the reason why not.
  module.def("cuda_obstacle", &rf::cuda_obstacle);
#endif
}
