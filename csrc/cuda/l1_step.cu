#include "cuda/l1_launch.cuh"

namespace rf {

int l1_step_cuda_load(int device) { return cuda::load_l1<true>(device); }

int l1_step_cuda(const L1StepCall& call, int device, void* stream) {
  return cuda::launch_l1<true>(call, device, stream);
}

}  // namespace rf
