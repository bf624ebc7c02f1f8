// Stands in for CUDA's headers where a kernel is compiled by g++ and run thread by thread.
#pragma once

#include <cstdint>
#include <cstring>

#define __device__
#define __global__
#define __launch_bounds__(...)

struct Index {
  unsigned x, y;
};
inline Index blockIdx, threadIdx, gridDim;

struct alignas(8) uint2 {
  unsigned x, y;
};

struct alignas(16) uint4 {
  unsigned x, y, z, w;
};

using __half = _Float16;

inline __half __ushort_as_half(uint16_t bits) {
  __half value;
  memcpy(&value, &bits, sizeof(value));
  return value;
}

inline uint16_t __half_as_ushort(__half value) {
  uint16_t bits;
  memcpy(&bits, &value, sizeof(bits));
  return bits;
}

inline float __half2float(__half value) { return static_cast<float>(value); }

inline __half __float2half_rn(float value) { return static_cast<__half>(value); }
