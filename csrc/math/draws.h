// From random words to the draws of a random start. Nothing but IEEE additions, multiplications,
// divisions and square roots, each rounded once, so that every backend gets the same bits. All are
// fp32 numbers, for images of any dtype.
#pragma once

#include <cmath>

#include "math/bits.h"
#include "math/philox.h"

namespace rf {

// Odd multiples of 2^-24 in (-1, 1): symmetric, and never 0.
RF_HD float signed_uniform(uint32_t word) {
  return static_cast<float>((static_cast<int32_t>(word) >> 7) | 1) * 0x1p-24f;
}

// Odd multiples of 2^-24 in (0, 1), from all but the lowest 9 bits.
RF_HD float uniform(uint32_t word) {
  return static_cast<float>(static_cast<int32_t>(word >> 8) | 1) * 0x1p-24f;
}

// -log(value) for a normal number below 1: value = m 2^e with m in [0.71, 1.42), and
// log(m) = 2 artanh((m - 1) / (m + 1)) by its series. The error is below 3e-7 of the result + 1e-7.
RF_HD float minus_log(float value) {
  const int32_t bits = static_cast<int32_t>(bits_of(value));
  const int32_t exponent = (bits - 0x3f350000) >> 23;
  const float m = float_of(static_cast<uint32_t>(bits - exponent * 0x800000));
  const float s = (m - 1.0f) / (m + 1.0f);
  const float z = s * s;
  const float series = z * (0.33333334f + z * (0.2f + z * (0.14285715f + z * 0.11111111f)));
  const float log_m = 2.0f * (s + s * series);
  return static_cast<float>(-exponent) * 0.6931472f - log_m;
}

// A standard exponential draw; the sign of the lowest bit makes it a Laplace draw.
RF_HD float exponential(uint32_t word) { return minus_log(uniform(word)); }

RF_HD float laplace(uint32_t word) {
  return float_of(bits_of(exponential(word)) ^ (word << 31));
}

// sin and cos on [-pi/4, pi/4], by polynomials of degree 7 and 8.
RF_HD float sine(float angle) {
  const float z = angle * angle;
  return angle + angle * (z * (-0.16666655f + z * (0.0083321609f + z * -0.00019515296f)));
}

RF_HD float cosine(float angle) {
  const float z = angle * angle;
  return (1.0f - 0.5f * z) + z * z * (0.041666646f + z * (-0.0013887316f + z * 0.000024433157f));
}

struct Pair {
  float first, second;
};

// Two standard normal draws (Box and Muller 1958). The highest two bits of the second word choose
// a quarter of the circle, the others the place within it.
RF_HD Pair gaussians(uint32_t word_radius, uint32_t word_angle) {
  const float radius = sqrtf(2.0f * exponential(word_radius));
  const float angle = signed_uniform(word_angle << 2) * 0.78539816f;
  const float a = radius * cosine(angle), b = radius * sine(angle);
  const uint32_t quarter = word_angle >> 30;
  const float first = (quarter & 1u) ? b : a, second = (quarter & 1u) ? a : b;
  // (a, b), (-b, a), (-a, -b), (b, -a)
  const uint32_t negate_first = ((quarter + 1u) & 2u) << 30, negate_second = (quarter & 2u) << 30;
  return {float_of(bits_of(first) ^ negate_first), float_of(bits_of(second) ^ negate_second)};
}

}  // namespace rf
