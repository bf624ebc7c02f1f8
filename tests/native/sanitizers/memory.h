// Tensors that are allocated to the byte, so that AddressSanitizer sees a step beyond them, and what
// they are filled with.
#pragma once

#include <cmath>
#include <cstring>
#include <memory>
#include <random>

#include "cpu/blocks.h"
#include "math/bits.h"
#include "math/grid.h"
#include "ops.h"

namespace rf {

// The last byte is the last of its allocation; the first lies `shift` bytes behind its begin.
class Memory {
 public:
  Memory(int64_t size, int64_t shift) : size_(size), shift_(shift), block_(new char[size + shift]) {
    memset(block_.get(), 0, size + shift);
  }
  Memory(const Memory& other) : Memory(other.size_, other.shift_) {
    memcpy(block_.get(), other.block_.get(), size_ + shift_);
  }
  char* data() const { return block_.get() + shift_; }
  bool operator==(const Memory& other) const {
    return size_ == other.size_ && memcmp(data(), other.data(), size_) == 0;
  }

 private:
  int64_t size_, shift_;
  std::unique_ptr<char[]> block_;
};

struct Shape {
  int64_t samples, length, plane;  // plane: see RandomStartCall
};

struct Case {
  Shape shape;
  DType dtype;
  int64_t shift;
  bool wild;  // NaN, infinite, negative and huge numbers, among the amounts as well

  int64_t word() const { return dtype == DType::fp32 ? 4 : 2; }
  int64_t count() const { return shape.samples * shape.length; }
};

inline float wild_number(int64_t i) {
  const float numbers[] = {NAN, INFINITY, -INFINITY, -0.0f, 1e-42f, -3e38f, 65504.0f, 1e-7f};
  return numbers[i % 8];
}

inline Memory tensor(const Case& c, unsigned seed, float scale, float centre) {
  std::mt19937 bits(seed);
  std::normal_distribution<float> normal;
  Memory memory(c.count() * c.word(), c.shift * c.word());
  for (int64_t i = 0; i < c.count(); ++i) {
    float value = centre + scale * normal(bits);
    if (c.wild && i % 11 == 3) value = wild_number(i / 11 + seed);
    if (c.dtype == DType::fp32) memcpy(memory.data() + i * 4, &value, 4);
    if (c.dtype == DType::fp32) continue;
    uint16_t word = static_cast<uint16_t>(bits_of(Bf16Grid::nearest(value)) >> 16);
    value = Fp16Grid::nearest(value);
    if (c.dtype == DType::fp16) float_to_half(&value, &word, 1);
    memcpy(memory.data() + i * 2, &word, 2);
  }
  return memory;
}

// One number a sample, allocated to the byte.
inline Memory amounts(const Case& c, float first, float step) {
  Memory memory(c.shape.samples * 4, 0);
  for (int64_t i = 0; i < c.shape.samples; ++i) {
    const float value = c.wild && i % 3 == 1 ? wild_number(i) : first + step * (i % 5);
    memcpy(memory.data() + i * 4, &value, 4);
  }
  return memory;
}

inline PerSample of(const Memory& memory) {
  return {reinterpret_cast<float*>(memory.data()), 0.0f, 1};
}

}  // namespace rf
