// The scalar rules of the L1 ops. In the projection every coordinate moves towards x by one threshold,
// which is found on the floats' own order. The sparse step takes the gradient's largest entries by
// selection on the bits of their magnitudes, 11 + 10 + 10 of them, and moves along their signs.
// The specification is roli_fast/ops/l1.py.
#pragma once

#include "math/bits.h"
#include "math/grid.h"
#include "math/linf.h"

namespace rf {

struct L1Scalars {
  float eps;
  float low;  // the box, already on the storage grid
  float high;
};

struct Shrunk {
  float value;
  int32_t free;  // 1: neither at x nor at the box, so that it follows the threshold
};

// x_adv, moved by `threshold` towards x but not beyond, in the box. Falls or rises monotonically
// with the threshold, also after rounding. A NaN in x_adv or x gives any number.
template <class Grid>
RF_HD Shrunk l1_shrunk(float x_adv, float x, float threshold, const L1Scalars& s) {
  const float centre = clamp(x, s.low, s.high);
  const uint32_t above = 0u - static_cast<uint32_t>(x_adv > x);
  const float back = float_of(bits_of(threshold) ^ (above & 0x80000000u));
  const float moved = Grid::nearest(x_adv + back);
  const float floor = choose(above, centre, s.low), ceiling = choose(above, s.high, centre);
  const float raised = moved > floor ? moved : floor;
  const int32_t free = static_cast<int32_t>(moved > floor) & static_cast<int32_t>(moved < ceiling);
  return {raised < ceiling ? raised : ceiling, free};
}

// The distance of a result from x as a double; 0 where there is a NaN.
RF_HD double l1_distance(float value, float x) {
  const double difference = static_cast<double>(value) - static_cast<double>(x);
  const double size = difference < 0.0 ? -difference : difference;
  return size > 0.0 ? size : 0.0;
}

// What is written. Zero is always +0.
template <class Grid>
RF_HD float l1_result(float x_adv, float x, float threshold, const L1Scalars& s) {
  const bool all = !is_finite(threshold);  // no threshold is enough: x itself
  const float value = all ? clamp(x, s.low, s.high) : l1_shrunk<Grid>(x_adv, x, threshold, s).value;
  const bool known = (x_adv == x_adv) & (x == x) & (s.eps == s.eps);
  return (known ? value : float_of(0x7fc00000u)) + 0.0f;
}

// Finds the smallest threshold at which the sum of distances is at most the limit, among fp32
// numbers, for 16-bit types among those of 16 significant bits. The sum falls with the threshold,
// so the answer does not depend on the way to it: Newton's steps while they stay in the bracket,
// then a gallop from its end, and bisection of the floats' order.
template <class Grid>
struct ThresholdSearch {
  static constexpr uint32_t kGrain = Grid::kDigits < 24 ? 256 : 1;  // of the bits of a threshold

  double limit;
  uint32_t below = 0;           // bits of a threshold that is too small
  uint32_t above = 0x7f800000;  // of one that is large enough, or infinity
  uint32_t at = 0;              // of the one to try
  uint32_t stride = kGrain;
  int passes = 0;

  // `sum` and `free` at threshold 0. A hair less than eps leaves room for sums in another order.
  RF_HD ThresholdSearch(float eps, double sum, int64_t free)
      : limit(static_cast<double>(eps) * (1.0 - 0x1p-40)) {
    propose(sum, free);
  }

  RF_HD bool found() const { return above - below <= kGrain; }
  RF_HD float candidate() const { return float_of(at); }
  RF_HD float threshold() const { return float_of(above); }

  RF_HD void update(double sum, int64_t free) {
    (sum <= limit ? above : below) = at;
    propose(sum, free);
  }

  RF_HD void propose(double sum, int64_t free) {
    const uint32_t middle = below + (above - below) / 2 / kGrain * kGrain;
    const double guess = static_cast<double>(float_of(at)) +
                         (sum - limit) / static_cast<double>(free > 0 ? free : 1);
    const bool usable = free > 0 && ++passes <= 24 && guess >= 0.0 && guess < 3e38;
    uint32_t next = usable ? bits_of(static_cast<float>(guess)) / kGrain * kGrain : middle;
    if (next <= below || next >= above) {
      next = next <= below ? below + stride : above - stride;
      stride *= 4;
    }
    at = next > below && next < above ? next : middle;
  }
};

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
