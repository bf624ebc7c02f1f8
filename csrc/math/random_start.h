// The scalar rules of the random starts. An element's words are philox(key, element / 4, sample's
// id)[element % 4], `element` counted in logical order. The specification is
// roli_fast/ops/random_start.py; results agree with it bit for bit.
#pragma once

#include <cfloat>

#include "math/draws.h"
#include "math/grid.h"
#include "math/linf_step.h"
#include "ops.h"

namespace rf {

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
