// Makes `device` current for a scope and gives the caller's device back.
#pragma once

#include <cuda_runtime.h>

namespace rf {

class DeviceGuard {
 public:
  explicit DeviceGuard(int device) {
    code_ = cudaGetDevice(&before_);
    if (code_ == cudaSuccess && before_ != device) {
      code_ = cudaSetDevice(device);
      changed_ = code_ == cudaSuccess;
    }
  }
  ~DeviceGuard() {
    if (changed_) cudaSetDevice(before_);
  }
  DeviceGuard(const DeviceGuard&) = delete;
  DeviceGuard& operator=(const DeviceGuard&) = delete;

  cudaError_t code() const { return code_; }

 private:
  cudaError_t code_ = cudaSuccess;
  int before_ = 0;
  bool changed_ = false;
};

}  // namespace rf
