#include "cuda/fab_step.cuh"

#include "cuda/launch.cuh"

namespace rf {

using namespace cuda;

namespace {

template <Norm kNorm>
int load_fab(int device) {
  return load_on(device, fab_step_kernel<Fp32, true, kNorm>, fab_step_kernel<Fp32, false, kNorm>,
                 fab_step_kernel<Bf16, true, kNorm>, fab_step_kernel<Bf16, false, kNorm>,
                 fab_step_kernel<Fp16, true, kNorm>, fab_step_kernel<Fp16, false, kNorm>);
}

template <Norm kNorm>
int launch_fab(const FabStepCall& call, int device, void* stream) {
  return launch_on(device, stream, call.dtype, call, [&](auto type, auto vectors, auto target) {
    fab_step_kernel<decltype(type), vectors(), kNorm>
        <<<fab_blocks(call), kThreads, 0, target>>>(call);
  });
}

}  // namespace

int fab_step_cuda_load(int device) {
  int code = load_fab<Norm::linf>(device);
  if (code == cudaSuccess) code = load_fab<Norm::l2>(device);
  return code ? code : load_fab<Norm::l1>(device);
}

int fab_step_cuda(const FabStepCall& call, int device, void* stream) {
  switch (call.norm) {
    case Norm::linf:
      return launch_fab<Norm::linf>(call, device, stream);
    case Norm::l2:
      return launch_fab<Norm::l2>(call, device, stream);
    case Norm::l1:
      return launch_fab<Norm::l1>(call, device, stream);
  }
  return cudaErrorInvalidValue;
}

}  // namespace rf
