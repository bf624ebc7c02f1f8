// The matrix instruction of the tensor cores, and how fragments are put together from rows in
// memory. Never run on a device: tests run it on the CPU, after the layout in the PTX manual
// ("Matrix Fragments for mma.m16n8k16 with floating point type").
//   lane = 4 g + t;  A (16 x 16): registers hold pairs (row, columns 2 t and 2 t + 1) for rows g and
//   g + 8, then both again 8 columns further;  B (16 x 8): pairs (rows 2 t and 2 t + 1, column g),
//   then 8 rows further;  D (16 x 8): (row g, columns 2 t, 2 t + 1), then row g + 8.
#pragma once

#include "cuda/storage.cuh"

namespace rf {
namespace cuda {

// d += a b on one warp, fp32 sums. Below sm_80 it does nothing: the caller has asked the device.
template <class T>
__device__ inline void mma(float (&d)[4], const uint32_t (&a)[4], uint32_t b0, uint32_t b1) {
#if defined(RF_EMULATED)
  emulated_mma<T>(d, a, b0, b1);
#elif defined(__CUDA_ARCH__) && __CUDA_ARCH__ >= 800
  if constexpr (T::Grid::kDigits == Bf16Grid::kDigits) {
    asm("mma.sync.aligned.m16n8k16.row.col.f32.bf16.bf16.f32 "
        "{%0, %1, %2, %3}, {%4, %5, %6, %7}, {%8, %9}, {%0, %1, %2, %3};"
        : "+f"(d[0]), "+f"(d[1]), "+f"(d[2]), "+f"(d[3])
        : "r"(a[0]), "r"(a[1]), "r"(a[2]), "r"(a[3]), "r"(b0), "r"(b1));
  } else {
    asm("mma.sync.aligned.m16n8k16.row.col.f32.f16.f16.f32 "
        "{%0, %1, %2, %3}, {%4, %5, %6, %7}, {%8, %9}, {%0, %1, %2, %3};"
        : "+f"(d[0]), "+f"(d[1]), "+f"(d[2]), "+f"(d[3])
        : "r"(a[0]), "r"(a[1]), "r"(a[2]), "r"(a[3]), "r"(b0), "r"(b1));
  }
#endif
}

// Two 16-bit words of each of two registers: the lower ones, or the upper ones, side by side.
__device__ inline uint32_t lower_halves(uint32_t first, uint32_t second) {
  return (first & 0xffffu) | (second << 16);
}

__device__ inline uint32_t upper_halves(uint32_t first, uint32_t second) {
  return (first >> 16) | (second & 0xffff0000u);
}

}  // namespace cuda
}  // namespace rf
