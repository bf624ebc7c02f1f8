#include <cstring>

#include "cpu/dispatch.h"
#include "cpu/parallel.h"
#include "cpu/blocks.h"
#include "ops.h"
#include "math/lora.h"

namespace rf {
namespace {

constexpr int64_t kElements = 512;  // words and elements of a block stay in the first-level cache

#define RF_MASK(Word)                                                                         \
  RF_CLONES void mask(Word* __restrict data, const uint32_t* __restrict words, int64_t n,     \
                      uint32_t threshold) {                                                   \
    for (int64_t i = 0; i < n; ++i) data[i] = dropout_keeps(words[i], threshold) ? data[i] : 0; \
  }
RF_MASK(uint16_t)
RF_MASK(uint32_t)
RF_MASK(uint64_t)
#undef RF_MASK

template <class Word>
void run(const LoraDropoutCall& call, int threads) {
  const Word* x = static_cast<const Word*>(call.x);
  Word* out = static_cast<Word*>(call.out);
  const uint64_t seed = static_cast<uint64_t>(*call.seed);
  parallel_for(call.n, threads, [&](int64_t begin, int64_t end) {
    alignas(64) uint32_t words[kElements];
    for (int64_t at = begin; at < end; at += kElements) {  // a multiple of 64
      const int64_t n = std::min(kElements, end - at);
      fill_words(words, (n + 3) / 4, seed, static_cast<uint64_t>(at) / 4, 0);
      if (out != x) memcpy(out + at, x + at, n * sizeof(Word));
      mask(out + at, words, n, call.threshold);
    }
  });
}

}  // namespace

void lora_dropout_cpu(const LoraDropoutCall& call, int threads) {
  if (call.bytes == 2) return run<uint16_t>(call, threads);
  if (call.bytes == 4) return run<uint32_t>(call, threads);
  run<uint64_t>(call, threads);
}

}  // namespace rf
