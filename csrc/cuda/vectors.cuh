// Several neighbours read or written at once, and a block's threads sharing out one sample.
#pragma once

#include "cuda/storage.cuh"

namespace rf {
namespace cuda {

template <int kBytes>
struct Raw;
template <>
struct Raw<2> {
  using Type = uint16_t;
};
template <>
struct Raw<4> {
  using Type = unsigned;
};
template <>
struct Raw<8> {
  using Type = uint2;
};
template <>
struct Raw<16> {
  using Type = uint4;
};

template <class Word, int kWords>
union Pack {
  typename Raw<kWords * sizeof(Word)>::Type raw;
  Word words[kWords];
};

template <int kWords, class Word>
__device__ Pack<Word, kWords> load(const Word* from) {
  Pack<Word, kWords> pack;
  pack.raw = *reinterpret_cast<const decltype(pack.raw)*>(from);
  return pack;
}

template <int kWords, class Word>
__device__ void store(Word* to, const Pack<Word, kWords>& pack) {
  *reinterpret_cast<decltype(pack.raw)*>(to) = pack.raw;
}

// A compile-time number, so that a body knows how many words it takes.
template <int kValue>
struct Count {
  static constexpr int value = kValue;
};

// body(first, Count<words>) over [0, n) by one block: whole packs, then the tail word by word. A
// thread meets the same elements in every sweep of the same n and kWords.
template <int kThreads, int kWords, class Body>
__device__ void sweep(int64_t n, const Body& body) {
  const int64_t packs = n / kWords;
  for (int64_t i = threadIdx.x; i < packs; i += kThreads) body(i * kWords, Count<kWords>{});
  if constexpr (kWords > 1) {
    for (int64_t i = packs * kWords + threadIdx.x; i < n; i += kThreads) body(i, Count<1>{});
  }
}

}  // namespace cuda
}  // namespace rf
