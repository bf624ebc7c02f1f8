// Sums over samples in a fixed order: every block of a sample leaves one partial sum in the
// workspace, and whoever needs the total adds these up in the same order, by the same tree.
#pragma once

#include "cuda/packs.cuh"
#include "math/l2.h"

namespace rf {
namespace cuda {

constexpr int kWarp = 32;
constexpr int kWarps = kThreads / kWarp;
constexpr int kBlocksPerUnit = 3;  // leaves 80 registers; with 64 ptxas spills round a division
constexpr int64_t kPerBlock = 16 * kThreads;  // elements that make another block worth it

// Blocks, and so partial sums, of one sample: a matter of its length alone.
RF_HD int64_t parts_of(int64_t per_sample) {
  const int64_t blocks = (per_sample + kPerBlock - 1) / kPerBlock;
  return blocks < kThreads ? blocks : kThreads;
}

// join(a, b) over the values of the block's threads, by one tree, for all of them. Every thread has
// to call it.
template <class Join>
__device__ double block_join(double value, const Join& join) {
  __shared__ double warps[kWarps];
  __shared__ double total;
  for (int step = kWarp / 2; step > 0; step /= 2) {
    value = join(value, __shfl_down_sync(0xffffffffu, value, step));
  }
  const int warp = threadIdx.x / kWarp, lane = threadIdx.x % kWarp;
  if (lane == 0) warps[warp] = value;
  __syncthreads();
  if (threadIdx.x == 0) {
    double joined = warps[0];
    for (int i = 1; i < kWarps; ++i) joined = join(joined, warps[i]);
    total = joined;
  }
  __syncthreads();
  return total;
}

// The sum over the block's threads.
__device__ inline double block_sum(double value) {
  return block_join(value, [](double a, double b) { return a + b; });
}

// Adds up one number of every part: `first` is that of part 0, the next lies `stride` further.
__device__ inline double sum_parts(const double* first, int64_t parts, int64_t stride) {
  return block_sum(threadIdx.x < parts ? first[threadIdx.x * stride] : 0.0);
}

// What thread 0 makes, for all threads. A block_sum has to lie between two calls for one type.
template <class Value, class Make>
__device__ Value from_one(const Make& make) {
  __shared__ Value value;
  if (threadIdx.x == 0) value = make();
  __syncthreads();
  return value;
}

struct SumCall {
  const void* x_adv;
  const void* grad;  // null: only <d, d>
  const void* x;
  int64_t samples;
  int64_t per_sample;
  double* sums;  // (samples, parts, 3)
};

template <class T, bool kVectors>
__global__ void __launch_bounds__(kThreads, kBlocksPerUnit) sum_kernel(SumCall call) {
  for (int64_t sample = blockIdx.y; sample < call.samples; sample += gridDim.y) {
    const int64_t base = sample * call.per_sample;
    L2Sums sums = {0.0, 0.0, 0.0};
    each_pack<T, kVectors>(call.per_sample, [&](auto count, int64_t first) {
      constexpr int kWords = decltype(count)::value;
      float x_adv[kWords], grad[kWords] = {}, x[kWords];
      load<T>(call.x_adv, base + first, x_adv);
      load<T>(call.x, base + first, x);
      if (call.grad) load<T>(call.grad, base + first, grad);
#pragma unroll
      for (int i = 0; i < kWords; ++i) {
        const double d = static_cast<double>(x_adv[i]) - static_cast<double>(x[i]);
        const double g = finite_or_zero(grad[i]);
        sums += L2Sums{d * d, d * g, g * g};
      }
    });
    double* out = call.sums + (sample * gridDim.x + blockIdx.x) * 3;
    const double dd = block_sum(sums.dd), dg = block_sum(sums.dg), gg = block_sum(sums.gg);
    if (threadIdx.x == 0) {
      out[0] = dd;
      out[1] = dg;
      out[2] = gg;
    }
  }
}

__device__ inline L2Sums sums_of(const double* sums, int64_t sample, int64_t parts) {
  const double* first = sums + sample * parts * 3;
  const double dd = sum_parts(first, parts, 3);
  const double dg = sum_parts(first + 1, parts, 3);
  return {dd, dg, sum_parts(first + 2, parts, 3)};
}

inline Grid2 sum_grid(int64_t samples, int64_t per_sample) {
  return {static_cast<unsigned>(parts_of(per_sample)),
          static_cast<unsigned>(std::min(samples, kMaxSamples))};
}

}  // namespace cuda
}  // namespace rf
