// The kernel and the shape of its grid. Also compiled by g++ in tests, block by block and thread by
// thread, so that indices and tails are checked without a GPU; launching is left to linf_step.cu.
#pragma once

#include <algorithm>

#include "cuda/storage.cuh"
#include "math/linf_step.h"
#include "ops.h"

namespace rf {
namespace cuda {

template <class T>
__device__ void step_one(const LinfStepCall& call, int64_t i, const LinfScalars& s) {
  using Word = typename T::Word;
  Word* x_adv = static_cast<Word*>(call.x_adv);
  const float out = linf_step<typename T::Grid>(T::widen(x_adv[i]),
                                                T::widen(static_cast<const Word*>(call.grad)[i]),
                                                T::widen(static_cast<const Word*>(call.x)[i]), s);
  x_adv[i] = T::narrow(out);
}

// One 16-byte vector: three loads, one store.
template <class T>
__device__ void step_vector(const LinfStepCall& call, int64_t first, const LinfScalars& s) {
  using Word = typename T::Word;
  constexpr int kWords = kVectorBytes / sizeof(Word);
  union Vector {
    uint4 raw;
    Word words[kWords];
  };
  Vector x_adv, grad, x;
  uint4* target = reinterpret_cast<uint4*>(static_cast<Word*>(call.x_adv) + first);
  x_adv.raw = *target;
  grad.raw = *reinterpret_cast<const uint4*>(static_cast<const Word*>(call.grad) + first);
  x.raw = *reinterpret_cast<const uint4*>(static_cast<const Word*>(call.x) + first);
#pragma unroll
  for (int i = 0; i < kWords; ++i) {
    x_adv.words[i] = T::narrow(linf_step<typename T::Grid>(
        T::widen(x_adv.words[i]), T::widen(grad.words[i]), T::widen(x.words[i]), s));
  }
  *target = x_adv.raw;
}

// blockIdx.y walks the samples, blockIdx.x the elements of one; both in strides of the grid.
// kVectors: samples start at 16-byte borders, so all but the tail of each goes by vectors.
template <class T, bool kVectors>
__global__ void __launch_bounds__(kThreads) step_kernel(LinfStepCall call) {
  constexpr int64_t kWords = kVectors ? kVectorBytes / sizeof(typename T::Word) : 1;
  const int64_t thread = static_cast<int64_t>(blockIdx.x) * kThreads + threadIdx.x;
  const int64_t stride = static_cast<int64_t>(gridDim.x) * kThreads;
  for (int64_t sample = blockIdx.y; sample < call.samples; sample += gridDim.y) {
    const LinfScalars s = scalars_of(call, sample);
    const int64_t base = sample * call.per_sample;
    const int64_t vectors = call.per_sample / kWords;
    for (int64_t i = thread; i < vectors; i += stride) {
      if constexpr (kVectors) {
        step_vector<T>(call, base + i * kWords, s);
      } else {
        step_one<T>(call, base + i, s);
      }
    }
    for (int64_t i = vectors * kWords + thread; i < call.per_sample; i += stride) {
      step_one<T>(call, base + i, s);
    }
  }
}

// How a call is cut up: whether by vectors, and over how many blocks.
struct Geometry {
  LinfStepCall call;  // one long sample where eps and step size are the same for all
  bool vectors;
  unsigned blocks;   // gridDim.x
  unsigned samples;  // gridDim.y
};

inline Geometry geometry_of(LinfStepCall call, int64_t word_bytes) {
  if (is_uniform(call.eps) && is_uniform(call.step_size)) {
    call.per_sample *= call.samples;
    call.samples = 1;
  }
  const int64_t bytes = call.per_sample * word_bytes;
  const bool vectors = aligned(call.x_adv) && aligned(call.grad) && aligned(call.x) &&
                       (call.samples == 1 || bytes % kVectorBytes == 0);
  const int64_t items = vectors ? std::max<int64_t>(bytes / kVectorBytes, 1) : call.per_sample;
  const int64_t samples = std::min(call.samples, kMaxSamples);
  const int64_t blocks =
      std::min((items + kThreads - 1) / kThreads, std::max<int64_t>(kMaxBlocks / samples, 1));
  return {call, vectors, static_cast<unsigned>(blocks), static_cast<unsigned>(samples)};
}

}  // namespace cuda
}  // namespace rf
