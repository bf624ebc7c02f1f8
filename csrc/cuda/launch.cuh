// What launchers share: the device, a choice of kernel, and the loading of kernels.
#pragma once

#include <cuda_runtime.h>

#include <type_traits>

#include "cuda/sums.cuh"
#include "ops.h"

namespace rf {

// Makes `device` current for a scope and gives the caller's device back.
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

namespace cuda {

// use(T{}) with the storage type of a dtype.
template <class Use>
void with_type(DType dtype, const Use& use) {
  switch (dtype) {
    case DType::fp32:
      return use(Fp32{});
    case DType::bf16:
      return use(Bf16{});
    case DType::fp16:
      return use(Fp16{});
  }
}

// Whether a kernel goes by vectors, as a type.
template <bool kYes>
using Vectors = std::integral_constant<bool, kYes>;

// launch(stream) on `device`. Returns a cudaError_t, as all that follow.
template <class Launch>
int on_device(int device, void* stream, const Launch& launch) {
  const DeviceGuard guard(device);
  if (guard.code()) return guard.code();
  launch(static_cast<cudaStream_t>(stream));
  return cudaGetLastError();
}

// launch(T{}, Vectors<>{}, stream): the storage type of the call, and by_vectors(call, bytes of a word).
template <class Call, class Launch>
int launch_on(int device, void* stream, DType dtype, const Call& call, const Launch& launch) {
  return on_device(device, stream, [&](cudaStream_t target) {
    with_type(dtype, [&](auto type) {
      if (by_vectors(call, sizeof(typename decltype(type)::Word))) {
        launch(type, Vectors<true>{}, target);
      } else {
        launch(type, Vectors<false>{}, target);
      }
    });
  });
}

// Loads kernels on `device`.
template <class... Kernels>
int load_on(int device, Kernels... kernels) {
  const DeviceGuard guard(device);
  if (guard.code()) return guard.code();
  cudaFuncAttributes attributes;
  cudaError_t code = cudaSuccess;
  ((code = code ? code : cudaFuncGetAttributes(&attributes, kernels)), ...);
  return code;
}

// The kernels of a template over storage type, kVectors and what follows, for load_on.
#define RF_EACH_TYPE(kernel, ...)                                                   \
  kernel<Fp32, true, ##__VA_ARGS__>, kernel<Fp32, false, ##__VA_ARGS__>,            \
      kernel<Bf16, true, ##__VA_ARGS__>, kernel<Bf16, false, ##__VA_ARGS__>,        \
      kernel<Fp16, true, ##__VA_ARGS__>, kernel<Fp16, false, ##__VA_ARGS__>

inline dim3 blocks_of(const Grid2& grid) { return dim3(grid.blocks, grid.samples); }

// For kernels that touch each element once, `at_once` packs a thread.
template <class T, bool kVectors, class Call>
Grid2 elements_grid(const Call& call, int at_once = 1) {
  return elementwise_grid(call.samples, call.per_sample, at_once * (kVectors ? kPack<T> : 1));
}

// Launches a kernel in which a team of `blocks` blocks takes a sample: as a cluster.
template <class Call>
void launch_team(void (*kernel)(Call), const Call& call, cudaStream_t stream) {
  cudaFuncAttributes attributes;
  const bool clusters = cudaFuncGetAttributes(&attributes, kernel) == cudaSuccess &&
                        attributes.ptxVersion >= 90;  // what the code was compiled for
  cudaLaunchAttribute team = {};
  team.id = cudaLaunchAttributeClusterDimension;
  team.val.clusterDim.x = clusters ? team_of(call.per_sample) : 1;
  team.val.clusterDim.y = team.val.clusterDim.z = 1;
  cudaLaunchConfig_t config = {};
  config.gridDim = dim3(team.val.clusterDim.x, std::min(call.samples, kMaxSamples));
  config.blockDim = kThreads;
  config.stream = stream;
  config.attrs = &team;
  config.numAttrs = team.val.clusterDim.x > 1 ? 1 : 0;
  cudaLaunchKernelEx(&config, kernel, call);
}

}  // namespace cuda
}  // namespace rf
