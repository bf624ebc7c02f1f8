// Sums of products over blocks of floats, by lanes.
#pragma once

#include "cpu/sums.h"
#include "math/l2.h"

namespace rf {

struct Lanes {
  double dd[kLanes], dg[kLanes], gg[kLanes];
};

// Adds the products of n elements to the lanes, d = x_adv - x.
void add_products(const float* x_adv, const float* grad, const float* x, int64_t n, Lanes* lanes);

// The same for d alone.
void add_squares(const float* x_adv, const float* x, int64_t n, double* lanes);

// The sums of elements [begin, end); without grad only <d, d>.
template <class Blocks>
L2Sums sum_products(const void* x_adv, const void* grad, const void* x, int64_t begin,
                    int64_t end) {
  using Word = typename Blocks::Word;
  typename Blocks::Reader from, slope, origin;
  Lanes lanes = {};
  for (int64_t i = begin; i < end; i += kBlock) {
    const int64_t n = std::min(kBlock, end - i);
    const float* a = from.read(static_cast<const Word*>(x_adv) + i, n);
    const float* c = origin.read(static_cast<const Word*>(x) + i, n);
    if (grad) {
      add_products(a, slope.read(static_cast<const Word*>(grad) + i, n), c, n, &lanes);
    } else {
      add_squares(a, c, n, lanes.dd);
    }
  }
  return {add_lanes(lanes.dd), add_lanes(lanes.dg), add_lanes(lanes.gg)};
}

}  // namespace rf
