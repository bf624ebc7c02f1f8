// The storage types: a block of memory as floats and back, and whole samples shared out to threads.
#pragma once

#include <algorithm>
#include <atomic>
#include <cstdint>
#include <cstring>

#include "cpu/half.h"
#include "cpu/parallel.h"
#include "math/grid.h"

namespace rf {

constexpr int64_t kBlock = 512;  // a few blocks of floats stay in the first-level cache

struct Fp32Storage {
  using Word = float;
  using Grid = Fp32Grid;
  static void load(const Word* from, float* to, int64_t n) { memcpy(to, from, n * sizeof(Word)); }
  static void store(const float* from, Word* to, int64_t n) { memcpy(to, from, n * sizeof(Word)); }
};

struct Bf16Storage {
  using Word = uint16_t;
  using Grid = Bf16Grid;
  static void load(const Word* from, float* to, int64_t n) { bf16_to_float(from, to, n); }
  static void store(const float* from, Word* to, int64_t n) { float_to_bf16(from, to, n); }
};

struct Fp16Storage {
  using Word = uint16_t;
  using Grid = Fp16Grid;
  static void load(const Word* from, float* to, int64_t n) { half_to_float(from, to, n); }
  static void store(const float* from, Word* to, int64_t n) { float_to_half(from, to, n); }
};

// The floats of a block: where they are if memory holds floats, else in `buffer`.
template <class Storage>
const float* floats(const typename Storage::Word* from, float* buffer, int64_t n) {
  Storage::load(from, buffer, n);
  return buffer;
}

template <>
inline const float* floats<Fp32Storage>(const float* from, float*, int64_t) {
  return from;
}

// body(sample) for every sample, each on one thread, so that results do not depend on how many. A
// thread that is done takes the next: samples differ in their work.
template <class Body>
void parallel_samples(int64_t samples, int64_t per_sample, int threads, const Body& body) {
  const int64_t useful = (samples * per_sample + kGrain - 1) / kGrain;
  const int64_t parts = std::min({static_cast<int64_t>(threads), samples, useful});
  if (parts <= 1) {
    for (int64_t sample = 0; sample < samples; ++sample) body(sample);
    return;
  }
  std::atomic<int64_t> next{0};
  run_parts(parts, [&](int64_t) {
    for (int64_t sample = next++; sample < samples; sample = next++) body(sample);
  });
}

}  // namespace rf
