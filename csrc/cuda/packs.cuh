// Several words at a time, as floats: how kernels walk a sample and read and write it.
#pragma once

#include <algorithm>
#include <type_traits>

#include "cuda/storage.cuh"
#include "ops.h"

namespace rf {
namespace cuda {

template <class T>
constexpr int kPack = kVectorBytes / static_cast<int>(sizeof(typename T::Word));

template <int kBytes>
using Raw = std::conditional_t<kBytes == 16, uint4, uint2>;

// N neighbours, of 8 or 16 bytes, or one.
template <class T, int N>
__device__ void load(const void* from, int64_t at, float (&out)[N]) {
  using Word = typename T::Word;
  const Word* words = static_cast<const Word*>(from) + at;
  if constexpr (N == 1) {
    out[0] = T::widen(*words);
  } else {
    union {
      Raw<N * sizeof(Word)> raw;
      Word words[N];
    } pack;
    pack.raw = *reinterpret_cast<const decltype(pack.raw)*>(words);
#pragma unroll
    for (int i = 0; i < N; ++i) out[i] = T::widen(pack.words[i]);
  }
}

template <class T, int N>
__device__ void store(void* to, int64_t at, const float (&values)[N]) {
  using Word = typename T::Word;
  Word* words = static_cast<Word*>(to) + at;
  if constexpr (N == 1) {
    *words = T::narrow(values[0]);
  } else {
    // Put together by hand: stored through a union, some kernels got four stores of 4 bytes.
    constexpr int kParts = N * sizeof(Word) / 4;
    uint32_t parts[kParts];
#pragma unroll
    for (int i = 0; i < kParts; ++i) {
      if constexpr (sizeof(Word) == 4) {
        parts[i] = bits_of(values[i]);
      } else {
        const uint32_t low = T::narrow(values[2 * i]), high = T::narrow(values[2 * i + 1]);
        parts[i] = low | high << 16;
      }
    }
    if constexpr (kParts == 4) {
      *reinterpret_cast<uint4*>(words) = uint4{parts[0], parts[1], parts[2], parts[3]};
    } else {
      *reinterpret_cast<uint2*>(words) = uint2{parts[0], parts[1]};
    }
  }
}

template <int N>
using Count = std::integral_constant<int, N>;

// body(Count<N>, first) for the share of [0, length) of one of `stride` threads: packs, then what
// is left of them.
template <class T, bool kVectors, class Body>
__device__ void each_pack(int64_t length, int64_t thread, int64_t stride, const Body& body) {
  constexpr int kWords = kVectors ? kPack<T> : 1;
  const int64_t packs = length / kWords;
  for (int64_t i = thread; i < packs; i += stride) body(Count<kWords>{}, i * kWords);
  if constexpr (kVectors) {
    for (int64_t i = packs * kWords + thread; i < length; i += stride) body(Count<1>{}, i);
  }
}

// The same where the blocks of gridDim.x share one sample.
template <class T, bool kVectors, class Body>
__device__ void each_pack(int64_t length, const Body& body) {
  each_pack<T, kVectors>(length, static_cast<int64_t>(blockIdx.x) * kThreads + threadIdx.x,
                         static_cast<int64_t>(gridDim.x) * kThreads, body);
}

// Whether every sample of every tensor starts at a 16-byte border. Null counts as aligned.
template <class... Pointers>
bool aligned_rows(int64_t samples, int64_t row_bytes, Pointers... pointers) {
  return (aligned(pointers) && ...) && (samples == 1 || row_bytes % kVectorBytes == 0);
}

struct Grid2 {
  unsigned blocks;   // gridDim.x, over a sample
  unsigned samples;  // gridDim.y
};

// For kernels that touch each element once.
inline Grid2 elementwise_grid(int64_t samples, int64_t per_sample, int words) {
  const int64_t items = std::max<int64_t>(per_sample / words, 1);
  const int64_t rows = std::min(samples, kMaxSamples);
  const int64_t most = std::max<int64_t>(kMaxBlocks / rows, 1);
  const int64_t blocks = std::min((items + kThreads - 1) / kThreads, most);
  return {static_cast<unsigned>(blocks), static_cast<unsigned>(rows)};
}

// For APGD's kernels: use(first, x, points) with N elements each, for this thread's share of a sample.
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

inline bool by_vectors(const StepCall& call, int64_t word_bytes) {
  return aligned_rows(call.samples, call.per_sample * word_bytes, call.x_adv, call.grad, call.x);
}

inline bool by_vectors(const ApgdStepCall& call, int64_t word_bytes) {
  return aligned_rows(call.samples, call.per_sample * word_bytes, call.x_adv, call.x_prev,
                      call.grad, call.x);
}

}  // namespace cuda
}  // namespace rf
