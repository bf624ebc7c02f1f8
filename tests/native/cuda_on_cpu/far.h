// Tensors of more than 2^32 elements for the emulated CUDA kernels: as long as they claim, but in
// memory that the system gives only where it is touched. Only the blocks that work on the last
// samples are run, and the CPU's kernels make the same few samples.
#pragma once

#include <sys/mman.h>

#include <cstdio>
#include <cstdlib>
#include <random>

#include "block.h"
#include "cuda/storage.cuh"
#include "ops.h"

namespace rf {
namespace cuda {

constexpr int64_t kLength = 1024, kSamples = (int64_t{1} << 22) + 3;  // 2^32 elements and more
constexpr int64_t kTested = 2, kFirst = kSamples - kTested;
constexpr int64_t kFirstElement = kFirst * kLength;

inline int differences = 0;

// Zeros that take memory where they are touched.
template <class Word>
Word* sparse(int64_t n) {
  void* memory = mmap(nullptr, n * sizeof(Word), PROT_READ | PROT_WRITE,
                      MAP_PRIVATE | MAP_ANONYMOUS | MAP_NORESERVE, -1, 0);
  if (memory == MAP_FAILED) {
    printf("no address space\n");
    exit(77);
  }
  return static_cast<Word*>(memory);
}

// A tensor of bf16 of which only the last samples hold numbers.
struct Far {
  uint16_t* all = sparse<uint16_t>(kSamples * kLength);

  Far(unsigned seed, float scale, float shift) {
    std::mt19937 bits(seed);
    std::uniform_real_distribution<float> uniform;
    for (int64_t i = kFirstElement; i < kSamples * kLength; ++i) {
      all[i] = Bf16::narrow(Bf16Grid::nearest(uniform(bits) * scale + shift));
    }
  }
  uint16_t* tested() const { return all + kFirstElement; }
  std::vector<uint16_t> copy() const { return {tested(), tested() + kTested * kLength}; }
};

// Runs the blocks of the last samples, where blockIdx.y is the sample.
template <class Kernel>
void run_last(unsigned blocks, const Kernel& kernel) {
  gridDim = {blocks, static_cast<unsigned>(kSamples)};
  for (int64_t sample = kFirst; sample < kSamples; ++sample) {
    for (unsigned block = 0; block < blocks; ++block) {
      blockIdx = {block, static_cast<unsigned>(sample)};
      if (!fibers::run_block(kThreads, kernel)) ++differences;
    }
  }
}

inline void compare(const char* op, const uint16_t* there, const std::vector<uint16_t>& here) {
  if (memcmp(there, here.data(), here.size() * 2) == 0) return;
  ++differences;
  printf("%s differs beyond 2^32 elements\n", op);
}

struct Amounts {
  float* all = sparse<float>(kSamples);
  explicit Amounts(float value) { all[kFirst] = value, all[kFirst + 1] = value / 2; }
  PerSample far() const { return {all, 0, 1}; }
  PerSample near() const { return {all + kFirst, 0, 1}; }
};

inline const Far x(1, 1.0f, 0.0f), x_adv(2, 1.0f, 0.0f), grad(3, 2.0f, -1.0f);
inline const Amounts linf_eps(0.1f), eps(3.0f), l1_eps(40.0f), step(0.05f), fraction(0.5f);

}  // namespace cuda
}  // namespace rf
