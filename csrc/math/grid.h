// Rounding a float to the numbers that a storage type holds. A result is a float on that grid, so
// that storing it is exact, and one arithmetic (fp32) serves every storage type.
//   nearest: ties to even, overflow to infinity
//   up:      the smallest number of the grid that is >= value
//   down:    the largest number of the grid that is <= value
// A NaN may come back as any value from `up` and `down`; `nearest` keeps it.
#pragma once

#include "math/bits.h"

namespace rf {

struct Fp32Grid {
  static constexpr int kDigits = 24;  // significant bits
  static RF_HD float nearest(float value) { return value; }
  static RF_HD float up(float value) { return value; }
};

// bf16 is the upper half of a float, so the lower half says what is rounded away.
struct Bf16Grid {
  static constexpr int kDigits = 8;
  static RF_HD float nearest(float value) {
    const uint32_t bits = bits_of(value);
    const uint32_t rounded = (bits + 0x7fffu + ((bits >> 16) & 1u)) & 0xffff0000u;
    return value == value ? float_of(rounded) : value;
  }
  static RF_HD float up(float value) {
    const uint32_t bits = bits_of(value);
    return float_of((bits + ((bits >> 31) ? 0u : 0xffffu)) & 0xffff0000u);
  }
};

// fp16 has 11 significant bits down to 2^-14 and a fixed spacing of 2^-24 below.
struct Fp16Grid {
  static constexpr int kDigits = 11;
  // The spacing of fp16 numbers around `value`, whose magnitude is below 2^17.
  static RF_HD float spacing(float value) {
    const uint32_t exponent = bits_of(value) & 0x7f800000u;
    const uint32_t smallest = (127u - 14u) << 23;
    return float_of((exponent > smallest ? exponent : smallest) - (10u << 23));
  }
  // Adding 1.5 * 2^23 spacings leaves fp32 no room for anything finer: fp32's own rounding does it.
  static RF_HD float snap(float value) {
    const float shift = spacing(value) * 12582912.0f;
    return (value + shift) - shift;
  }
  static RF_HD float nearest(float value) {
    const float infinity = float_of((bits_of(value) & 0x80000000u) | 0x7f800000u);
    const float snapped = snap(value);
    return magnitude(value) >= 65520.0f ? infinity : snapped;
  }
  static RF_HD float up(float value) {
    const float snapped = snap(value);
    float rounded = snapped < value ? snapped + spacing(value) : snapped;
    rounded = value < -65504.0f ? -65504.0f : rounded;
    return value > 65504.0f ? float_of(0x7f800000u) : rounded;
  }
};

template <class Grid>
RF_HD float round_down(float value) {
  return -Grid::up(-value);
}

}  // namespace rf
