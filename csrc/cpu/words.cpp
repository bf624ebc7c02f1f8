#include "cpu/words.h"

#include "cpu/dispatch.h"
#include "math/philox.h"

namespace rf {

RF_CLONES void fill_words(uint32_t* __restrict words, int64_t count, uint64_t key, uint64_t first,
                          uint64_t id) {
  for (int64_t i = 0; i < count; ++i) {
    const Words drawn = philox(key, first + static_cast<uint64_t>(i), id);
    words[4 * i] = drawn.v[0];
    words[4 * i + 1] = drawn.v[1];
    words[4 * i + 2] = drawn.v[2];
    words[4 * i + 3] = drawn.v[3];
  }
}

}  // namespace rf
