// APGD's momentum steps: one pass for Linf; for L2 the sums, the length of the new distance, and the
// result, which is written where the last iterate was. Also compiled by g++ in tests.
#pragma once

#include "cuda/sums.cuh"
#include "math/apgd.h"
#include "ops.h"

namespace rf {
namespace cuda {

// use(first, x, points) with N elements each, for this thread's share of a sample.
template <class T, bool kVectors, class Point, class Use>
__device__ void each_point(const ApgdStepCall& call, int64_t sample, const Point& point,
                           const Use& use) {
  const int64_t base = sample * call.per_sample;
  each_pack<T, kVectors>(call.per_sample, [&](auto count, int64_t first) {
    constexpr int kWords = decltype(count)::value;
    float x_adv[kWords], x_prev[kWords], grad[kWords], x[kWords];
    load<T>(call.x_adv, base + first, x_adv);
    load<T>(call.x_prev, base + first, x_prev);
    load<T>(call.grad, base + first, grad);
    load<T>(call.x, base + first, x);
#pragma unroll
    for (int i = 0; i < kWords; ++i) x_prev[i] = point(x_adv[i], x_prev[i], grad[i], x[i]);
    use(base + first, x, x_prev);
  });
}

template <class T, bool kVectors>
__global__ void __launch_bounds__(kThreads, 4) apgd_linf_step_kernel(ApgdStepCall call) {
  for (int64_t sample = blockIdx.y; sample < call.samples; sample += gridDim.y) {
    const LinfScalars scalars = {amount_of(call.eps, sample), amount_of(call.step_size, sample),
                                 call.low, call.high};
    const float momentum = amount_of(call.momentum, sample);
    each_point<T, kVectors>(
        call, sample,
        [&](float x_adv, float x_prev, float grad, float x) {
          return apgd_linf_step<typename T::Grid>(x_adv, x_prev, grad, x, momentum, scalars);
        },
        [&](int64_t at, const auto&, const auto& points) { store<T>(call.x_prev, at, points); });
  }
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

inline SumCall sums_for(const ApgdStepCall& call) {
  return {call.x_adv, call.grad, call.x, call.samples, call.per_sample, call.workspace};
}

inline bool by_vectors(const ApgdStepCall& call, int64_t word_bytes) {
  return aligned_rows(call.samples, call.per_sample * word_bytes, call.x_adv, call.x_prev,
                      call.grad, call.x);
}

}  // namespace cuda
}  // namespace rf
