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

// N neighbours as they lie in memory, of 8 or 16 bytes, or one.
template <class T, int N>
union Pack {
  using Word = typename T::Word;
  using Raw = std::conditional_t<N == 1, Word,
                                 std::conditional_t<N * sizeof(Word) == 16, uint4, uint2>>;
  Raw raw;
  Word words[N];
};

template <class T, int N>
__device__ Pack<T, N> take(const void* from, int64_t at) {
  using Raw = typename Pack<T, N>::Raw;
  Pack<T, N> pack;
  pack.raw = *reinterpret_cast<const Raw*>(static_cast<const typename T::Word*>(from) + at);
  return pack;
}

template <class T, int N, class Value>
__device__ void widen(const Pack<T, N>& pack, Value (&out)[N]) {
#pragma unroll
  for (int i = 0; i < N; ++i) out[i] = T::widen(pack.words[i]);
}

template <class T, int N>
__device__ void load(const void* from, int64_t at, float (&out)[N]) {
  widen(take<T, N>(from, at), out);
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
#ifdef __CUDA_ARCH__  // ptxas makes four stores of a uint4 whose registers are not neighbours
      asm volatile("st.global.v4.b32 [%0], {%1, %2, %3, %4};" ::"l"(__cvta_generic_to_global(words)),
                   "r"(parts[0]), "r"(parts[1]), "r"(parts[2]), "r"(parts[3])
                   : "memory");
#else
      *reinterpret_cast<uint4*>(words) = uint4{parts[0], parts[1], parts[2], parts[3]};
#endif
    } else {
      *reinterpret_cast<uint2*>(words) = uint2{parts[0], parts[1]};
    }
  }
}

// use(place, values) for kAtOnce packs of every tensor, `step` elements apart; values: floats, or what
// T makes of a word, [kStreams][N]. All of them are loaded before the first is used, so that a thread waits for
// memory once.
template <class T, int N, int kAtOnce, int kStreams, class Use>
__device__ void use_packs(const void* const (&from)[kStreams], int64_t at, int64_t step,
                          const Use& use) {
  Pack<T, N> packs[kAtOnce][kStreams];
#pragma unroll
  for (int k = 0; k < kAtOnce; ++k) {
#pragma unroll
    for (int s = 0; s < kStreams; ++s) packs[k][s] = take<T, N>(from[s], at + k * step);
  }
#pragma unroll
  for (int k = 0; k < kAtOnce; ++k) {
    decltype(T::widen(packs[k][0].words[0])) values[kStreams][N];
#pragma unroll
    for (int s = 0; s < kStreams; ++s) widen(packs[k][s], values[s]);
    use(at + k * step, values);
  }
}

// use_packs over this thread's share of a sample that the blocks of gridDim.x share: kAtOnce packs
// at a time, single packs, then what is left of them. `base`: the sample's first element. Loops are
// not unrolled: their count would be a division before the first load.
template <class T, bool kVectors, int kAtOnce, int kStreams, class Use>
__device__ void each_pack(int64_t length, int64_t base, const void* const (&from)[kStreams],
                          const Use& use) {
  constexpr int kWords = kVectors ? kPack<T> : 1;
  const int64_t thread = static_cast<int64_t>(blockIdx.x) * kThreads + threadIdx.x;
  const int64_t threads = static_cast<int64_t>(gridDim.x) * kThreads;
  const int64_t end = length / kWords * kWords, step = threads * kWords;
  int64_t at = thread * kWords;
  if constexpr (kAtOnce > 1) {
#pragma unroll 1
    for (; at + (kAtOnce - 1) * step < end; at += kAtOnce * step) {
      use_packs<T, kWords, kAtOnce>(from, base + at, step, use);
    }
  }
#pragma unroll 1
  for (; at < end; at += step) use_packs<T, kWords, 1>(from, base + at, step, use);
  if constexpr (kVectors) {
#pragma unroll 1
    for (at = end + thread; at < length; at += threads) {
      use_packs<T, 1, 1>(from, base + at, step, use);
    }
  }
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

// For kernels that touch each element once, `words` of them a thread.
inline Grid2 elementwise_grid(int64_t samples, int64_t per_sample, int words) {
  const int64_t items = std::max<int64_t>(per_sample / words, 1);
  const int64_t rows = std::min(samples, kMaxSamples);
  const int64_t most = std::max<int64_t>(kMaxBlocks / rows, 1);
  const int64_t blocks = std::min((items + kThreads - 1) / kThreads, most);
  return {static_cast<unsigned>(blocks), static_cast<unsigned>(rows)};
}

// For APGD's kernels: use(place, x, points) with N elements each, for this thread's share of a sample.
template <class T, bool kVectors, int kAtOnce, class Point, class Use>
__device__ void each_point(const ApgdStepCall& call, int64_t sample, const Point& point,
                           const Use& use) {
  each_pack<T, kVectors, kAtOnce>(
      call.per_sample, sample * call.per_sample, {call.x_adv, call.x_prev, call.grad, call.x},
      [&](int64_t at, auto& v) {
        constexpr int kWords = sizeof(v[0]) / sizeof(float);
#pragma unroll
        for (int i = 0; i < kWords; ++i) v[1][i] = point(v[0][i], v[1][i], v[2][i], v[3][i]);
        use(at, v[3], v[1]);
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
