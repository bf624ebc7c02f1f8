// l2_step_ and l2_project_: sums.cuh's kernel, the scale of every sample by one block, and the step.
// APGD's step: the sums, the scale, the length of the new distance, the scale back into the ball, and
// the result, which is written where the last iterate was.
// Also compiled by g++ in tests, block by block, without the launchers.
#include "cuda/sums.cuh"
#include "math/l2.h"
#include "ops.h"

namespace rf {
namespace cuda {

constexpr int kStepPacks = 4;   // of three tensors, read at once
constexpr int kPointPacks = 2;  // of four tensors

// The workspace: two scales a sample, three sums a part, and behind them all one square a part.
constexpr int64_t kScaleDoubles = 2 * sizeof(L2Scale) / sizeof(double);

__device__ inline L2Scale* scales_of(double* workspace, int64_t sample) {
  return reinterpret_cast<L2Scale*>(workspace + sample * kScaleDoubles);
}

template <class Call>
RF_HD double* part_sums(const Call& call) {
  return call.workspace + call.samples * kScaleDoubles;
}

template <class Call>
RF_HD double* part_squares(const Call& call) {
  return part_sums(call) + call.samples * parts_of(call.per_sample) * 3;
}

// Where there is no gradient x is read in its place, and the scale makes nothing of it.
template <class Call>
SumCall sums_for(const Call& call) {
  return {call.x_adv, call.grad ? call.grad : call.x, call.x, call.samples, call.per_sample,
          part_sums(call)};
}

// The scale of the step, or kLast: back into the ball, from the squares. A block a sample.
template <class Call, bool kLast>
__global__ void __launch_bounds__(kThreads, kBlocksPerUnit) l2_scale_kernel(Call call) {
  const int64_t parts = parts_of(call.per_sample);
  for (int64_t sample = blockIdx.y; sample < call.samples; sample += gridDim.y) {
    L2Sums sums = {0.0, 0.0, 0.0};
    if constexpr (kLast) {
      sums.dd = sum_parts(part_squares(call) + sample * parts, parts, 1);
    } else {
      const double* first = part_sums(call) + sample * parts * 3;
      sums.dd = sum_parts(first, parts, 3);
      sums.dg = sum_parts(first + 1, parts, 3);
      sums.gg = sum_parts(first + 2, parts, 3);
    }
    if (threadIdx.x == 0) {
      const bool steps = !kLast && call.grad;
      scales_of(call.workspace, sample)[kLast] = steps
                                                     ? scale_of(call, sums, sample)
                                                     : l2_projection(sums.dd, limits_of(call, sample));
    }
  }
}

template <class T, bool kVectors>
__global__ void __launch_bounds__(kThreads, kFewPerUnit) l2_step_kernel(StepCall call) {
  for (int64_t sample = blockIdx.y; sample < call.samples; sample += gridDim.y) {
    const L2Limits limits = limits_of(call, sample);
    const L2Scale scale = scales_of(call.workspace, sample)[0];
    each_pack<T, kVectors, kStepPacks>(
        call.per_sample, sample * call.per_sample,
        {call.x_adv, call.x, call.grad ? call.grad : call.x}, [&](int64_t at, auto& v) {
          constexpr int kWords = sizeof(v[0]) / sizeof(float);
#pragma unroll
          for (int i = 0; i < kWords; ++i) {
            v[0][i] = l2_move<typename T::Grid>(v[0][i], v[2][i], v[1][i], scale, limits);
          }
          store<T>(call.x_adv, at, v[0]);
        });
  }
}

// The rule of one sample's points.
struct Pointer {
  L2Scale scale;
  L2Limits limits;
  float momentum;
  __device__ float operator()(float x_adv, float x_prev, float grad, float x) const {
    return apgd_l2_point(x_adv, x_prev, grad, x, momentum, scale, limits);
  }
};

__device__ inline Pointer pointer_of(const ApgdStepCall& call, int64_t sample) {
  return {scales_of(call.workspace, sample)[0], limits_of(call, sample),
          amount_of(call.momentum, sample)};
}

template <class T, bool kVectors>
__global__ void __launch_bounds__(kThreads, kBlocksPerUnit) apgd_l2_length_kernel(ApgdStepCall call) {
  for (int64_t sample = blockIdx.y; sample < call.samples; sample += gridDim.y) {
    double squares = 0.0;
    each_point<T, kVectors, kPointPacks>(
        call, sample, pointer_of(call, sample),
        [&](int64_t, const auto& x, const auto& points) {
          constexpr int kWords = sizeof(x) / sizeof(float);
#pragma unroll
          for (int i = 0; i < kWords; ++i) {
            const double d = static_cast<double>(points[i]) - static_cast<double>(x[i]);
            squares += d * d;
          }
        });
    const double total = block_sum(squares);
    if (threadIdx.x == 0) part_squares(call)[sample * gridDim.x + blockIdx.x] = total;
  }
}

template <class T, bool kVectors>
__global__ void __launch_bounds__(kThreads, kBlocksPerUnit) apgd_l2_step_kernel(ApgdStepCall call) {
  for (int64_t sample = blockIdx.y; sample < call.samples; sample += gridDim.y) {
    const Pointer point = pointer_of(call, sample);
    const L2Scale last = scales_of(call.workspace, sample)[1];
    each_point<T, kVectors, kPointPacks>(
        call, sample, point, [&](int64_t at, const auto& x, auto& points) {
          constexpr int kWords = sizeof(x) / sizeof(float);
#pragma unroll
          for (int i = 0; i < kWords; ++i) {
            points[i] = l2_pull<typename T::Grid>(points[i], x[i], last, point.limits);
          }
          store<T>(call.x_prev, at, points);
        });
  }
}

// A block a sample, for l2_scale_kernel.
inline Grid2 scale_grid(int64_t samples) {
  return {1, static_cast<unsigned>(std::min(samples, kMaxSamples))};
}

}  // namespace cuda
}  // namespace rf

