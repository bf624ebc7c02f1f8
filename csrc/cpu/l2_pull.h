// The projection of points of a sample by a scale that is known.
#pragma once

#include "math/grid.h"
#include "math/l2.h"

namespace rf {

// l2_pull of n elements. `out` may be `points` itself.
void pull(Fp32Grid, const float* points, const float* x, float* out, int64_t n, L2Scale scale,
          L2Limits limits);
void pull(Bf16Grid, const float* points, const float* x, float* out, int64_t n, L2Scale scale,
          L2Limits limits);
void pull(Fp16Grid, const float* points, const float* x, float* out, int64_t n, L2Scale scale,
          L2Limits limits);

}  // namespace rf
