// The pybind11 module roli_fast._C. Pointers come in as integers; roli_fast/ops/native.py is the
// only caller and has checked type, device, dtype, shape, layout and aliasing.
#include <pybind11/pybind11.h>

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

constexpr int kInterface = 6;  // raise together with INTERFACE in roli_fast/ops/native.py

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
  module.def("linf_step", rf::on_cpu(linf_step_call, rf::linf_step_cpu));
  rf::bind_fab(module);
  rf::bind_l1(module);
  rf::bind_l2(module);
  rf::bind_lora(module);
  rf::bind_random(module);
  rf::bind_select_best(module);
#ifdef RF_CUDA
  module.def("linf_step_cuda", rf::on_cuda("linf_step_", linf_step_call, rf::linf_step_cuda));
  module.def("cuda_driver_version", &rf::cuda_driver_version);
  // "" if the kernels can run on this device, otherwise the reason why not.
  module.def("cuda_obstacle", &rf::cuda_obstacle);
#endif
}
