#include "cuda/device.h"

#include <cuda_runtime.h>

#include "ops.h"

namespace rf {

std::string cuda_error_text(int code) {
  const auto error = static_cast<cudaError_t>(code);
  return std::string(cudaGetErrorName(error)) + ": " + cudaGetErrorString(error);
}

int cuda_runtime_version() {
  int version = 0;
  return cudaRuntimeGetVersion(&version) == cudaSuccess ? version : 0;
}

std::string cuda_obstacle(int device) {
  int driver = 0;
  if (cudaDriverGetVersion(&driver) != cudaSuccess || driver == 0) {
    cudaGetLastError();
    return "no CUDA driver was found";
  }
  // A driver runs programs of its own major release and of older ones.
  if (driver / 1000 < cuda_runtime_version() / 1000) {
    return "the CUDA driver (" + std::to_string(driver) + ") is older than the kernels' CUDA (" +
           std::to_string(cuda_runtime_version()) + ")";
  }
  // The first use may fall into a stream capture of this thread, and loading code is no work on
  // the captured stream.
  cudaStreamCaptureMode mode = cudaStreamCaptureModeRelaxed;
  cudaThreadExchangeStreamCaptureMode(&mode);
  const int code = linf_step_cuda_load(device);
  cudaThreadExchangeStreamCaptureMode(&mode);
  if (code == cudaSuccess) return "";
  cudaGetLastError();
  return "the kernels do not load on device " + std::to_string(device) + " (" +
         cuda_error_text(code) + ")";
}

}  // namespace rf
