// The LoRA kernels, block by block. -1: a block could not come to its end.
#include "mma.h"

#include <type_traits>
#include <cmath>
#include <vector>

#include "cuda/lora.cu"

namespace {

using namespace rf;
using namespace rf::cuda;

template <class Kernel>
bool run_grid(int64_t blocks, const Kernel& kernel) {
  gridDim = {static_cast<unsigned>(blocks), 1};
  for (blockIdx.x = 0; blockIdx.x < gridDim.x; ++blockIdx.x) {
    if (!fibers::run_block(kThreads, kernel)) return false;
  }
  return true;
}

template <class T, int kTiles>
bool run_inner_outer(const LoraBackwardCall& call) {
  const int rows = static_cast<int>(chunk_rows(call.tokens, call.rank));
  return run_grid(chunk_count(call.tokens, call.rank),
                  [&] { lora_inner_outer<T, kTiles>(call, rows); });
}

template <class T>
bool run_backward(const LoraBackwardCall& call) {
  const int tiles = rank_tiles(call.rank);
  const bool ended = tiles == 1   ? run_inner_outer<T, 1>(call)
                     : tiles == 2 ? run_inner_outer<T, 2>(call)
                                  : run_inner_outer<T, 4>(call);
  const int64_t chunks = chunk_count(call.tokens, call.rank);
  return ended && run_grid(reduce_blocks(call), [&] { lora_reduce(call, chunks); });
}

template <class From, class To>
bool run_merge(const LoraMergeCall& call) {
  MergeBatch batch;
  bool ended = true;
  for (int64_t first = 0; first < call.count; first += kMostParts) {
    const int64_t tiles = fill_batch(call, first, batch);
    ended = ended && run_grid(tiles, [&] { lora_merge_kernel<From, To>(batch); });
  }
  return ended;
}

template <class Word>
int run_dropout(const LoraDropoutCall& call) {
  const bool vectors = by_vectors(call);
  const bool ended = run_grid(dropout_blocks(call), [&] {
    vectors ? lora_dropout_kernel<Word, true>(call) : lora_dropout_kernel<Word, false>(call);
  });
  return ended ? vectors : -1;
}

}  // namespace

// slices: start and length of each. Returns the number of chunks.
extern "C" int backward(const void* x, const void* dy, const void* a, const void* b_turned,
                        void* ds, float* da, float* db, const int64_t* seed, int64_t tokens,
                        int64_t inputs, int64_t dy_stride, const int64_t* slices, int slice_count,
                        int rank, uint32_t threshold, float gain, int dtype) {
  LoraBackwardCall call = {x, dy, a, b_turned, ds, da, db, nullptr, seed, tokens, inputs, 0,
                           dy_stride, {}, slice_count, rank, threshold, gain,
                           static_cast<DType>(dtype)};
  for (int i = 0; i < slice_count; ++i) {
    call.slices[i] = {slices[2 * i], slices[2 * i + 1]};
    call.outputs += slices[2 * i + 1];
  }
  const int64_t chunks = chunk_count(tokens, rank);
  std::vector<float> workspace(chunks * rank * (inputs + call.outputs), NAN);
  call.workspace = workspace.data();
  const bool ended = dtype == 1 ? run_backward<Bf16>(call) : run_backward<Fp16>(call);
  return ended ? static_cast<int>(chunks) : -1;
}

// `parts` parts of one matrix after the other, each `rows` rows; every third has rank 0.
extern "C" int merge(const void* weight, void* merged, const float* a, const float* b,
                     int parts, int rows, int columns, int rank, float scale, int from, int to) {
  const int64_t from_bytes = from ? 2 : 4, to_bytes = to ? 2 : 4;
  std::vector<MergePart> list;
  for (int64_t i = 0; i < parts; ++i) {
    const int64_t at = i * rows * columns;
    list.push_back({static_cast<const char*>(weight) + at * from_bytes,
                    static_cast<char*>(merged) + at * to_bytes, a + i * rank * columns,
                    b + i * rows * rank, rows, columns, i % 3 == 2 ? 0 : rank, scale});
  }
  const LoraMergeCall call = {list.data(), parts, static_cast<DType>(from),
                              static_cast<DType>(to)};
  if (from == 1) return run_merge<Bf16, Bf16>(call) ? 0 : -1;
  if (from == 2) return run_merge<Fp16, Fp16>(call) ? 0 : -1;
  if (to == 0) return run_merge<Fp32, Fp32>(call) ? 0 : -1;
  return (to == 1 ? run_merge<Fp32, Bf16>(call) : run_merge<Fp32, Fp16>(call)) ? 0 : -1;
}

// Returns whether it went by vectors.
extern "C" int dropout(void* out, const void* x, const int64_t* seed, int64_t n,
                       uint32_t threshold, int bytes) {
  const LoraDropoutCall call = {out, x, seed, n, threshold, bytes};
  if (bytes == 2) return run_dropout<uint16_t>(call);
  return bytes == 4 ? run_dropout<uint32_t>(call) : run_dropout<uint64_t>(call);
}
