#include <algorithm>
#include <cstring>

#include "cpu/dispatch.h"
#include "cpu/half.h"
#include "cpu/parallel.h"
#include "lora.h"
#include "math/grid.h"
#include "math/lora.h"

namespace rf {
namespace {

constexpr int kRows = 4, kColumns = 32;  // sums that stay in registers
constexpr int64_t kPanel = 256;          // columns of A that stay in the first-level cache

void read(DType type, const void* from, int64_t at, float* to, int64_t n) {
  if (type == DType::fp32) memcpy(to, static_cast<const float*>(from) + at, n * sizeof(float));
  if (type == DType::bf16) bf16_to_float(static_cast<const uint16_t*>(from) + at, to, n);
  if (type == DType::fp16) half_to_float(static_cast<const uint16_t*>(from) + at, to, n);
}

void write(DType type, const float* from, void* to, int64_t at, int64_t n) {
  if (type == DType::fp32) memcpy(static_cast<float*>(to) + at, from, n * sizeof(float));
  if (type == DType::bf16) float_to_bf16(from, static_cast<uint16_t*>(to) + at, n);
  if (type == DType::fp16) float_to_half(from, static_cast<uint16_t*>(to) + at, n);
}

// Sums of B A for kRows rows (those of b, `rank` apart) and the columns of one panel.
RF_CLONES void panel_sums(float* __restrict sums, const float* __restrict a,
                          const float* __restrict b, int64_t columns, int64_t rank, int64_t n) {
  int64_t at = 0;
  for (; at + kColumns <= n; at += kColumns) {
    float sum[kRows][kColumns] = {};
    for (int64_t k = 0; k < rank; ++k) {
      for (int row = 0; row < kRows; ++row) {
        for (int i = 0; i < kColumns; ++i) {
          sum[row][i] = merge_term(sum[row][i], b[row * rank + k], a[k * columns + at + i]);
        }
      }
    }
    for (int row = 0; row < kRows; ++row) {
      for (int i = 0; i < kColumns; ++i) sums[row * kPanel + at + i] = sum[row][i];
    }
  }
  for (; at < n; ++at) {
    for (int row = 0; row < kRows; ++row) {
      float sum = 0.0f;
      for (int64_t k = 0; k < rank; ++k) {
        sum = merge_term(sum, b[row * rank + k], a[k * columns + at]);
      }
      sums[row * kPanel + at] = sum;
    }
  }
}

#define RF_ADD(Grid)                                                                            \
  RF_CLONES void add(Grid, float* __restrict weight, const float* __restrict sums, float scale, \
                     int64_t n) {                                                               \
    for (int64_t i = 0; i < n; ++i) weight[i] = merge_value<Grid>(weight[i], scale, sums[i]);   \
  }
RF_ADD(Fp32Grid)
RF_ADD(Bf16Grid)
RF_ADD(Fp16Grid)
#undef RF_ADD

void add_as(DType type, float* weight, const float* sums, float scale, int64_t n) {
  if (type == DType::fp32) add(Fp32Grid{}, weight, sums, scale, n);
  if (type == DType::bf16) add(Bf16Grid{}, weight, sums, scale, n);
  if (type == DType::fp16) add(Fp16Grid{}, weight, sums, scale, n);
}

// Rows first .. first + count, count <= kRows.
void merge_rows(const LoraMergeCall& call, const MergePart& part, int64_t first, int64_t count) {
  alignas(64) float sums[kRows * kPanel] = {}, block[kPanel];
  const float* b = part.b + first * part.rank;
  float padded[kRows * kMostRank] = {};  // rows that are not there; see usable ranks in Python
  if (count < kRows) {
    memcpy(padded, b, count * part.rank * sizeof(float));
    b = padded;
  }
  for (int64_t at = 0; at < part.columns; at += kPanel) {
    const int64_t n = std::min(kPanel, part.columns - at);
    if (part.rank) panel_sums(sums, part.a + at, b, part.columns, part.rank, n);
    for (int64_t row = 0; row < count; ++row) {
      const int64_t place = (first + row) * part.columns + at;
      read(call.from, part.weight, place, block, n);
      add_as(call.to, block, sums + row * kPanel, part.rank ? part.scale : kCopy, n);
      write(call.to, block, part.merged, place, n);
    }
  }
}

}  // namespace

void lora_merge_cpu(const LoraMergeCall& call, int threads) {
  for (int64_t i = 0; i < call.count; ++i) {
    const MergePart& part = call.parts[i];
    const int64_t groups = (part.rows + kRows - 1) / kRows;
    const int64_t work = static_cast<int64_t>(kRows) * part.columns * (1 + part.rank / 4);
    parallel_items(groups, work, threads, [&](int64_t begin, int64_t end) {
      for (int64_t group = begin; group < end; ++group) {
        const int64_t first = group * kRows;
        merge_rows(call, part, first, std::min<int64_t>(kRows, part.rows - first));
      }
    });
  }
}

}  // namespace rf
