// l2_step_ and l2_project_: sums.cuh's kernel, then one more. APGD's step: the sums, the length of
// the new distance, and the result, which is written where the last iterate was.
// Also compiled by g++ in tests, block by block, without the launchers.
#include "cuda/sums.cuh"
#include "math/l2.h"
#include "ops.h"

namespace rf {
namespace cuda {

template <class T, bool kVectors>
__global__ void __launch_bounds__(kThreads, kBlocksPerUnit) l2_step_kernel(StepCall call) {
  using Grid = typename T::Grid;
  const int64_t parts = parts_of(call.per_sample);
  for (int64_t sample = blockIdx.y; sample < call.samples; sample += gridDim.y) {
    const L2Limits limits = limits_of(call, sample);
    const L2Sums sums = sums_of(call.workspace, sample, parts);
    const L2Scale scale = from_one<L2Scale>([&] { return scale_of(call, sums, sample); });
    const int64_t base = sample * call.per_sample;
    each_pack<T, kVectors>(call.per_sample, [&](auto count, int64_t first) {
      constexpr int kWords = decltype(count)::value;
      float x_adv[kWords], grad[kWords] = {}, x[kWords];
      load<T>(call.x_adv, base + first, x_adv);
      load<T>(call.x, base + first, x);
      if (call.grad) load<T>(call.grad, base + first, grad);
#pragma unroll
      for (int i = 0; i < kWords; ++i) {
        x_adv[i] = l2_move<Grid>(x_adv[i], grad[i], x[i], scale, limits);
      }
      store<T>(call.x_adv, base + first, x_adv);
    });
  }
}

template <class Call>
SumCall sums_for(const Call& call) {
  return {call.x_adv, call.grad, call.x, call.samples, call.per_sample, call.workspace};
}

// The workspace: three sums a part, and behind them all one square a part.
__device__ inline double* squares_of(const ApgdStepCall& call, int64_t parts) {
  return call.workspace + call.samples * parts * 3;
}

// The rule of one sample's points, from its sums.
struct Pointer {
  L2Scale scale;
  L2Limits limits;
  float momentum;
  __device__ float operator()(float x_adv, float x_prev, float grad, float x) const {
    return apgd_l2_point(x_adv, x_prev, grad, x, momentum, scale, limits);
  }
};

__device__ inline Pointer pointer_of(const ApgdStepCall& call, int64_t sample, int64_t parts) {
  const L2Sums sums = sums_of(call.workspace, sample, parts);
  const L2Scale scale = from_one<L2Scale>([&] { return scale_of(call, sums, sample); });
  return {scale, limits_of(call, sample), amount_of(call.momentum, sample)};
}

template <class T, bool kVectors>
__global__ void __launch_bounds__(kThreads, kBlocksPerUnit) apgd_l2_length_kernel(ApgdStepCall call) {
  const int64_t parts = gridDim.x;
  for (int64_t sample = blockIdx.y; sample < call.samples; sample += gridDim.y) {
    double squares = 0.0;
    each_point<T, kVectors>(call, sample, pointer_of(call, sample, parts),
                            [&](int64_t, const auto& x, const auto& points) {
                              constexpr int kWords = sizeof(x) / sizeof(float);
#pragma unroll
                              for (int i = 0; i < kWords; ++i) {
                                const double d =
                                    static_cast<double>(points[i]) - static_cast<double>(x[i]);
                                squares += d * d;
                              }
                            });
    const double total = block_sum(squares);
    if (threadIdx.x == 0) squares_of(call, parts)[sample * parts + blockIdx.x] = total;
  }
}

template <class T, bool kVectors>
__global__ void __launch_bounds__(kThreads, kBlocksPerUnit) apgd_l2_step_kernel(ApgdStepCall call) {
  const int64_t parts = parts_of(call.per_sample);
  for (int64_t sample = blockIdx.y; sample < call.samples; sample += gridDim.y) {
    const Pointer point = pointer_of(call, sample, parts);
    const double squares = sum_parts(squares_of(call, parts) + sample * parts, parts, 1);
    const L2Scale last =
        from_one<L2Scale>([&] { return l2_projection(squares, point.limits); });
    each_point<T, kVectors>(call, sample, point,
                            [&](int64_t at, const auto& x, const auto& points) {
                              constexpr int kWords = sizeof(x) / sizeof(float);
                              float out[kWords];
#pragma unroll
                              for (int i = 0; i < kWords; ++i) {
                                out[i] = l2_pull<typename T::Grid>(points[i], x[i], last,
                                                                   point.limits);
                              }
                              store<T>(call.x_prev, at, out);
                            });
  }
}

}  // namespace cuda
}  // namespace rf

#ifdef __CUDACC__
#include "cuda/launch.cuh"

namespace rf {

using namespace cuda;

int64_t reduction_workspace(int64_t samples, int64_t per_sample) {
  return samples * parts_of(per_sample) * 4;
}

int l2_cuda_load(int device) {
  return load_on(device, RF_EACH_TYPE(sum_kernel), RF_EACH_TYPE(l2_step_kernel),
                 RF_EACH_TYPE(apgd_l2_length_kernel), RF_EACH_TYPE(apgd_l2_step_kernel));
}

int l2_step_cuda(const StepCall& call, int device, void* stream) {
  if (!call.workspace) return cudaErrorInvalidValue;
  const dim3 sums = blocks_of(sum_grid(call.samples, call.per_sample));
  return launch_on(device, stream, call.dtype, call, [&](auto type, auto vectors, auto target) {
    using T = decltype(type);
    constexpr bool kVectors = vectors();
    const dim3 grid = blocks_of(elements_grid<T, kVectors>(call));
    sum_kernel<T, kVectors><<<sums, kThreads, 0, target>>>(sums_for(call));
    l2_step_kernel<T, kVectors><<<grid, kThreads, 0, target>>>(call);
  });
}

int apgd_l2_step_cuda(const ApgdStepCall& call, int device, void* stream) {
  if (!call.workspace) return cudaErrorInvalidValue;
  const dim3 sums = blocks_of(sum_grid(call.samples, call.per_sample));
  return launch_on(device, stream, call.dtype, call, [&](auto type, auto vectors, auto target) {
    using T = decltype(type);
    constexpr bool kVectors = vectors();
    const dim3 grid = blocks_of(elements_grid<T, kVectors>(call));
    sum_kernel<T, kVectors><<<sums, kThreads, 0, target>>>(sums_for(call));
    apgd_l2_length_kernel<T, kVectors><<<sums, kThreads, 0, target>>>(call);
    apgd_l2_step_kernel<T, kVectors><<<grid, kThreads, 0, target>>>(call);
  });
}

}  // namespace rf
#endif
