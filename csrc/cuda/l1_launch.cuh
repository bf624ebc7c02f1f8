// Launches l1_kernel, for l1_project.cu and l1_step.cu.
#pragma once

#include "cuda/l1.cuh"
#include "cuda/launch.cuh"

namespace rf {
namespace cuda {

template <bool kStep>
int launch_l1(const L1StepCall& call, int device, void* stream) {
  const L1ProjectCall& project = call.project;
  if (project.per_sample > UINT32_MAX) return cudaErrorInvalidValue;  // 32-bit counts
  return launch_on(device, stream, project.dtype, call, [&](auto type, auto vectors, auto target) {
    l1_kernel<decltype(type), vectors(), kStep>
        <<<l1_blocks(call), kL1Threads, 0, target>>>(call);
  });
}

template <bool kStep>
int load_l1(int device) {
  return load_on(device, l1_kernel<Fp32, true, kStep>, l1_kernel<Fp32, false, kStep>,
                 l1_kernel<Bf16, true, kStep>, l1_kernel<Bf16, false, kStep>,
                 l1_kernel<Fp16, true, kStep>, l1_kernel<Fp16, false, kStep>);
}

}  // namespace cuda
}  // namespace rf
