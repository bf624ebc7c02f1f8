// The scalar rules of the Linf ops: one signed-gradient step, then the Linf ball, then the box; and
// APGD's momentum step (Croce & Hein 2020, arXiv:2003.01690, Algorithm 1, line 7):
// x_adv + a (u - x_adv) + (1 - a) (x_adv - x_prev), where u is a step along the gradient, projected.
// The specification is roli_fast/ops/linf.py.
#pragma once

#include "math/bits.h"
#include "math/grid.h"
#include "ops.h"

namespace rf {

// Numbers that are one for the batch or one for each sample.
RF_HD bool is_uniform(const PerSample& amount) { return !amount.values || amount.stride == 0; }

RF_HD float amount_of(const PerSample& amount, int64_t sample) {
  return amount.values ? amount.values[sample * amount.stride] : amount.value;
}

struct LinfScalars {
  float eps;
  float step_size;
  float low;  // the box, already on the storage grid
  float high;
};

RF_HD LinfScalars scalars_of(const StepCall& call, int64_t sample) {
  return {amount_of(call.eps, sample), amount_of(call.step_size, sample), call.low, call.high};
}

// step * sign(grad); a zero or a non-finite gradient moves nothing. In bits: the gradient's sign is
// put on the step, and (magnitude - 1) leaves the range of finite numbers for zero, infinity, NaN.
RF_HD float signed_step(float grad, float step_size) {
  const uint32_t bits = bits_of(grad);
  const bool moves = (bits & 0x7fffffffu) - 1u < 0x7f7fffffu;
  return moves ? float_of(bits_of(step_size) ^ (bits & 0x80000000u)) : 0.0f;
}

// The smallest number of the grid inside the ball. The sign of the rounding error of x - eps tells
// whether the rounded difference fell outside, in which case one step up is inside.
template <class Grid>
RF_HD float ball_low(float x, float eps) {
  const float low = x - eps;
  return Grid::up(sum_error(x, -eps, low) > 0.0f ? next_up(low) : low);
}

template <class Grid>
RF_HD float ball_high(float x, float eps) {
  const float high = x + eps;
  return round_down<Grid>(sum_error(x, eps, high) < 0.0f ? next_down(high) : high);
}

// A NaN in `value` stays; `high` wins over `low`.
RF_HD float clamp(float value, float low, float high) {
  const float raised = value < low ? low : value;
  return raised > high ? high : raised;
}

// x_adv, grad and x are numbers of the grid; so is the result. Zero is always +0.
template <class Grid>
RF_HD float linf_step(float x_adv, float grad, float x, const LinfScalars& s) {
  const float moved = Grid::nearest(x_adv + signed_step(grad, s.step_size));
  const float inside = clamp(moved, ball_low<Grid>(x, s.eps), ball_high<Grid>(x, s.eps));
  const float boxed = clamp(inside, s.low, s.high);
  const float difference = x - s.eps;  // NaN if x or eps is: no ball to be inside of
  return (difference == difference ? boxed : float_of(0x7fc00000u)) + 0.0f;
}

// With momentum 1 there is no previous iterate yet: the point is u, whatever x_prev holds.
RF_HD float apgd_point(float x_adv, float x_prev, float u, float momentum) {
  const float mixed = (x_adv + momentum * (u - x_adv)) + (1.0f - momentum) * (x_adv - x_prev);
  return momentum == 1.0f ? u : mixed;
}

template <class Grid>
RF_HD float apgd_linf_step(float x_adv, float x_prev, float grad, float x, float momentum,
                           const LinfScalars& s) {
  const float stepped = clamp(x_adv + signed_step(grad, s.step_size), x - s.eps, x + s.eps);
  const float point = apgd_point(x_adv, x_prev, clamp(stepped, s.low, s.high), momentum);
  const float inside =
      clamp(Grid::nearest(point), ball_low<Grid>(x, s.eps), ball_high<Grid>(x, s.eps));
  const float boxed = clamp(inside, s.low, s.high);
  const float difference = x - s.eps;  // NaN if x or eps is: no ball to be inside of
  return (difference == difference ? boxed : float_of(0x7fc00000u)) + 0.0f;
}

}  // namespace rf
