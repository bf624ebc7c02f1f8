// What the files of the module share: arguments as Python passes them, and their last check.
#pragma once

#include <pybind11/pybind11.h>

#include <initializer_list>
#include <stdexcept>
#include <string>
#include <tuple>

#include "ops.h"
#ifdef RF_CUDA
#include "cuda/device.h"
#endif

namespace rf {

template <class T>
T* pointer(uintptr_t address) {
  return reinterpret_cast<T*>(address);
}

// (pointer or 0, value, stride)
using Amount = std::tuple<uintptr_t, float, int64_t>;

inline PerSample per_sample_of(const Amount& amount) {
  return {pointer<const float>(std::get<0>(amount)), std::get<1>(amount), std::get<2>(amount)};
}

// Python has checked everything; this catches a caller that went past it.
inline void check_call(int64_t samples, int64_t numel, int dtype,
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
inline void check_code(const char* op, int code) {
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

// Each adds its functions to the module.
void bind_fab(pybind11::module_& module);
void bind_l1(pybind11::module_& module);
void bind_l2(pybind11::module_& module);
void bind_lora(pybind11::module_& module);
void bind_random(pybind11::module_& module);
void bind_select_best(pybind11::module_& module);

}  // namespace rf
