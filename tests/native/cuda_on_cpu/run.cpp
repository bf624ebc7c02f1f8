// Runs every thread of every block of the Linf step's CUDA kernel, one after the other.
#include "cuda/linf.cu"

namespace {

template <class T>
int run(const rf::StepCall& given) {
  const rf::StepCall call = rf::cuda::joined(given);
  const bool vectors = rf::cuda::by_vectors(call, sizeof(typename T::Word));
  const int words = vectors ? rf::cuda::kPack<T> : 1;
  const auto grid = rf::cuda::elementwise_grid(call.samples, call.per_sample, words);
  gridDim = {grid.blocks, grid.samples};
  for (blockIdx.y = 0; blockIdx.y < gridDim.y; ++blockIdx.y) {
    for (blockIdx.x = 0; blockIdx.x < gridDim.x; ++blockIdx.x) {
      for (threadIdx.x = 0; threadIdx.x < rf::cuda::kThreads; ++threadIdx.x) {
        if (vectors) {
          rf::cuda::step_kernel<T, true>(call);
        } else {
          rf::cuda::step_kernel<T, false>(call);
        }
      }
    }
  }
  return vectors;
}

}  // namespace

// Returns whether the kernel went by vectors.
extern "C" int step(void* x_adv, const void* grad, const void* x, int64_t samples,
                    int64_t per_sample, int dtype, const float* eps, int64_t eps_stride) {
  const rf::StepCall call = {
      x_adv, grad, x, samples, per_sample, static_cast<rf::DType>(dtype), {eps, 0, eps_stride},
      {nullptr, 0.015625f, 0}, 0.0f, 1.0f};
  switch (call.dtype) {
    case rf::DType::fp32:
      return run<rf::cuda::Fp32>(call);
    case rf::DType::bf16:
      return run<rf::cuda::Bf16>(call);
    default:
      return run<rf::cuda::Fp16>(call);
  }
}
