#include "cpu/products.h"

#include "cpu/dispatch.h"

namespace rf {

RF_CLONES void add_products(const float* __restrict x_adv, const float* __restrict grad,
                            const float* __restrict x, int64_t n, Lanes* __restrict lanes) {
  Lanes sums = *lanes;
  const auto add = [&](int64_t i, int lane) {
    const double d = static_cast<double>(x_adv[i]) - static_cast<double>(x[i]);
    const double g = finite_or_zero(grad[i]);
    sums.dd[lane] += d * d;
    sums.dg[lane] += d * g;
    sums.gg[lane] += g * g;
  };
  int64_t i = 0;
  for (; i + kLanes <= n; i += kLanes) {
    for (int lane = 0; lane < kLanes; ++lane) add(i + lane, lane);
  }
  for (int lane = 0; i + lane < n; ++lane) add(i + lane, lane);
  *lanes = sums;
}

RF_CLONES void add_squares(const float* __restrict x_adv, const float* __restrict x, int64_t n,
                           double* __restrict lanes) {
  double sums[kLanes];
  for (int lane = 0; lane < kLanes; ++lane) sums[lane] = lanes[lane];
  const auto add = [&](int64_t i, int lane) {
    const double d = static_cast<double>(x_adv[i]) - static_cast<double>(x[i]);
    sums[lane] += d * d;
  };
  int64_t i = 0;
  for (; i + kLanes <= n; i += kLanes) {
    for (int lane = 0; lane < kLanes; ++lane) add(i + lane, lane);
  }
  for (int lane = 0; i + lane < n; ++lane) add(i + lane, lane);
  for (int lane = 0; lane < kLanes; ++lane) lanes[lane] = sums[lane];
}

}  // namespace rf
