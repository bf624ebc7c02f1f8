// e^x for x <= 0 from single operations, so that loops with it vectorise; error below 3 ulp of fp32.
#pragma once

#include "math/bits.h"

namespace rf {

// 0 below -87, where the result is no normal number any more; a NaN stays one.
RF_HD float exp_down(float x) {
  const float shift = 12582912.0f;  // 1.5 * 2^23 leaves a float no room for fractions
  const float shifted = x * 1.44269504f + shift;
  const float n = shifted - shift;
  // ln 2 as the sum of a number whose products with n are exact, and what is left
  const float r = (x - n * 0.693359375f) + n * 2.12194440e-4f;
  // the series: |r| <= ln 2 / 2, so the first term left out is 1.2e-7
  float sum = 1.0f / 720.0f;
  sum = sum * r + 1.0f / 120.0f;
  sum = sum * r + 1.0f / 24.0f;
  sum = sum * r + 1.0f / 6.0f;
  sum = sum * r + 0.5f;
  sum = sum * r + 1.0f;
  sum = sum * r + 1.0f;
  const float power = float_of((bits_of(shifted) << 23) + 0x3f800000u);
  return x < -87.0f ? 0.0f : sum * power;
}

}  // namespace rf
