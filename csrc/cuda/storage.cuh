// The storage types of CUDA kernels, and the shape of a block. Also compiled by g++ in tests.
#pragma once

#include <cuda_fp16.h>

#include "math/grid.h"

#ifndef RF_MAX_BLOCKS  // tests take few, to see threads come round again
#define RF_MAX_BLOCKS 16384
#endif
#ifndef RF_THREADS
#define RF_THREADS 256
#endif

namespace rf {
namespace cuda {

struct Fp32 {
  using Word = float;
  using Grid = Fp32Grid;
  static __device__ float widen(Word word) { return word; }
  static __device__ Word narrow(float value) { return value; }
};

struct Bf16 {
  using Word = uint16_t;
  using Grid = Bf16Grid;
  static __device__ float widen(Word word) { return float_of(static_cast<uint32_t>(word) << 16); }
  static __device__ Word narrow(float value) { return static_cast<Word>(bits_of(value) >> 16); }
};

struct Fp16 {
  using Word = uint16_t;
  using Grid = Fp16Grid;
  static __device__ float widen(Word word) { return __half2float(__ushort_as_half(word)); }
  static __device__ Word narrow(float value) { return __half_as_ushort(__float2half_rn(value)); }
};

constexpr int kThreads = RF_THREADS;
constexpr int kVectorBytes = 16;
constexpr int64_t kMaxBlocks = RF_MAX_BLOCKS;
constexpr int64_t kMaxSamples = 65535;  // what gridDim.y may be

inline bool aligned(const void* pointer) {
  return reinterpret_cast<uintptr_t>(pointer) % kVectorBytes == 0;
}

}  // namespace cuda
}  // namespace rf
