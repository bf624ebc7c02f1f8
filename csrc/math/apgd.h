// The rules of APGD's momentum step (Croce & Hein 2020, arXiv:2003.01690, Algorithm 1, line 7):
// x_adv + a (u - x_adv) + (1 - a) (x_adv - x_prev), where u is a step along the gradient, projected.
// The specification is roli_fast/ops/linf.py and l2.py.
#pragma once

#include "math/l2.h"
#include "math/linf_step.h"
#include "ops.h"

namespace rf {

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
