// bf16 <-> fp32 for one number, and fp16 <-> fp32 for blocks. Compilers do not vectorise these conversions without AVX512-FP16, so
// the instructions are written out and chosen at run time.
#pragma once

#include <cstdint>

#include "math/bits.h"

namespace rf {

RF_HD float widen_bf16(uint16_t bits) { return float_of(static_cast<uint32_t>(bits) << 16); }

// `value` must be a number that bf16 holds (or a NaN).
RF_HD uint16_t narrow_bf16(float value) { return static_cast<uint16_t>(bits_of(value) >> 16); }

void bf16_to_float(const uint16_t* from, float* to, int64_t n);

void float_to_bf16(const float* from, uint16_t* to, int64_t n);

void half_to_float(const uint16_t* from, float* to, int64_t n);

// Every value must be a number that fp16 holds (or a NaN).
void float_to_half(const float* from, uint16_t* to, int64_t n);

}  // namespace rf