#ifdef __CUDACC__
#include "cuda/launch.cuh"

namespace rf {

using namespace cuda;

int64_t reduction_workspace(int64_t samples, int64_t per_sample) {
  return samples * (kScaleDoubles + parts_of(per_sample) * 4);
}

int l2_cuda_load(int device) {
  const int code = load_on(device, l2_scale_kernel<StepCall, false>,
                           l2_scale_kernel<ApgdStepCall, false>,
                           l2_scale_kernel<ApgdStepCall, true>);
  return code ? code
              : load_on(device, RF_EACH_TYPE(sum_kernel), RF_EACH_TYPE(l2_step_kernel),
                        RF_EACH_TYPE(apgd_l2_length_kernel), RF_EACH_TYPE(apgd_l2_step_kernel));
}

int l2_step_cuda(const StepCall& call, int device, void* stream) {
  if (!call.workspace) return cudaErrorInvalidValue;
  const dim3 sums = blocks_of(sum_grid(call.samples, call.per_sample));
  const dim3 each = blocks_of(scale_grid(call.samples));
  return launch_on(device, stream, call.dtype, call, [&](auto type, auto vectors, auto target) {
    using T = decltype(type);
    constexpr bool kVectors = vectors();
    const dim3 grid = blocks_of(elements_grid<T, kVectors>(call, kStepPacks));
    sum_kernel<T, kVectors><<<sums, kThreads, 0, target>>>(sums_for(call));
    l2_scale_kernel<StepCall, false><<<each, kThreads, 0, target>>>(call);
    l2_step_kernel<T, kVectors><<<grid, kThreads, 0, target>>>(call);
  });
}

int apgd_l2_step_cuda(const ApgdStepCall& call, int device, void* stream) {
  if (!call.workspace) return cudaErrorInvalidValue;
  const dim3 sums = blocks_of(sum_grid(call.samples, call.per_sample));
  const dim3 each = blocks_of(scale_grid(call.samples));
  return launch_on(device, stream, call.dtype, call, [&](auto type, auto vectors, auto target) {
    using T = decltype(type);
    constexpr bool kVectors = vectors();
    const dim3 grid = blocks_of(elements_grid<T, kVectors>(call, kPointPacks));
    sum_kernel<T, kVectors><<<sums, kThreads, 0, target>>>(sums_for(call));
    l2_scale_kernel<ApgdStepCall, false><<<each, kThreads, 0, target>>>(call);
    apgd_l2_length_kernel<T, kVectors><<<sums, kThreads, 0, target>>>(call);
    l2_scale_kernel<ApgdStepCall, true><<<each, kThreads, 0, target>>>(call);
    apgd_l2_step_kernel<T, kVectors><<<grid, kThreads, 0, target>>>(call);
  });
}

}  // namespace rf
#endif
