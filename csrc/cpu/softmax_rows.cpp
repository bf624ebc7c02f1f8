#include <algorithm>
#include <limits>

#include "cpu/dispatch.h"
#include "cpu/parallel.h"
#include "cpu/row_lanes.h"
#include "math/exp.h"
#include "rows.h"

namespace rf {
namespace {

// Bits in the order of their numbers, NaNs above all: the largest of integers is found in any order.
RF_HD int32_t order_of(float value) {
  const uint32_t bits = bits_of(value);
  return static_cast<int32_t>((bits & 0x80000000u) ? bits ^ 0x7fffffffu : bits);
}

// `work`: room for `columns` floats.
RF_CLONES void softmax_row(uint16_t* __restrict row, float* __restrict work, int64_t columns,
                           float scale) {
  int32_t order = order_of(-std::numeric_limits<float>::infinity());
  for (int64_t i = 0; i < columns; ++i) {
    work[i] = widen_bf16(row[i]) * scale;
    order = std::max(order, order_of(work[i]));
  }
  const float top = float_of(static_cast<uint32_t>(order < 0 ? order ^ 0x7fffffff : order));
  for (int64_t i = 0; i < columns; ++i) work[i] = exp_down(work[i] - top);
  const float share = 1.0f / sum_row(work, columns);
  for (int64_t i = 0; i < columns; ++i) row[i] = to_bf16(work[i] * share);
}

RF_CLONES void softmax_row_backward(uint16_t* __restrict grad, const uint16_t* __restrict chance,
                                    float* __restrict work, int64_t columns, float scale) {
  for (int64_t i = 0; i < columns; ++i) work[i] = widen_bf16(grad[i]) * widen_bf16(chance[i]);
  const float mean = sum_row(work, columns);
  for (int64_t i = 0; i < columns; ++i) {
    grad[i] = to_bf16(scale * (widen_bf16(chance[i]) * (widen_bf16(grad[i]) - mean)));
  }
}

}  // namespace

void softmax_rows_cpu(const SoftmaxCall& call, int threads) {
  uint16_t* scores = static_cast<uint16_t*>(call.scores);
  parallel_items(call.rows, call.columns, threads, [&](int64_t begin, int64_t end) {
    alignas(64) float work[kMostColumns];
    for (int64_t row = begin; row < end; ++row) {
      softmax_row(scores + row * call.columns, work, call.columns, call.scale);
    }
  });
}

void softmax_rows_backward_cpu(const SoftmaxBackwardCall& call, int threads) {
  uint16_t* grad = static_cast<uint16_t*>(call.grad);
  const uint16_t* chance = static_cast<const uint16_t*>(call.chance);
  parallel_items(call.rows, call.columns, threads, [&](int64_t begin, int64_t end) {
    alignas(64) float work[kMostColumns];
    for (int64_t row = begin; row < end; ++row) {
      const int64_t at = row * call.columns;
      softmax_row_backward(grad + at, chance + at, work, call.columns, call.scale);
    }
  });
}

}  // namespace rf
