// The L1 kernels and the random starts, block by block. -1: a block could not come to its end.
#include "block.h"

template <class T>
T atomicAdd(T* target, T value) {
  const T before = *target;
  *target += value;
  return before;
}

#include "cuda/l1.cu"
#include "cuda/random_start.cu"

namespace {

template <class T, bool kStep>
int run_l1(const rf::L1StepCall& call) {
  const bool vectors = rf::cuda::by_vectors(call, sizeof(typename T::Word));
  gridDim = {rf::cuda::team_of(call.per_sample), static_cast<unsigned>(call.samples)};
  for (blockIdx = {0, 0}; blockIdx.y < gridDim.y; ++blockIdx.y) {
    const bool ended = fibers::run_team(gridDim.x, rf::cuda::kThreads, [&] {
      if (vectors) {
        rf::cuda::l1_kernel<T, true, kStep>(call);
      } else {
        rf::cuda::l1_kernel<T, false, kStep>(call);
      }
    });
    if (!ended) return -1;
  }
  return vectors;
}

template <class T>
int run_start(const rf::RandomStartCall& call) {
  const bool vectors = rf::cuda::by_vectors(call, sizeof(typename T::Word));
  const auto grid = rf::cuda::start_grid(call);
  gridDim = {grid.blocks, grid.samples};
  for (int kernel = call.norm == rf::Norm::linf; kernel < 2; ++kernel) {
    for (blockIdx.y = 0; blockIdx.y < gridDim.y; ++blockIdx.y) {
      for (blockIdx.x = 0; blockIdx.x < gridDim.x; ++blockIdx.x) {
        const bool ended = fibers::run_block(rf::cuda::kThreads, [&] {
          if (kernel == 0) {
            rf::cuda::start_totals(call);
          } else if (vectors) {
            rf::cuda::start_kernel<T, true>(call);
          } else {
            rf::cuda::start_kernel<T, false>(call);
          }
        });
        if (!ended) return -1;
      }
    }
  }
  return vectors;
}

}  // namespace

// Each returns whether the kernel went by vectors. A null gradient: project only.
extern "C" int l1(void* x_adv, const void* grad, const void* x, int64_t samples,
                  int64_t per_sample, int dtype, const float* eps, const float* step_size,
                  const float* density) {
  const rf::L1StepCall call = {x_adv, grad, x, samples, per_sample, static_cast<rf::DType>(dtype),
                               {eps, 0, 1}, {step_size, 0, 1}, {density, 0, 1}, 0.0f, 1.0f};
  switch (call.dtype) {
    case rf::DType::fp32:
      return grad ? run_l1<rf::cuda::Fp32, true>(call) : run_l1<rf::cuda::Fp32, false>(call);
    case rf::DType::bf16:
      return grad ? run_l1<rf::cuda::Bf16, true>(call) : run_l1<rf::cuda::Bf16, false>(call);
    default:
      return grad ? run_l1<rf::cuda::Fp16, true>(call) : run_l1<rf::cuda::Fp16, false>(call);
  }
}

extern "C" int start(void* out, const void* x, const int64_t* key, const int64_t* ids,
                     int64_t* totals, int64_t samples, int64_t per_sample, int64_t plane,
                     int dtype, int norm, const float* eps) {
  const rf::RandomStartCall call = {out, x, key, ids, samples, per_sample, plane,
                                    static_cast<rf::DType>(dtype), static_cast<rf::Norm>(norm),
                                    {eps, 0, 1}, 0.0f, 1.0f, totals};
  switch (call.dtype) {
    case rf::DType::fp32:
      return run_start<rf::cuda::Fp32>(call);
    case rf::DType::bf16:
      return run_start<rf::cuda::Bf16>(call);
    default:
      return run_start<rf::cuda::Fp16>(call);
  }
}
