// Numbers that are one for the batch or one for each sample.
#pragma once

#include "math/bits.h"
#include "ops.h"

namespace rf {

RF_HD bool is_uniform(const PerSample& amount) { return !amount.values || amount.stride == 0; }

RF_HD float amount_of(const PerSample& amount, int64_t sample) {
  return amount.values ? amount.values[sample * amount.stride] : amount.value;
}

}  // namespace rf
