// The gradients of LoRA's factors in one pass over x and dy, on tensor cores. A block takes a chunk
// of rows: first S = x A^T and dS = dy B go to shared memory, then dA = dS^T x and dB = dy^T S are
// summed up in registers, with x and dy coming from the second-level cache. Every block leaves one
// partial sum; a second kernel adds these up in a fixed order. Chunks depend on the sizes alone, so
// results are the same bits every time, on every device.
// Never run on a device; also compiled by g++ in tests, where mma is a plain loop.
#pragma once

#include <algorithm>

#include "cuda/mma.cuh"
#include "lora.h"
#include "math/lora.h"

namespace rf {
namespace cuda {

constexpr int kTileRows = 16;
constexpr int kSubRows = 64;  // four tiles for x and four for dy: one for each of the eight warps
constexpr int kSharedWords = 8192;  // rows of a chunk times the padded rank
constexpr int64_t kWantedChunks = 128;

// Multiples of 16 that hold the rank: 1, 2 or 4.
inline int rank_tiles(int rank) { return rank <= 16 ? 1 : (rank <= 32 ? 2 : 4); }

inline int64_t chunk_rows(int64_t tokens, int rank) {
  const int64_t wanted = (tokens + kWantedChunks - 1) / kWantedChunks;
  const int64_t most = kSharedWords / (16 * rank_tiles(rank));
  return std::min((wanted + kSubRows - 1) / kSubRows * kSubRows, most);
}

inline int64_t chunk_count(int64_t tokens, int rank) {
  const int64_t rows = chunk_rows(tokens, rank);
  return (tokens + rows - 1) / rows;
}

// Where column `column` of all slices side by side lies in a row of dy.
__device__ inline int64_t dy_column(const LoraBackwardCall& call, int64_t column) {
  int64_t before = 0;
#pragma unroll
  for (int i = 0; i < kMostSlices; ++i) {
    const int64_t inside = column - before;
    if (i + 1 >= call.slice_count || inside < call.slices[i].length) {
      return call.slices[i].start + inside;
    }
    before += call.slices[i].length;
  }
  return 0;
}

// Keeps or drops four elements, two a register, whose first is a multiple of four.
__device__ inline void drop_four(const LoraBackwardCall& call, uint64_t seed, int64_t element,
                                 uint32_t& low, uint32_t& high) {
  const Words words = dropout_words(seed, static_cast<uint64_t>(element) / 4);
  low &= (dropout_keeps(words.v[0], call.threshold) ? 0xffffu : 0u) |
         (dropout_keeps(words.v[1], call.threshold) ? 0xffff0000u : 0u);
  high &= (dropout_keeps(words.v[2], call.threshold) ? 0xffffu : 0u) |
          (dropout_keeps(words.v[3], call.threshold) ? 0xffff0000u : 0u);
}

// kRegisters * 2 columns of one row of x (with dropout) or dy; zeros beyond the end.
template <bool kFromX, int kRegisters>
__device__ void load_row(const LoraBackwardCall& call, int64_t row, int64_t end, int64_t column,
                         uint32_t (&out)[kRegisters]) {
  using Raw = typename std::conditional<kRegisters == 4, uint4, uint2>::type;
  union {
    Raw raw;
    uint32_t v[kRegisters];
  } pack = {};
  const int64_t width = kFromX ? call.inputs : call.outputs;
  if (row < end && column < width) {
    const uint16_t* from = static_cast<const uint16_t*>(kFromX ? call.x : call.dy);
    from += kFromX ? row * width + column : row * call.dy_stride + dy_column(call, column);
    pack.raw = *reinterpret_cast<const Raw*>(from);
    if (kFromX && call.seed) {
      const uint64_t seed = static_cast<uint64_t>(*call.seed);
#pragma unroll
      for (int i = 0; i < kRegisters; i += 2) {
        drop_four(call, seed, row * width + column + 2 * i, pack.v[i], pack.v[i + 1]);
      }
    }
  }
#pragma unroll
  for (int i = 0; i < kRegisters; ++i) out[i] = pack.v[i];
}

template <int kTiles>
using Shared = uint16_t[16 * kTiles][kSharedWords / (16 * kTiles) + 8];  // + 8: no bank conflicts

template <class T>
__device__ uint16_t narrow_nearest(float value) {
  return T::narrow(T::Grid::nearest(value));
}

// One tile of 16 rows: (x or dy) times factor^T, turned, into shared memory. Which columns of the
// sum a register stands for does not matter as long as both operands agree, so that every lane
// reads 16 bytes in a row.
template <class T, int kTiles, bool kFromX>
__device__ void inner_tile(const LoraBackwardCall& call, int64_t row, int64_t end, int at,
                           Shared<kTiles>& out) {
  const int lane = threadIdx.x % 32, g = lane / 4, t = lane % 4;
  const int64_t width = kFromX ? call.inputs : call.outputs;
  const uint16_t* factor = static_cast<const uint16_t*>(kFromX ? call.a : call.b_turned);
  float sum[2 * kTiles][4] = {};
  for (int64_t first = 0; first < width; first += 32) {
    const int64_t column = first + 8 * t;
    uint32_t upper[4], lower[4];
    load_row<kFromX>(call, row + g, end, column, upper);
    load_row<kFromX>(call, row + g + 8, end, column, lower);
    const uint32_t left[4] = {upper[0], lower[0], upper[1], lower[1]};
    const uint32_t right[4] = {upper[2], lower[2], upper[3], lower[3]};
#pragma unroll
    for (int n = 0; n < 2 * kTiles; ++n) {
      uint4 f = {0, 0, 0, 0};
      if (8 * n + g < call.rank && column < width) {
        f = *reinterpret_cast<const uint4*>(factor + (8 * n + g) * width + column);
      }
      mma<T>(sum[n], left, f.x, f.y);
      mma<T>(sum[n], right, f.z, f.w);
    }
  }
#pragma unroll
  for (int n = 0; n < 2 * kTiles; ++n) {
#pragma unroll
    for (int i = 0; i < 4; ++i) {
      const int r = 8 * n + 2 * t + i % 2, place = g + i / 2 * 8;
      const uint16_t word = narrow_nearest<T>(sum[n][i]);
      out[r][at + place] = word;
      if (!kFromX && call.ds && r < call.rank && row + place < end) {
        static_cast<uint16_t*>(call.ds)[(row + place) * call.rank + r] = word;
      }
    }
  }
}

// One panel of 8 * kWide columns: inner^T times (x or dy) over the rows of the chunk. Lane (g, t)
// reads kWide neighbours of row 2 t (and 2 t + 1, + 8, + 9); number g of tile j is neighbour j.
template <class T, int kTiles, int kWide, bool kFromX>
__device__ void outer_panel(const LoraBackwardCall& call, int64_t begin, int64_t end,
                            int64_t panel, const Shared<kTiles>& inner, float* partial) {
  const int lane = threadIdx.x % 32, g = lane / 4, t = lane % 4;
  const int64_t first = panel * 8 * kWide;
  float sum[kTiles][kWide][4] = {};
  for (int64_t row = begin; row < end; row += kTileRows) {
    const int at = static_cast<int>(row - begin) + 2 * t;
    uint32_t rows[4][kWide / 2];
#pragma unroll
    for (int i = 0; i < 4; ++i) {
      const int64_t place = row + 2 * t + i % 2 + i / 2 * 8;
      load_row<kFromX>(call, place, end, first + g * kWide, rows[i]);
    }
#pragma unroll
    for (int m = 0; m < kTiles; ++m) {
      uint32_t left[4];
#pragma unroll
      for (int i = 0; i < 4; ++i) {
        const uint16_t* from = &inner[16 * m + g + i % 2 * 8][at + i / 2 * 8];
        left[i] = *reinterpret_cast<const uint32_t*>(from);
      }
#pragma unroll
      for (int j = 0; j < kWide; j += 2) {
        mma<T>(sum[m][j], left, lower_halves(rows[0][j / 2], rows[1][j / 2]),
               lower_halves(rows[2][j / 2], rows[3][j / 2]));
        mma<T>(sum[m][j + 1], left, upper_halves(rows[0][j / 2], rows[1][j / 2]),
               upper_halves(rows[2][j / 2], rows[3][j / 2]));
      }
    }
  }
  const int64_t width = call.inputs + call.outputs;
  float* out = partial + (kFromX ? 0 : call.inputs);
#pragma unroll
  for (int m = 0; m < kTiles; ++m) {
#pragma unroll
    for (int i = 0; i < 4; ++i) {
      const int r = 16 * m + g + i / 2 * 8;
      const int64_t column = first + (2 * t + i % 2) * kWide;
      if (r >= call.rank || column >= (kFromX ? call.inputs : call.outputs)) continue;
#pragma unroll
      for (int j = 0; j < kWide; ++j) out[r * width + column + j] = sum[m][j][i];
    }
  }
}

template <class T, int kTiles>
__global__ void __launch_bounds__(kThreads) lora_inner_outer(LoraBackwardCall call, int rows) {
  alignas(16) __shared__ Shared<kTiles> s, ds;
  constexpr int kWide = kTiles == 4 ? 4 : 8;
  const int warp = threadIdx.x / 32;
  const int64_t begin = static_cast<int64_t>(blockIdx.x) * rows;
  const int64_t end = begin + rows < call.tokens ? begin + rows : call.tokens;
  for (int at = warp % 4 * kTileRows; at < rows; at += kSubRows) {
    if (warp < 4) {
      inner_tile<T, kTiles, true>(call, begin + at, end, at, s);
    } else {
      inner_tile<T, kTiles, false>(call, begin + at, end, at, ds);
    }
  }
  __syncthreads();
  const int64_t x_panels = (call.inputs + 8 * kWide - 1) / (8 * kWide);
  const int64_t panels = x_panels + (call.outputs + 8 * kWide - 1) / (8 * kWide);
  float* partial = call.workspace +
                   static_cast<int64_t>(blockIdx.x) * call.rank * (call.inputs + call.outputs);
  for (int64_t panel = warp; panel < panels; panel += kThreads / 32) {
    if (panel < x_panels) {
      outer_panel<T, kTiles, kWide, true>(call, begin, end, panel, ds, partial);
    } else {
      outer_panel<T, kTiles, kWide, false>(call, begin, end, panel - x_panels, s, partial);
    }
  }
}

// Where the sum of an element of the partial sums goes; nowhere for a slice's column in the rank of
// another slice.
__device__ inline void store_gradient(const LoraBackwardCall& call, int64_t element, float value) {
  const int64_t width = call.inputs + call.outputs;
  const int64_t r = element / width, column = element % width;
  if (column < call.inputs) {
    call.da[r * call.inputs + column] = value;
    return;
  }
  const int64_t row = column - call.inputs, rank = call.rank / call.slice_count;
  int64_t before = 0;
  int slice = 0;
  while (slice + 1 < call.slice_count && row >= before + call.slices[slice].length) {
    before += call.slices[slice].length;
    ++slice;
  }
  if (r / rank == slice) call.db[row * rank + r % rank] = value;
}

// A lane an element; the eight warps share the chunks, and the first adds up what they found.
static __global__ void __launch_bounds__(kThreads) lora_reduce(LoraBackwardCall call,
                                                               int64_t chunks) {
  __shared__ float sums[kThreads / 32][32];
  const int warp = threadIdx.x / 32, lane = threadIdx.x % 32;
  const int64_t count = call.rank * (call.inputs + call.outputs);
  const int64_t element = static_cast<int64_t>(blockIdx.x) * 32 + lane;
  float sum = 0.0f;
  if (element < count) {
    for (int64_t chunk = warp; chunk < chunks; chunk += kThreads / 32) {
      sum += call.workspace[chunk * count + element];
    }
  }
  sums[warp][lane] = sum;
  __syncthreads();
  if (warp == 0 && element < count) {
    for (int i = 1; i < kThreads / 32; ++i) sum += sums[i][lane];
    store_gradient(call, element, call.gain * sum);
  }
}

}  // namespace cuda
}  // namespace rf
