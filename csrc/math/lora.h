// The scalar rules of the LoRA ops.
#pragma once

#include "math/bits.h"
#include "math/philox.h"

namespace rf {

// The four words of elements 4 counter .. 4 counter + 3 of a dropout mask.
RF_HD Words dropout_words(uint64_t seed, uint64_t counter) { return philox(seed, counter, 0); }

RF_HD bool dropout_keeps(uint32_t word, uint32_t threshold) { return word >= threshold; }

// One more term of an element of B A, in the order of the rank.
RF_HD float merge_term(float sum, float b, float a) { return sum + b * a; }

// The scale with which sums of 0 leave a weight as it is: adding -0 does not even change -0.
constexpr float kCopy = -1.0f;

template <class Grid>
RF_HD float merge_value(float weight, float scale, float sum) {
  return Grid::nearest(weight + scale * sum);
}

}  // namespace rf
