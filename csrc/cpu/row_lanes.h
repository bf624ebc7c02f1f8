// What loops over rows share: sums in 16 lanes, in an order that the length alone fixes.
#pragma once

#include <cstdint>

#include "cpu/half.h"
#include "math/bits.h"
#include "math/grid.h"

namespace rf {

constexpr int kRowLanes = 16;

RF_HD uint16_t to_bf16(float value) { return narrow_bf16(Bf16Grid::nearest(value)); }

// The sum of a row: 16 running sums, added up by halves, then what is left.
RF_HD float sum_row(const float* __restrict values, int64_t columns) {
  const int64_t whole = columns / kRowLanes * kRowLanes;
  float sums[kRowLanes] = {};
  for (int64_t i = 0; i < whole; i += kRowLanes) {
#pragma GCC unroll 16
    for (int j = 0; j < kRowLanes; ++j) sums[j] += values[i + j];
  }
  for (int half = kRowLanes / 2; half > 0; half /= 2) {
    for (int j = 0; j < half; ++j) sums[j] += sums[j + half];
  }
  for (int64_t i = whole; i < columns; ++i) sums[0] += values[i];
  return sums[0];
}

}  // namespace rf
