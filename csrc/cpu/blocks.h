// The storage types of CPU kernels that work on blocks of floats: where a block of a tensor is, or
// is brought, as fp32, and how it goes back.
#pragma once

#include <cstdint>

#include "math/bits.h"
#include "math/grid.h"
#include "ops.h"

namespace rf {

// bf16 <-> fp32 for one number, and both half types for blocks: compilers do not vectorise fp16's
// conversions without AVX512-FP16, so the instructions are written out and chosen at run time.
RF_HD float widen_bf16(uint16_t bits) { return float_of(static_cast<uint32_t>(bits) << 16); }

// `value` must be a number that bf16 holds (or a NaN).
RF_HD uint16_t narrow_bf16(float value) { return static_cast<uint16_t>(bits_of(value) >> 16); }

void bf16_to_float(const uint16_t* from, float* to, int64_t n);

void float_to_bf16(const float* from, uint16_t* to, int64_t n);

void half_to_float(const uint16_t* from, float* to, int64_t n);

// Every value must be a number that fp16 holds (or a NaN).
void float_to_half(const float* from, uint16_t* to, int64_t n);

// Four words for each of `count` counters from (first, id) on.
void fill_words(uint32_t* words, int64_t count, uint64_t key, uint64_t first, uint64_t id);

constexpr int64_t kBlock = 512;  // a few blocks of floats stay in the first-level cache

// Blocks that a kernel takes as they are in memory.
template <class W, class G>
struct PlainBlocks {
  using Word = W;
  using Grid = G;
  struct Reader {
    const Word* read(const Word* from, int64_t) { return from; }
  };
  struct Writer {
    Word* place(Word* to) { return to; }
    void write(Word*, int64_t) {}
  };
};

template <class G, void (*widen)(const uint16_t*, float*, int64_t),
          void (*narrow)(const float*, uint16_t*, int64_t)>
struct WidenedBlocks {
  using Word = uint16_t;
  using Grid = G;
  struct Reader {
    alignas(64) float block[kBlock];
    const float* read(const uint16_t* from, int64_t n) {
      widen(from, block, n);
      return block;
    }
  };
  struct Writer {
    alignas(64) float block[kBlock];
    float* place(uint16_t*) { return block; }
    void write(uint16_t* to, int64_t n) { narrow(block, to, n); }
  };
};

using Fp32Blocks = PlainBlocks<float, Fp32Grid>;
using Bf16Words = PlainBlocks<uint16_t, Bf16Grid>;  // for kernels with lanes of their own
using Bf16Blocks = WidenedBlocks<Bf16Grid, bf16_to_float, float_to_bf16>;
using Fp16Blocks = WidenedBlocks<Fp16Grid, half_to_float, float_to_half>;

// For cloned functions, which cannot be templates: one for each grid.
#define RF_EACH_GRID(define) define(Fp32Grid) define(Bf16Grid) define(Fp16Grid)

// use(Blocks{}) with the blocks of a dtype.
template <class Use>
void with_blocks(DType dtype, const Use& use) {
  switch (dtype) {
    case DType::fp32:
      return use(Fp32Blocks{});
    case DType::bf16:
      return use(Bf16Blocks{});
    case DType::fp16:
      return use(Fp16Blocks{});
  }
}

}  // namespace rf
