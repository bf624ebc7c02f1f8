// Bit-level helpers shared by the CPU and the CUDA kernels.
#pragma once

#include <cstdint>
#include <cstring>

#if defined(__CUDACC__)
#define RF_HD __host__ __device__ __forceinline__
#elif defined(_MSC_VER)
#define RF_HD __forceinline
#else
#define RF_HD inline __attribute__((always_inline))
#endif

namespace rf {

RF_HD uint32_t bits_of(float value) {
  uint32_t bits;
  memcpy(&bits, &value, sizeof(bits));
  return bits;
}

RF_HD float float_of(uint32_t bits) {
  float value;
  memcpy(&value, &bits, sizeof(value));
  return value;
}

// `yes` where the mask is all ones, `no` where it is 0. In bits, because compilers turn several
// choices by one condition into a branch, and then do not vectorise.
RF_HD float choose(uint32_t mask, float yes, float no) {
  return float_of((bits_of(yes) & mask) | (bits_of(no) & ~mask));
}

RF_HD float magnitude(float value) { return float_of(bits_of(value) & 0x7fffffffu); }

RF_HD bool is_finite(float value) { return (bits_of(value) & 0x7f800000u) != 0x7f800000u; }

// The neighbours of `value`, which is neither zero nor an infinity. Counting the bits up leads away
// from zero; 1 | (the sign bit shifted all the way down) is 1 for positive numbers, else -1.
RF_HD float next_up(float value) {
  const uint32_t bits = bits_of(value);
  return float_of(bits + (1u | (0u - (bits >> 31))));
}

RF_HD float next_down(float value) {
  const uint32_t bits = bits_of(value);
  return float_of(bits - (1u | (0u - (bits >> 31))));
}

// The exact error of the rounded sum: a + b == sum + sum_error(a, b, sum) (Knuth's TwoSum).
RF_HD float sum_error(float a, float b, float sum) {
  const float b_seen = sum - a;
  const float a_seen = sum - b_seen;
  return (a - a_seen) + (b - b_seen);
}

}  // namespace rf
