// The merge of LoRA layers, many in one launch, and the dropout mask. Never run on a device; also
// compiled by g++ in tests.
#pragma once

#include <algorithm>

#include "cuda/storage.cuh"
#include "lora.h"
#include "math/lora.h"

namespace rf {
namespace cuda {

constexpr int kMergeTile = 64;  // rows and columns
constexpr int kMergeDepth = 16;
constexpr int kMostParts = 76;  // of 48 bytes and a tile number: a kernel takes 4 KB of arguments

struct MergeBatch {
  MergePart parts[kMostParts];
  int32_t first_tile[kMostParts];
  int32_t count;
};

inline int64_t tiles_across(const MergePart& part) {
  return (part.columns + kMergeTile - 1) / kMergeTile;
}

inline int64_t tiles_of(const MergePart& part) {
  return tiles_across(part) * ((part.rows + kMergeTile - 1) / kMergeTile);
}

// Fills a batch from parts[first] on and returns its tiles.
inline int64_t fill_batch(const LoraMergeCall& call, int64_t first, MergeBatch& batch) {
  int64_t tiles = 0;
  batch.count = static_cast<int32_t>(std::min<int64_t>(kMostParts, call.count - first));
  for (int i = 0; i < batch.count; ++i) {
    batch.parts[i] = call.parts[first + i];
    batch.first_tile[i] = static_cast<int32_t>(tiles);
    tiles += tiles_of(batch.parts[i]);
  }
  return tiles;
}

// Four neighbours, of which `n` are there; at once if `whole`.
template <class T>
__device__ void read_four(const void* from, int64_t at, int n, bool whole, float (&out)[4]) {
  using Word = typename T::Word;
  const Word* words = static_cast<const Word*>(from) + at;
  if (whole) {
    using Raw = typename std::conditional<sizeof(Word) == 4, uint4, uint2>::type;
    union {
      Raw raw;
      Word words[4];
    } pack;
    pack.raw = *reinterpret_cast<const Raw*>(words);
#pragma unroll
    for (int i = 0; i < 4; ++i) out[i] = T::widen(pack.words[i]);
    return;
  }
#pragma unroll
  for (int i = 0; i < 4; ++i) out[i] = i < n ? T::widen(words[i]) : 0.0f;
}

template <class T>
__device__ void write_four(void* to, int64_t at, int n, bool whole, const float (&values)[4]) {
  using Word = typename T::Word;
  Word* words = static_cast<Word*>(to) + at;
  if (whole) {
    if constexpr (sizeof(Word) == 4) {
      *reinterpret_cast<uint4*>(words) = uint4{bits_of(values[0]), bits_of(values[1]),
                                               bits_of(values[2]), bits_of(values[3])};
    } else {
      const uint32_t low = T::narrow(values[0]) | static_cast<uint32_t>(T::narrow(values[1])) << 16;
      const uint32_t high =
          T::narrow(values[2]) | static_cast<uint32_t>(T::narrow(values[3])) << 16;
      *reinterpret_cast<uint2*>(words) = uint2{low, high};
    }
    return;
  }
#pragma unroll
  for (int i = 0; i < 4; ++i) {
    if (i < n) words[i] = T::narrow(values[i]);
  }
}

// Puts kMergeDepth of the rank into shared memory, zeros where there is nothing.
__device__ inline void load_factors(const MergePart& part, int64_t row, int64_t column, int depth,
                                    float (&b)[kMergeDepth][kMergeTile],
                                    float (&a)[kMergeDepth][kMergeTile]) {
  for (int i = threadIdx.x; i < kMergeDepth * kMergeTile; i += kThreads) {
    const int k = i / kMergeTile, at = i % kMergeTile;
    const bool inside = depth + k < part.rank && column + at < part.columns;
    a[k][at] = inside ? part.a[(depth + k) * static_cast<int64_t>(part.columns) + column + at] : 0.0f;
  }
  for (int i = threadIdx.x; i < kMergeDepth * kMergeTile; i += kThreads) {
    const int at = i / kMergeDepth, k = i % kMergeDepth;
    const bool inside = depth + k < part.rank && row + at < part.rows;
    b[k][at] = inside ? part.b[(row + at) * part.rank + depth + k] : 0.0f;
  }
}

// A block makes a tile of 64 x 64, a thread four rows of four neighbours. From: storage type of the
// weights, To: of the buffers.
template <class From, class To>
__global__ void __launch_bounds__(kThreads) lora_merge_kernel(MergeBatch batch) {
  __shared__ float a[kMergeDepth][kMergeTile], b[kMergeDepth][kMergeTile];
  int index = 0;
  while (index + 1 < batch.count &&
         static_cast<int>(blockIdx.x) >= batch.first_tile[index + 1]) {
    ++index;
  }
  const MergePart& part = batch.parts[index];
  const int tile = static_cast<int>(blockIdx.x) - batch.first_tile[index];
  const int across = (part.columns + kMergeTile - 1) / kMergeTile;
  const int64_t row = static_cast<int64_t>(tile / across) * kMergeTile;
  const int64_t column = static_cast<int64_t>(tile % across) * kMergeTile;
  const int x = threadIdx.x % 16 * 4, y = threadIdx.x / 16 * 4;
  float sum[4][4] = {};
  for (int depth = 0; depth < part.rank; depth += kMergeDepth) {
    load_factors(part, row, column, depth, b, a);
    __syncthreads();
    const int steps = part.rank - depth < kMergeDepth ? part.rank - depth : kMergeDepth;
    for (int k = 0; k < steps; ++k) {
#pragma unroll
      for (int i = 0; i < 4; ++i) {
#pragma unroll
        for (int j = 0; j < 4; ++j) sum[i][j] = merge_term(sum[i][j], b[k][y + i], a[k][x + j]);
      }
    }
    __syncthreads();
  }
  const float scale = part.rank ? part.scale : kCopy;
  const int64_t left = part.columns - (column + x);
  const int n = left < 4 ? static_cast<int>(left) : 4;
  // rows start at a 16-byte border in both: so do packs of four
  const auto places = reinterpret_cast<uintptr_t>(part.weight) | reinterpret_cast<uintptr_t>(part.merged);
  const bool whole = n == 4 && part.columns % 8 == 0 && places % kVectorBytes == 0;
  if (n <= 0) return;
#pragma unroll
  for (int i = 0; i < 4; ++i) {
    if (row + y + i >= part.rows) return;
    const int64_t at = (row + y + i) * part.columns + column + x;
    float weight[4];
    read_four<From>(part.weight, at, n, whole, weight);
#pragma unroll
    for (int j = 0; j < 4; ++j) {
      weight[j] = merge_value<typename To::Grid>(weight[j], scale, sum[i][j]);
    }
    write_four<To>(part.merged, at, n, whole, weight);
  }
}

// Four elements of a counter, by 8 or 16 bytes at once.
template <class Word, bool kVectors>
__global__ void __launch_bounds__(kThreads) lora_dropout_kernel(LoraDropoutCall call) {
  using Raw = typename std::conditional<sizeof(Word) == 2, uint2, uint4>::type;
  constexpr int kRaws = sizeof(Word) == 8 ? 2 : 1;
  const uint64_t seed = static_cast<uint64_t>(*call.seed);
  const int64_t stride = static_cast<int64_t>(gridDim.x) * kThreads;
  const Word* x = static_cast<const Word*>(call.x);
  Word* out = static_cast<Word*>(call.out);
  for (int64_t quad = static_cast<int64_t>(blockIdx.x) * kThreads + threadIdx.x;
       quad * 4 < call.n; quad += stride) {
    const Words words = dropout_words(seed, static_cast<uint64_t>(quad));
    if (kVectors && quad * 4 + 4 <= call.n) {
      union {
        Raw raw[kRaws];
        Word words[4];
      } pack;
#pragma unroll
      for (int i = 0; i < kRaws; ++i) pack.raw[i] = reinterpret_cast<const Raw*>(x + quad * 4)[i];
#pragma unroll
      for (int i = 0; i < 4; ++i) {
        pack.words[i] = dropout_keeps(words.v[i], call.threshold) ? pack.words[i] : 0;
      }
#pragma unroll
      for (int i = 0; i < kRaws; ++i) reinterpret_cast<Raw*>(out + quad * 4)[i] = pack.raw[i];
    } else {
#pragma unroll
      for (int i = 0; i < 4; ++i) {
        const int64_t at = quad * 4 + i;
        if (at < call.n) out[at] = dropout_keeps(words.v[i], call.threshold) ? x[at] : 0;
      }
    }
  }
}

inline bool by_vectors(const LoraDropoutCall& call) { return aligned(call.x) && aligned(call.out); }

inline int64_t dropout_blocks(const LoraDropoutCall& call) {
  return std::min<int64_t>((call.n / 4 + kThreads) / kThreads, kMaxBlocks);
}

}  // namespace cuda
}  // namespace rf
