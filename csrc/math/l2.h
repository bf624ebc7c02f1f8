// The rules of the L2 ops: the scale of a sample from its three sums, and the move of one element.
// The specification is roli_fast/ops/l2.py, which also says why results stay in the ball.
// Sums and what follows from them once a sample are fp64, an element is fp32.
#pragma once

#include <cmath>

#include "math/bits.h"
#include "math/grid.h"
#include "math/linf.h"

namespace rf {

// Over one sample, d = x_adv - x: <d, d>, <d, g>, <g, g>.
struct L2Sums {
  double dd;
  double dg;
  double gg;
  RF_HD void operator+=(const L2Sums& other) {
    dd += other.dd;
    dg += other.dg;
    gg += other.gg;
  }
};

struct L2Limits {
  double eps;
  double slack;  // how far rounding every element to its nearest number can move a sample
  float low;     // the box, already on the storage grid
  float high;
};

// An element's new distance from x is alpha * d + stride, where stride = beta * (power * g). The two
// masks are all ones for yes and 0 for no: compilers do not vectorise a choice by a constant bool.
struct L2Scale {
  float alpha;
  float power;  // of two: brings the gradient, of any magnitude, near 1
  float beta;
  uint32_t inside;  // the ball cuts nothing off: x_adv + stride, alpha is not used
  uint32_t toward;  // round toward x: rounding to the nearest number might leave the ball
};

constexpr double kL2SumError = 0x1p-33;      // of a sum of up to 2^31 products, in any order
constexpr double kL2ElementError = 0x1p-21;  // of the fp32 steps from d and g to a distance
constexpr double kL2Smallest = 0x1p-100;     // below it a radius counts as 0: fp32 underflows
constexpr double kL2Longest = 0x1p100;       // beyond it a step counts as that: fp32 overflows

// How far a sample may move when `length` values within [low, high] are rounded to their nearest.
inline double rounding_slack(int64_t length, double low, double high, DType dtype) {
  int exponent = 0;
  const double mantissa = std::frexp(std::fmax(std::fabs(low), std::fabs(high)), &exponent);
  const int digits = dtype == DType::fp32 ? 24 : dtype == DType::bf16 ? 8 : 11;
  const int smallest = (dtype == DType::fp16 ? -14 : -126) - digits + 1;  // spacing of subnormals
  const int spacing = exponent - digits - (mantissa == 0.5 ? 1 : 0);
  return 1.01 * std::sqrt(static_cast<double>(length)) *
         std::ldexp(0.5, spacing > smallest ? spacing : smallest);
}

RF_HD float finite_or_zero(float grad) { return is_finite(grad) ? grad : 0.0f; }

// 2^-e for a length in [2^e, 2^(e + 1)), as far as fp32 goes.
RF_HD float inverse_power(double length) {
  uint64_t bits;
  memcpy(&bits, &length, sizeof(bits));
  const int exponent = 1023 - static_cast<int>((bits >> 52) & 0x7ffu);
  const int within = exponent < -126 ? -126 : (exponent > 127 ? 127 : exponent);
  return float_of(static_cast<uint32_t>(within + 127) << 23);
}

// A sample whose distance will be at most `reach` unless it is shrunk. A NaN or an infinity anywhere
// makes the whole sample NaN.
RF_HD L2Scale l2_shrink(double reach, bool inside, const L2Limits& limits) {
  double ratio = limits.eps < kL2Smallest ? 0.0 : limits.eps / reach;
  ratio = ratio < 0x1p-126 ? 0.0 : ratio;  // a subnormal float would be wrong by too much
  const bool known = reach < static_cast<double>(INFINITY);
  L2Scale scale;
  scale.alpha = static_cast<float>(known ? ratio : static_cast<double>(NAN));
  scale.power = 1.0f;
  scale.beta = 0.0f;
  scale.inside = inside ? ~0u : 0u;
  scale.toward = inside && reach + limits.slack <= limits.eps ? 0u : ~0u;
  return scale;
}

// Into the ball, without a step. Compared as it is: a sample inside the ball stays what it is.
RF_HD L2Scale l2_projection(double dd, const L2Limits& limits) {
  const double distance = sqrt(dd);
  const double reach = sqrt(dd + kL2SumError * dd) + kL2ElementError * distance;
  const bool inside = dd <= limits.eps * limits.eps && limits.eps >= kL2Smallest;
  return l2_shrink(reach, inside, limits);
}

// A step along g / ||g||, then into the ball.
RF_HD L2Scale l2_scale(const L2Sums& sums, double step_size, const L2Limits& limits) {
  const double length = sqrt(sums.gg);
  step_size = step_size > kL2Longest ? kL2Longest : step_size;
  const double rate = sums.gg > 0.0 ? step_size / length : 0.0;
  if (rate == 0.0) return l2_projection(sums.dd, limits);
  const double farthest = sqrt(sums.dd) + step_size;
  const double squared = (sums.dd + (2.0 * rate) * sums.dg) + step_size * step_size;
  const double error = kL2SumError * (farthest * farthest);
  const double reach = sqrt((squared < 0.0 ? 0.0 : squared) + error) + kL2ElementError * farthest;
  const bool inside = reach <= limits.eps && limits.eps >= kL2Smallest;
  L2Scale scale = l2_shrink(reach, inside, limits);
  scale.power = inverse_power(length);
  const double beta = rate / static_cast<double>(scale.power);
  const double ratio = limits.eps < kL2Smallest ? 0.0 : limits.eps / reach;
  scale.beta = static_cast<float>(inside ? beta : ratio * beta);
  return scale;
}

// The number of the grid next to `value` in one direction.
template <class Grid>
RF_HD float neighbour(float value, bool down) {
  const uint32_t bits = bits_of(value);
  const uint32_t size = bits & 0x7fffffffu;
  const uint32_t sign = down ? 0x80000000u : 0u;
  const bool shrinks = (size != 0) & (((bits ^ sign) >> 31) != 0);
  const float next = float_of(shrinks ? bits - 1u : (size | sign) + 1u);
  return down ? round_down<Grid>(next) : Grid::up(next);
}

// a + b rounded to the grid: to the nearest number or, if that is farther from x than the exact sum,
// to the next one toward x. Then the box. Zero is always +0, a NaN stays.
template <class Grid>
RF_HD float l2_place(float a, float b, float x, uint32_t toward, const L2Limits& limits) {
  const float sum = a + b;
  const float nearest = Grid::nearest(sum);
  const float excess = (nearest - sum) - sum_error(a, b, sum);
  const bool above = nearest > x;
  const bool beyond = (above & (excess > 0.0f)) | ((nearest < x) & (excess < 0.0f));
  const float back = choose(toward, neighbour<Grid>(nearest, above), nearest);
  const float placed = beyond ? back : nearest;
  return clamp(placed, limits.low, limits.high) + 0.0f;
}

RF_HD float l2_stride(float grad, const L2Scale& s) {
  return s.beta * (s.power * finite_or_zero(grad));
}

template <class Grid>
RF_HD float l2_move(float x_adv, float grad, float x, const L2Scale& s, const L2Limits& limits) {
  const float stride = l2_stride(grad, s);
  const float distance = s.alpha * (x_adv - x) + stride;
  return l2_place<Grid>(choose(s.inside, x_adv, x), choose(s.inside, stride, distance), x, s.toward,
                        limits);
}

// `point` need not lie on the grid.
template <class Grid>
RF_HD float l2_pull(float point, float x, const L2Scale& s, const L2Limits& limits) {
  const float distance = s.alpha * (point - x);
  return l2_place<Grid>(choose(s.inside, point, x), choose(s.inside, 0.0f, distance), x, s.toward,
                        limits);
}

template <class Call>
RF_HD L2Limits limits_of(const Call& call, int64_t sample) {
  return {static_cast<double>(amount_of(call.eps, sample)), call.slack, call.low, call.high};
}

template <class Call>
RF_HD L2Scale scale_of(const Call& call, const L2Sums& sums, int64_t sample) {
  return l2_scale(sums, static_cast<double>(amount_of(call.step_size, sample)),
                  limits_of(call, sample));
}

// The point of an L2 step before the last projection, in fp32, not on the grid.
RF_HD float apgd_l2_point(float x_adv, float x_prev, float grad, float x, float momentum,
                          const L2Scale& s, const L2Limits& limits) {
  const float stride = l2_stride(grad, s);
  const float distance = s.alpha * (x_adv - x) + stride;
  const float u = choose(s.inside, x_adv, x) + choose(s.inside, stride, distance);
  const float point = apgd_point(x_adv, x_prev, clamp(u, limits.low, limits.high), momentum);
  return clamp(point, -0x1p120f, 0x1p120f);  // a number, also where iterates far apart overflow
}

}  // namespace rf
