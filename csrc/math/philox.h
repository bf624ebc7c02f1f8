// Philox4x32-10 (Salmon et al. 2011, "Parallel random numbers: as easy as 1, 2, 3"): random words
// as a function of a key and a counter, so that any element can be drawn on its own.
#pragma once

#include "math/bits.h"

namespace rf {

struct Words {
  uint32_t v[4];
};

RF_HD Words philox(uint64_t key, uint64_t counter_low, uint64_t counter_high) {
  uint32_t a = static_cast<uint32_t>(counter_low), b = static_cast<uint32_t>(counter_low >> 32);
  uint32_t c = static_cast<uint32_t>(counter_high), d = static_cast<uint32_t>(counter_high >> 32);
  uint32_t k0 = static_cast<uint32_t>(key), k1 = static_cast<uint32_t>(key >> 32);
  for (int round = 0; round < 10; ++round) {
    const uint64_t left = static_cast<uint64_t>(a) * 0xd2511f53u;
    const uint64_t right = static_cast<uint64_t>(c) * 0xcd9e8d57u;
    a = static_cast<uint32_t>(right >> 32) ^ b ^ k0;
    b = static_cast<uint32_t>(right);
    c = static_cast<uint32_t>(left >> 32) ^ d ^ k1;
    d = static_cast<uint32_t>(left);
    k0 += 0x9e3779b9u;
    k1 += 0xbb67ae85u;
  }
  return {{a, b, c, d}};
}

}  // namespace rf
