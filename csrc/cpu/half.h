// fp16 <-> fp32 for blocks. Compilers do not vectorise these conversions without AVX512-FP16, so
// the instructions are written out and chosen at run time.
#pragma once

#include <cstdint>

namespace rf {

void half_to_float(const uint16_t* from, float* to, int64_t n);

// Every value must be a number that fp16 holds (or a NaN).
void float_to_half(const float* from, uint16_t* to, int64_t n);

}  // namespace rf
