#include "cuda/device.h"

#include <cuda_runtime.h>

#include "ops.h"

namespace rf {

std::string cuda_error_text(int code) {
  const auto error = static_cast<cudaError_t>(code);
  return std::string(cudaGetErrorName(error)) + ": " + cudaGetErrorString(error);
}

int cuda_runtime_version() { return CUDART_VERSION; }

int cuda_driver_version() {
  int version = 0;
  if (cudaDriverGetVersion(&version) == cudaSuccess) return version;
  cudaGetLastError();
  return 0;
}

std::string cuda_obstacle(int device) {
  const int driver = cuda_driver_version();
  if (driver == 0) return "no CUDA driver was found";
  // A driver runs programs of its own major release and of older ones.
  if (driver / 1000 < CUDART_VERSION / 1000) {
    return "the driver knows CUDA " + std::to_string(driver / 1000) +
           ", the kernels were built with CUDA " + std::to_string(CUDART_VERSION / 1000);
  }
  // The first use may fall into a stream capture of this thread, and loading code is no work on
  // the captured stream.
  cudaStreamCaptureMode mode = cudaStreamCaptureModeRelaxed;
  cudaThreadExchangeStreamCaptureMode(&mode);
  int code = cudaSuccess;
  for (auto load : {linf_cuda_load, l2_cuda_load, l1_cuda_load, fab_cuda_load,
                    random_start_cuda_load, select_best_cuda_load, lora_cuda_load}) {
    if (code == cudaSuccess) code = load(device);
  }
  cudaThreadExchangeStreamCaptureMode(&mode);
  if (code == cudaSuccess) return "";
  cudaGetLastError();
  return "the kernels do not load on device " + std::to_string(device) + " (" +
         cuda_error_text(code) + ")";
}

}  // namespace rf
