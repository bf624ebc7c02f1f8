// What every CUDA launcher shares: a device guard, and the question whether the kernels can run.
#pragma once

#include <string>

namespace rf {

// The text of a cudaError_t.
std::string cuda_error_text(int code);

// The version of the linked CUDA runtime, for example 13000; calls nothing.
int cuda_runtime_version();

// The newest CUDA that the driver knows, in the same form; 0 without a driver.
int cuda_driver_version();

// Compares driver, runtime and device, and loads the kernels. "" if they can run on `device`.
std::string cuda_obstacle(int device);

}  // namespace rf
