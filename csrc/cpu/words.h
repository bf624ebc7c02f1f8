// Random words for blocks of elements.
#pragma once

#include <cstdint>

namespace rf {

// Four words for each of `count` counters from (first, id) on.
void fill_words(uint32_t* words, int64_t count, uint64_t key, uint64_t first, uint64_t id);

}  // namespace rf
