#include "cuda/l1_launch.cuh"

namespace rf {

int l1_project_cuda_load(int device) { return cuda::load_l1<false>(device); }

int l1_project_cuda(const L1ProjectCall& call, int device, void* stream) {
  return cuda::launch_l1<false>({call, nullptr, {}, {}}, device, stream);
}

}  // namespace rf
