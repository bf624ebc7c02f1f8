#include "cpu/l2_pull.h"

#include "cpu/dispatch.h"

namespace rf {

#define RF_PULL(Grid)                                                                            \
  RF_CLONES void pull(Grid, const float* points, const float* x, float* out, int64_t n,          \
                      L2Scale scale, L2Limits limits) {                                          \
    _Pragma("GCC ivdep") for (int64_t i = 0; i < n; ++i) {                                       \
      out[i] = l2_pull<Grid>(points[i], x[i], scale, limits);                                    \
    }                                                                                            \
  }
RF_PULL(Fp32Grid)
RF_PULL(Bf16Grid)
RF_PULL(Fp16Grid)
#undef RF_PULL

}  // namespace rf
