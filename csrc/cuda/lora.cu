// The LoRA kernels: the merge of layers, many in one launch; the dropout mask; the gradients of the
// factors. Never run on a device; in tests mma is a plain loop.
// Also compiled by g++ in tests, block by block, without the launchers.
#include <algorithm>

#include "cuda/mma.cuh"
#include "cuda/packs.cuh"
#include "math/lora.h"
#include "ops.h"

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
  if (whole) return load<T>(from, at, out);
  const auto* words = static_cast<const typename T::Word*>(from) + at;
#pragma unroll
  for (int i = 0; i < 4; ++i) out[i] = i < n ? T::widen(words[i]) : 0.0f;
}

template <class T>
__device__ void write_four(void* to, int64_t at, int n, bool whole, const float (&values)[4]) {
  if (whole) return store<T>(to, at, values);
  auto* words = static_cast<typename T::Word*>(to) + at;
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
    const int64_t place = static_cast<int64_t>(depth + k) * part.columns + column + at;
    a[k][at] = inside ? part.a[place] : 0.0f;
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
  const auto places =
      reinterpret_cast<uintptr_t>(part.weight) | reinterpret_cast<uintptr_t>(part.merged);
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

// The gradients of LoRA's factors in one pass over x and dy, on tensor cores. A block takes a chunk
// of rows: first S = x A^T and dS = dy B go to shared memory, then dA = dS^T x and dB = dy^T S are
// summed up in registers, with x and dy coming from the second-level cache. Every block leaves one
// partial sum; a second kernel adds these up in a fixed order. Chunks depend on the sizes alone, so
// results are the same bits every time, on every device.

constexpr int kTileRows = 16;
constexpr int kSubRows = 64;  // four tiles for x and four for dy: one for each of the eight warps
constexpr int kSharedWords = 8192;  // rows of a chunk times the padded rank
constexpr int64_t kWantedChunks = 512;

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

// kRegisters * 2 columns of one row of x or dy.
template <int kRegisters>
union RowPack {
  std::conditional_t<kRegisters == 4, uint4, uint2> raw;
  uint32_t v[kRegisters];
};

// Zeros beyond the end. Used later than it is asked for: see drop_row.
template <bool kFromX, int kRegisters>
__device__ RowPack<kRegisters> load_row(const LoraBackwardCall& call, int64_t row, int64_t end,
                                        int64_t column) {
  RowPack<kRegisters> pack = {};
  const int64_t width = kFromX ? call.inputs : call.outputs;
  if (row < end && column < width) {
    const uint16_t* from = static_cast<const uint16_t*>(kFromX ? call.x : call.dy);
    from += kFromX ? row * width + column : row * call.dy_stride + dy_column(call, column);
    pack.raw = *reinterpret_cast<const decltype(pack.raw)*>(from);
  }
  return pack;
}

// The dropout of what load_row gave.
template <bool kFromX, int kRegisters>
__device__ void drop_row(const LoraBackwardCall& call, int64_t row, int64_t column,
                         RowPack<kRegisters>& pack) {
  if (!kFromX || !call.seed) return;
  const uint64_t seed = static_cast<uint64_t>(*call.seed);
#pragma unroll
  for (int i = 0; i < kRegisters; i += 2) {
    drop_four(call, seed, row * call.inputs + column + 2 * i, pack.v[i], pack.v[i + 1]);
  }
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
  // The next kSteps times 32 columns of both rows are on their way while these are used.
  constexpr int kSteps = kTiles == 4 ? 2 : 4;
  RowPack<4> next[kSteps][2];
  const auto ask = [&](int64_t first) {
#pragma unroll
    for (int i = 0; i < 2 * kSteps; ++i) {
      next[i / 2][i % 2] =
          load_row<kFromX, 4>(call, row + g + i % 2 * 8, end, first + i / 2 * 32 + 8 * t);
    }
  };
  ask(0);
#pragma unroll 1
  for (int64_t first = 0; first < width; first += 32 * kSteps) {
    RowPack<4> rows[kSteps][2];
#pragma unroll
    for (int i = 0; i < 2 * kSteps; ++i) rows[i / 2][i % 2] = next[i / 2][i % 2];
    ask(first + 32 * kSteps);
#pragma unroll
    for (int step = 0; step < kSteps; ++step) {
      const int64_t column = first + 32 * step + 8 * t;
      RowPack<4>&upper = rows[step][0], &lower = rows[step][1];
      drop_row<kFromX>(call, row + g, column, upper);
      drop_row<kFromX>(call, row + g + 8, column, lower);
      const uint32_t left[4] = {upper.v[0], lower.v[0], upper.v[1], lower.v[1]};
      const uint32_t right[4] = {upper.v[2], lower.v[2], upper.v[3], lower.v[3]};
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
  const int64_t mine = first + g * kWide;
  float sum[kTiles][kWide][4] = {};
  RowPack<kWide / 2> next[4];  // of the next tile, on their way while this one is used
  const auto ask = [&](int64_t row) {
#pragma unroll
    for (int i = 0; i < 4; ++i) {
      next[i] = load_row<kFromX, kWide / 2>(call, row + 2 * t + i % 2 + i / 2 * 8, end, mine);
    }
  };
  ask(begin);
#pragma unroll 1
  for (int64_t row = begin; row < end; row += kTileRows) {
    const int at = static_cast<int>(row - begin) + 2 * t;
    RowPack<kWide / 2> rows[4];
#pragma unroll
    for (int i = 0; i < 4; ++i) rows[i] = next[i];
    ask(row + kTileRows);
#pragma unroll
    for (int i = 0; i < 4; ++i) {
      drop_row<kFromX>(call, row + 2 * t + i % 2 + i / 2 * 8, mine, rows[i]);
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
        const int k = j / 2;
        mma<T>(sum[m][j], left, lower_halves(rows[0].v[k], rows[1].v[k]),
               lower_halves(rows[2].v[k], rows[3].v[k]));
        mma<T>(sum[m][j + 1], left, upper_halves(rows[0].v[k], rows[1].v[k]),
               upper_halves(rows[2].v[k], rows[3].v[k]));
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
      for (int j = 0; j < kWide; j += 4) {
        const float four[4] = {sum[m][j][i], sum[m][j + 1][i], sum[m][j + 2][i], sum[m][j + 3][i]};
        store<Fp32>(out, r * width + column + j, four);
      }
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

// A lane four elements, which lie in one row; the eight warps share the chunks, and the first adds up
// what they found.
constexpr int kReduced = 4 * 32;  // elements of a block

static __global__ void __launch_bounds__(kThreads) lora_reduce(LoraBackwardCall call,
                                                               int64_t chunks) {
  __shared__ float sums[kThreads / 32][32][4];
  const int warp = threadIdx.x / 32, lane = threadIdx.x % 32;
  const int64_t count = call.rank * (call.inputs + call.outputs);
  const int64_t element = static_cast<int64_t>(blockIdx.x) * kReduced + lane * 4;
  float sum[4] = {};
  if (element < count) {
#pragma unroll 8
    for (int64_t chunk = warp; chunk < chunks; chunk += kThreads / 32) {
      float four[4];
      load<Fp32>(call.workspace, chunk * count + element, four);
#pragma unroll
      for (int j = 0; j < 4; ++j) sum[j] += four[j];
    }
  }
#pragma unroll
  for (int j = 0; j < 4; ++j) sums[warp][lane][j] = sum[j];
  __syncthreads();
  if (warp == 0 && element < count) {
#pragma unroll
    for (int j = 0; j < 4; ++j) {
      for (int i = 1; i < kThreads / 32; ++i) sum[j] += sums[i][lane][j];
      store_gradient(call, element + j, call.gain * sum[j]);
    }
  }
}

inline unsigned reduce_blocks(const LoraBackwardCall& call) {
  const int64_t count = call.rank * (call.inputs + call.outputs);
  return static_cast<unsigned>((count + kReduced - 1) / kReduced);
}

}  // namespace cuda
}  // namespace rf

#ifdef __CUDACC__
#include "cuda/launch.cuh"

namespace rf {

using namespace cuda;

namespace {

template <class From, class To>
void merge(const LoraMergeCall& call, cudaStream_t stream) {
  MergeBatch batch;
  for (int64_t first = 0; first < call.count; first += kMostParts) {
    const auto tiles = static_cast<unsigned>(fill_batch(call, first, batch));
    lora_merge_kernel<From, To><<<tiles, kThreads, 0, stream>>>(batch);
  }
}

template <class Word>
void drop(const LoraDropoutCall& call, cudaStream_t stream) {
  const auto blocks = static_cast<unsigned>(dropout_blocks(call));
  if (by_vectors(call)) {
    lora_dropout_kernel<Word, true><<<blocks, kThreads, 0, stream>>>(call);
  } else {
    lora_dropout_kernel<Word, false><<<blocks, kThreads, 0, stream>>>(call);
  }
}

template <class T>
void backward(const LoraBackwardCall& call, cudaStream_t stream) {
  const int rows = static_cast<int>(chunk_rows(call.tokens, call.rank));
  const int64_t chunks = chunk_count(call.tokens, call.rank);
  const auto blocks = static_cast<unsigned>(chunks);
  const int tiles = rank_tiles(call.rank);
  if (tiles == 1) lora_inner_outer<T, 1><<<blocks, kThreads, 0, stream>>>(call, rows);
  if (tiles == 2) lora_inner_outer<T, 2><<<blocks, kThreads, 0, stream>>>(call, rows);
  if (tiles == 4) lora_inner_outer<T, 4><<<blocks, kThreads, 0, stream>>>(call, rows);
  lora_reduce<<<reduce_blocks(call), kThreads, 0, stream>>>(call, chunks);
}

}  // namespace

int lora_merge_cuda(const LoraMergeCall& call, int device, void* stream) {
  return on_device(device, stream, [&](cudaStream_t target) {
    if (call.from == DType::bf16) return merge<Bf16, Bf16>(call, target);
    if (call.from == DType::fp16) return merge<Fp16, Fp16>(call, target);
    with_type(call.to, [&](auto to) { merge<Fp32, decltype(to)>(call, target); });
  });
}

int lora_dropout_cuda(const LoraDropoutCall& call, int device, void* stream) {
  return on_device(device, stream, [&](cudaStream_t target) {
    if (call.bytes == 2) drop<uint16_t>(call, target);
    if (call.bytes == 4) drop<uint32_t>(call, target);
    if (call.bytes == 8) drop<uint64_t>(call, target);
  });
}

int64_t lora_backward_workspace(int64_t tokens, int64_t inputs, int64_t outputs, int rank) {
  return chunk_count(tokens, rank) * rank * (inputs + outputs);
}

int lora_backward_cuda(const LoraBackwardCall& call, int device, void* stream) {
  return on_device(device, stream, [&](cudaStream_t target) {
    call.dtype == DType::bf16 ? backward<Bf16>(call, target) : backward<Fp16>(call, target);
  });
}

int lora_cuda_load(int device) {
  return load_on(device, lora_merge_kernel<Fp32, Fp32>, lora_merge_kernel<Fp32, Bf16>,
                 lora_merge_kernel<Fp32, Fp16>, lora_merge_kernel<Bf16, Bf16>,
                 lora_merge_kernel<Fp16, Fp16>, lora_dropout_kernel<uint16_t, true>,
                 lora_dropout_kernel<uint16_t, false>, lora_dropout_kernel<uint32_t, true>,
                 lora_dropout_kernel<uint32_t, false>, lora_dropout_kernel<uint64_t, true>,
                 lora_dropout_kernel<uint64_t, false>, lora_reduce, lora_inner_outer<Bf16, 1>,
                 lora_inner_outer<Bf16, 2>, lora_inner_outer<Bf16, 4>, lora_inner_outer<Fp16, 1>,
                 lora_inner_outer<Fp16, 2>, lora_inner_outer<Fp16, 4>);
}

}  // namespace rf
#endif
