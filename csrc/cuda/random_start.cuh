// The kernels of the random starts. A thread takes four elements at a time, those of one Philox
// counter. Totals are integers, so that adding them up atomically leaves the same bits in any
// order. Also compiled by g++ in tests.
#pragma once

#include <algorithm>

#include "cuda/vectors.cuh"
#include "math/amount.h"
#include "math/random_start.h"
#include "ops.h"

namespace rf {
namespace cuda {

struct Draws {
  float v[4];
};

__device__ inline uint64_t id_of(const RandomStartCall& call, int64_t sample) {
  return static_cast<uint64_t>(call.sample_ids ? call.sample_ids[sample] : sample);
}

__device__ inline Draws draws_of(Norm norm, const Words& words) {
  const uint32_t* w = words.v;
  if (norm == Norm::l2) {
    const Pair left = gaussians(w[0], w[1]), right = gaussians(w[2], w[3]);
    return {{left.first, left.second, right.first, right.second}};
  }
  if (norm == Norm::l1) return {{laplace(w[0]), laplace(w[1]), laplace(w[2]), laplace(w[3])}};
  return {{signed_uniform(w[0]), signed_uniform(w[1]), signed_uniform(w[2]), signed_uniform(w[3])}};
}

__device__ inline int64_t share_of(Norm norm, float draw) {
  return norm == Norm::l2 ? l2_share(draw) : l1_share(draw);
}

// blockIdx.y walks the samples, blockIdx.x the counters of one. totals[sample] starts at 0.
__global__ void __launch_bounds__(kThreads) start_totals(RandomStartCall call, int64_t* totals) {
  __shared__ unsigned long long sums[kThreads];
  const uint64_t key = static_cast<uint64_t>(*call.key);
  const int64_t quads = (call.per_sample + 3) / 4;
  for (int64_t sample = blockIdx.y; sample < call.samples; sample += gridDim.y) {
    const uint64_t id = id_of(call, sample);
    int64_t total = 0;
    for (int64_t quad = static_cast<int64_t>(blockIdx.x) * kThreads + threadIdx.x; quad < quads;
         quad += static_cast<int64_t>(gridDim.x) * kThreads) {
      const Draws draws = draws_of(call.norm, philox(key, static_cast<uint64_t>(quad), id));
      for (int i = 0; i < 4; ++i) {
        if (quad * 4 + i < call.per_sample) total += share_of(call.norm, draws.v[i]);
      }
    }
    sums[threadIdx.x] = static_cast<unsigned long long>(total);
    __syncthreads();
    for (unsigned half = kThreads / 2; half > 0; half /= 2) {
      if (threadIdx.x < half) sums[threadIdx.x] += sums[threadIdx.x + half];
      __syncthreads();
    }
    if (threadIdx.x == 0) {
      atomicAdd(reinterpret_cast<unsigned long long*>(totals) + sample, sums[0]);
    }
    __syncthreads();
  }
}

template <class T>
__device__ typename T::Word start_word(Norm norm, typename T::Word x, float draw,
                                       const StartScalars& s) {
  using Grid = typename T::Grid;
  const float wide = T::widen(x);
  return T::narrow(norm == Norm::linf ? linf_start<Grid>(wide, draw, s)
                                      : scaled_start<Grid>(wide, draw, s));
}

// Four elements: at once where they lie side by side, else each where its plane puts it.
template <class T, bool kVectors>
__device__ void start_quad(const RandomStartCall& call, int64_t sample, int64_t first,
                           const Draws& draws, const StartScalars& s) {
  using Word = typename T::Word;
  const Word* x = static_cast<const Word*>(call.x) + sample * call.per_sample;
  Word* out = static_cast<Word*>(call.out) + sample * call.per_sample;
  if constexpr (kVectors) {
    auto pack = load<4>(x + first);
#pragma unroll
    for (int i = 0; i < 4; ++i) {
      pack.words[i] = start_word<T>(call.norm, pack.words[i], draws.v[i], s);
    }
    store(out + first, pack);
  } else {
    const int64_t channels = call.per_sample / call.plane;
#pragma unroll
    for (int i = 0; i < 4; ++i) {
      const int64_t element = first + i;
      if (element >= call.per_sample) return;
      const int64_t place =
          channels == 1 ? element : element / call.plane + element % call.plane * channels;
      out[place] = start_word<T>(call.norm, x[place], draws.v[i], s);
    }
  }
}

template <class T, bool kVectors>
__global__ void __launch_bounds__(kThreads) start_kernel(RandomStartCall call,
                                                         const int64_t* totals) {
  __shared__ float scale;
  const uint64_t key = static_cast<uint64_t>(*call.key);
  const int64_t quads = (call.per_sample + 3) / 4;
  for (int64_t sample = blockIdx.y; sample < call.samples; sample += gridDim.y) {
    const uint64_t id = id_of(call, sample);
    if (threadIdx.x == 0) {
      const float eps = amount_of(call.eps, sample);
      scale = call.norm == Norm::linf
                  ? eps
                  : start_scale(call.norm, eps, totals[sample], sample_draw(key, id));
    }
    __syncthreads();
    const StartScalars s = {scale, call.low, call.high};
    for (int64_t quad = static_cast<int64_t>(blockIdx.x) * kThreads + threadIdx.x; quad < quads;
         quad += static_cast<int64_t>(gridDim.x) * kThreads) {
      const Draws draws = draws_of(call.norm, philox(key, static_cast<uint64_t>(quad), id));
      start_quad<T, kVectors>(call, sample, quad * 4, draws, s);
    }
    __syncthreads();
  }
}

struct StartGrid {
  bool vectors;
  unsigned blocks;   // gridDim.x
  unsigned samples;  // gridDim.y
};

inline StartGrid start_grid(const RandomStartCall& call) {
  const bool vectors = call.plane == call.per_sample && call.per_sample % 4 == 0 &&
                       aligned(call.x) && aligned(call.out);
  const int64_t quads = (call.per_sample + 3) / 4;
  const int64_t samples = std::min(call.samples, kMaxSamples);
  const int64_t blocks =
      std::min((quads + kThreads - 1) / kThreads, std::max<int64_t>(kMaxBlocks / samples, 1));
  return {vectors, static_cast<unsigned>(blocks), static_cast<unsigned>(samples)};
}

}  // namespace cuda
}  // namespace rf
