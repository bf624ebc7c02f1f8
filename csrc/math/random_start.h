// From random words to draws, and the scalar rules of the random starts. An element's words are
// philox(key, element / 4, sample's id)[element % 4], `element` counted in logical order. Draws are
// fp32 numbers for images of any dtype, made of IEEE additions, multiplications, divisions and square
// roots, each rounded once: CPU and CUDA get the same. The specification is
// roli_fast/ops/random_start.py.
#pragma once

#include <cfloat>
#include <cmath>

#include "math/bits.h"
#include "math/grid.h"
#include "math/linf.h"
#include "math/philox.h"
#include "ops.h"

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

struct StartScalars {
  float scale;  // linf: eps. l2, l1: what a draw is multiplied by
  float low;    // the box, already on the storage grid
  float high;
};

// What a draw adds to its total: rounded up to a multiple of 2^-24, in these units, so that
// totals are integers and no order of summation changes them. At most 34 * 2^24.
RF_HD int64_t l2_share(float draw) { return static_cast<int32_t>(draw * draw * 0x1p24f) + 1; }

RF_HD int64_t l1_share(float draw) {
  return static_cast<int32_t>(magnitude(draw) * 0x1p24f) + 1;
}

// The draw of a sample itself: its counter is beyond those of the elements.
RF_HD float sample_draw(uint64_t key, uint64_t id) {
  return exponential(philox(key, ~uint64_t{0}, id).v[0]);
}

// (g_1 .. g_d) / sqrt(g_1^2 + .. + g_d^2 + 2 E) with standard normal g and exponential E is uniform
// in the unit ball (2 E is the sum of two more squares: d of the d + 2 coordinates of a point on a
// sphere); so is (w_1 .. w_d) / (|w_1| + .. + |w_d| + E) with Laplace draws w in the L1 ball.
// 1 - 2^-21 makes up for all roundings: no point is outside.
RF_HD float start_scale(Norm norm, float eps, int64_t total, float extra) {
  const double sum = static_cast<double>(total) * 0x1p-24;
  const double size = norm == Norm::l2 ? sqrt(sum + 2.0 * static_cast<double>(extra))
                                       : sum + static_cast<double>(extra);
  const float scale = static_cast<float>(static_cast<double>(eps) / size * (1.0 - 0x1p-21));
  // Below 2^-100 products with draws would be rounded by more than that.
  return scale < 0x1p-100f ? 0.0f : (scale > FLT_MAX ? FLT_MAX : scale);
}

// x + eps * draw, rounded to nearest, then ball and box.
template <class Grid>
RF_HD float linf_start(float x, float draw, const StartScalars& s) {
  return linf_step<Grid>(x, draw, x, {s.scale, s.scale * magnitude(draw), s.low, s.high});
}

// x + scale * draw, rounded towards x, so that no coordinate grows; then the box.
template <class Grid>
RF_HD float scaled_start(float x, float draw, const StartScalars& s) {
  const float delta = draw * s.scale;
  const float size = magnitude(delta);
  const float inside = delta < 0.0f ? ball_low<Grid>(x, size) : ball_high<Grid>(x, size);
  const float sum = x + delta;  // NaN if x or eps is
  return (sum == sum ? clamp(inside, s.low, s.high) : float_of(0x7fc00000u)) + 0.0f;
}

}  // namespace rf
