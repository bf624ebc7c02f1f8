// The rules of FAB's step (Croce & Hein 2020, arXiv:1907.02044, equations 4 to 8): each end, the
// point and x, goes the shortest way to the plane gap + normal . d = 0 that stays in the box; the
// step ends between the two. The specification is roli_fast/ops/fab.py. Sums and what
// follows from them once a sample are fp64, an element is fp32.
#pragma once

#include <cfloat>
#include <cmath>

#include "math/linf.h"
#include "math/bits.h"
#include "math/grid.h"
#include "math/l2.h"
#include "ops.h"

namespace rf {

// How the entries of one end move. linf and l2: by min(room, slope * level), where slope is 1 for
// linf and power * |normal| for l2. l1: all the way where |normal| is above the cut, by the share
// `level` of it at the cut.
struct FabMove {
  uint32_t flip;  // of the normal's sign: an entry moves so that the gap closes
  float level;
  float cut;
  float power;  // of two: brings the normal, of any magnitude, near 1
};

struct FabBox {
  float low;  // already on the storage grid
  float high;
};

// The mask is made by arithmetic: of two conditions on one number compilers make a choice that they
// do not vectorise.
RF_HD float fab_room(float from, float normal, const FabMove& move, const FabBox& box) {
  const uint32_t moves = 0u - ((0u - (bits_of(normal) & 0x7fffffffu)) >> 31);  // all ones, or 0
  const float direction = float_of(bits_of(normal) ^ move.flip);
  const float way = direction > 0.0f ? box.high - from : from - box.low;
  return float_of(bits_of(way > 0.0f ? way : 0.0f) & moves);
}

// What |normal| is multiplied by in the two sums of a search: the room of an entry that goes all
// the way, and what one unit of level adds for an entry that does not.
struct FabShare {
  float reach;
  float gain;
};

template <Norm kNorm>
RF_HD float fab_slope(float size, const FabMove& move) {
  return kNorm == Norm::l2 ? move.power * size : 1.0f;
}

template <Norm kNorm>
RF_HD FabShare fab_share(float size, float room, const FabMove& move) {
  if (kNorm == Norm::l1) return {size > move.cut ? room : 0.0f, size == move.cut ? room : 0.0f};
  const float slope = fab_slope<kNorm>(size, move);
  const bool full = slope * move.level >= room;
  return {full ? room : 0.0f, full ? 0.0f : slope};
}

template <Norm kNorm>
RF_HD float fab_distance(float size, float room, const FabMove& move) {
  if (kNorm == Norm::l1) {
    const float at_cut = size == move.cut ? move.level * room : 0.0f;
    return size > move.cut ? room : at_cut;
  }
  const float step = fab_slope<kNorm>(size, move) * move.level;
  return step < room ? step : room;
}

// Over one sample: <normal, x - point>, <normal, normal>.
struct FabProducts {
  double way;
  double squares;
};

// Over one sample: |normal| times each number of FabShare.
struct FabSums {
  double reach;
  double gain;
};

// Finds the move of one end, pass by pass: make the sums for `move`, update, until found. linf and
// l2: the closed part of the gap is concave and piecewise linear in the level, so that Newton's
// method from 0 never passes the root: entries only ever become full, and when none does any more
// the level stays. l1: bisection for the smallest cut beyond which the gap does not close.
template <Norm kNorm, class Grid>
struct FabSearch {
  static constexpr uint32_t kGrain = 1u << (24 - Grid::kDigits);  // of the bits of a cut

  double need;
  FabMove move;
  bool found = false;
  double gain = 0.0;  // of the last sums
  uint32_t below = 0, above = 0x7f800000;  // bits of cuts: at `below` the gap closes beyond it
  float share = 0.0f;                      // that closes the rest at `above`

  RF_HD FabSearch(double gap, float power)
      : need(fabs(gap)), move{gap >= 0.0 ? 0x80000000u : 0u, 0.0f, 0.0f, power} {}

  // linf: whether an entry stops at the level, which then is the length of the move.
  RF_HD bool measured() const { return kNorm == Norm::linf && gain > 0.0; }

  RF_HD void update(const FabSums& sums) {
    gain = sums.gain;
    const double left = need - sums.reach;
    const double quotient = (left > 0.0 ? left : 0.0) / sums.gain;
    const double most = static_cast<double>(FLT_MAX);
    const float next = static_cast<float>(quotient < most ? quotient : most);
    if (kNorm == Norm::l1) {
      bisect(sums.reach < need, next);
    } else {
      found = !(next > move.level);
      move.level = found ? move.level : next;
    }
  }

  RF_HD void bisect(bool open, float rest) {
    const uint32_t at = bits_of(move.cut);
    (open ? above : below) = at;
    share = open ? rest : share;
    found = above - below <= kGrain;  // at once where even all entries leave the gap open
    move.cut = float_of(found ? above : below + (above - below) / 2 / kGrain * kGrain);
    move.level = found ? share : 0.0f;
  }
};

// The length of a move: the largest distance, the root of the sum of squares, the sum.
template <Norm kNorm>
RF_HD double fab_join(double a, double b) {
  return kNorm == Norm::linf ? (a > b ? a : b) : a + b;
}

template <Norm kNorm>
RF_HD double fab_term(float distance) {
  const double wide = static_cast<double>(distance);
  return kNorm == Norm::l2 ? wide * wide : wide;
}

template <Norm kNorm>
RF_HD double fab_length(double total) {
  const double length = kNorm == Norm::l2 ? sqrt(total) : total;
  return length > 1e-8 ? length : 1e-8;
}

struct FabPlan {
  FabMove point;
  FabMove x;
  float alpha;  // share of x's end
  float eta;
};

// The whole course of a sample: searches for both ends, then the plan. A NaN or an infinity in the
// point or x, and a NaN in value or alpha_max, make the sample NaN.
template <Norm kNorm, class Grid>
struct FabCourse {
  FabSearch<kNorm, Grid> point;
  FabSearch<kNorm, Grid> x;
  bool known;

  RF_HD FabCourse(double value, const FabProducts& products)
      : point(value, inverse_power(sqrt(products.squares))),
        x(value + products.way, point.move.power),
        known((products.way - products.way == 0.0) & (value == value)) {}

  // From both totals of fab_term.
  RF_HD FabPlan plan(double point_total, double x_total, float alpha_max, float eta) const {
    const double here = fab_length<kNorm>(point_total), there = fab_length<kNorm>(x_total);
    const float share = static_cast<float>(here / (here + there));
    const float alpha = share <= alpha_max ? share : alpha_max;
    return {point.move, x.move, known ? alpha : float_of(0x7fc00000u), eta};
  }
};

template <Norm kNorm>
RF_HD float fab_end(float from, float normal, const FabMove& move, float eta, const FabBox& box) {
  const float room = fab_room(from, normal, move, box);
  const float distance = fab_distance<kNorm>(magnitude(normal), room, move);
  const uint32_t sign = (bits_of(normal) ^ move.flip) & 0x80000000u;
  return from + eta * float_of(bits_of(distance) | sign);
}

// Zero is always +0.
template <Norm kNorm, class Grid>
RF_HD float fab_step(float point, float grad, float x, const FabPlan& plan, const FabBox& box) {
  const float normal = finite_or_zero(grad);
  const float here = fab_end<kNorm>(point, normal, plan.point, plan.eta, box);
  const float there = fab_end<kNorm>(x, normal, plan.x, plan.eta, box);
  const float mixed = here * (1.0f - plan.alpha) + there * plan.alpha;
  return clamp(Grid::nearest(mixed), box.low, box.high) + 0.0f;
}

}  // namespace rf
