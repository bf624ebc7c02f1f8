// The scalar rules of l1_step_'s sparse move: the gradient's largest entries by selection on the
// bits of their magnitudes, 11 + 10 + 10 of them, and a step along their signs.
#pragma once

#include "math/bits.h"
#include "math/grid.h"

namespace rf {

constexpr int kBins = 2048;
constexpr int kDigits = 3;

// Magnitudes in order as integers; a number that is not finite counts as 0.
RF_HD uint32_t magnitude_key(float grad) {
  const uint32_t bits = bits_of(grad) & 0x7fffffffu;
  return bits < 0x7f800000u ? bits : 0u;
}

RF_HD int digit_shift(int digit) { return 20 - 10 * digit; }

// The bin of `key` in the histogram of a digit, or -1 if its higher digits are not the prefix's.
RF_HD int bin_of(uint32_t key, int digit, uint32_t prefix) {
  const int shift = digit_shift(digit);
  if (digit == 0) return static_cast<int>(key >> shift);
  return (key >> (shift + 10)) == prefix ? static_cast<int>((key >> shift) & 1023u) : -1;
}

// AutoAttack's index of the smallest magnitude that is kept, in ascending order, in fp32 as there.
RF_HD int64_t kept_rank(float density, int64_t numel) {
  const float place = (1.0f - density) * static_cast<float>(numel);
  const bool last = place >= static_cast<float>(numel - 1);
  return last ? numel - 1 : (place > 0.0f ? static_cast<int64_t>(place) : 0);
}

// Narrows a rank down to the one key, a digit at a time.
struct Selection {
  int64_t rank;           // within the numbers that share the prefix
  uint32_t prefix = 0;    // after the last digit: the key itself
  int64_t smaller = 0;    // how many keys are below the prefix
  int64_t equal = 0;      // how many share it

  RF_HD explicit Selection(int64_t wanted) : rank(wanted) {}

  // Take the bin that holds the rank; `before` counts the numbers in the bins below it.
  RF_HD void take(int digit, int bin, int64_t before, int64_t count) {
    prefix = digit == 0 ? static_cast<uint32_t>(bin) : (prefix << 10 | static_cast<uint32_t>(bin));
    rank -= before;
    smaller += before;
    equal = count;
  }

  // How many entries move: all from the key on, but never a zero.
  RF_HD int64_t moving(int64_t numel) const { return numel - (prefix ? smaller : equal); }
};

// A step of length `size` along the sign of a gradient entry that is large enough.
template <class Grid>
RF_HD float sparse_step(float x_adv, float grad, uint32_t smallest, float size) {
  const uint32_t key = magnitude_key(grad);
  const bool moves = (key >= smallest) & (key != 0u);
  const float step = moves ? float_of(bits_of(size) ^ (bits_of(grad) & 0x80000000u)) : 0.0f;
  return Grid::nearest(x_adv + step);
}

}  // namespace rf
