#include "math/linf_step.h"

#include <cuda_bf16.h>
#include <cuda_fp16.h>
#include <cuda_runtime.h>

#include <algorithm>

#include "cuda/guard.h"
#include "ops.h"

namespace rf {
namespace {

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

constexpr int kThreads = 256;
constexpr int kVectorBytes = 16;

template <class T>
__device__ void step_one(const LinfStepCall& call, int64_t i, const LinfScalars& s) {
  using Word = typename T::Word;
  Word* x_adv = static_cast<Word*>(call.x_adv);
  const float out = linf_step<typename T::Grid>(T::widen(x_adv[i]),
                                                T::widen(static_cast<const Word*>(call.grad)[i]),
                                                T::widen(static_cast<const Word*>(call.x)[i]), s);
  x_adv[i] = T::narrow(out);
}

// One 16-byte vector: three loads, one store.
template <class T>
__device__ void step_vector(const LinfStepCall& call, int64_t first, const LinfScalars& s) {
  using Word = typename T::Word;
  constexpr int kWords = kVectorBytes / sizeof(Word);
  union Vector {
    uint4 raw;
    Word words[kWords];
  };
  Vector x_adv, grad, x;
  uint4* target = reinterpret_cast<uint4*>(static_cast<Word*>(call.x_adv) + first);
  x_adv.raw = *target;
  grad.raw = *reinterpret_cast<const uint4*>(static_cast<const Word*>(call.grad) + first);
  x.raw = *reinterpret_cast<const uint4*>(static_cast<const Word*>(call.x) + first);
#pragma unroll
  for (int i = 0; i < kWords; ++i) {
    x_adv.words[i] = T::narrow(linf_step<typename T::Grid>(
        T::widen(x_adv.words[i]), T::widen(grad.words[i]), T::widen(x.words[i]), s));
  }
  *target = x_adv.raw;
}

// blockIdx.y walks the samples, blockIdx.x the elements of one; both in strides of the grid.
// kVectors: samples start at 16-byte borders, so all but the tail of each goes by vectors.
template <class T, bool kVectors>
__global__ void __launch_bounds__(kThreads) step_kernel(LinfStepCall call) {
  constexpr int64_t kWords = kVectors ? kVectorBytes / sizeof(typename T::Word) : 1;
  const int64_t thread = static_cast<int64_t>(blockIdx.x) * kThreads + threadIdx.x;
  const int64_t stride = static_cast<int64_t>(gridDim.x) * kThreads;
  for (int64_t sample = blockIdx.y; sample < call.samples; sample += gridDim.y) {
    const LinfScalars s = scalars_of(call, sample);
    const int64_t base = sample * call.per_sample;
    const int64_t vectors = call.per_sample / kWords;
    for (int64_t i = thread; i < vectors; i += stride) {
      if constexpr (kVectors) {
        step_vector<T>(call, base + i * kWords, s);
      } else {
        step_one<T>(call, base + i, s);
      }
    }
    for (int64_t i = vectors * kWords + thread; i < call.per_sample; i += stride) {
      step_one<T>(call, base + i, s);
    }
  }
}

bool aligned(const void* pointer) { return reinterpret_cast<uintptr_t>(pointer) % 16 == 0; }

template <class T>
void launch(LinfStepCall call, cudaStream_t stream) {
  if (is_uniform(call.eps) && is_uniform(call.step_size)) {
    call.per_sample *= call.samples;
    call.samples = 1;
  }
  const int64_t bytes = call.per_sample * static_cast<int64_t>(sizeof(typename T::Word));
  const bool vectors = aligned(call.x_adv) && aligned(call.grad) && aligned(call.x) &&
                       (call.samples == 1 || bytes % kVectorBytes == 0);
  const int64_t items = vectors ? std::max<int64_t>(bytes / kVectorBytes, 1) : call.per_sample;
  const int64_t samples = std::min<int64_t>(call.samples, 65535);
  const int64_t cap = std::max<int64_t>(16384 / samples, 1);
  const dim3 grid(static_cast<unsigned>(std::min((items + kThreads - 1) / kThreads, cap)),
                  static_cast<unsigned>(samples));
  if (vectors) {
    step_kernel<T, true><<<grid, kThreads, 0, stream>>>(call);
  } else {
    step_kernel<T, false><<<grid, kThreads, 0, stream>>>(call);
  }
}

template <class T>
cudaError_t load() {
  cudaFuncAttributes attributes;
  const cudaError_t code = cudaFuncGetAttributes(&attributes, step_kernel<T, true>);
  return code ? code : cudaFuncGetAttributes(&attributes, step_kernel<T, false>);
}

}  // namespace

int linf_step_cuda_load(int device) {
  const DeviceGuard guard(device);
  if (guard.code()) return guard.code();
  for (auto load_one : {load<Fp32>, load<Bf16>, load<Fp16>}) {
    if (const cudaError_t code = load_one()) return code;
  }
  return cudaSuccess;
}

int linf_step_cuda(const LinfStepCall& call, int device, void* stream) {
  if (call.samples == 0 || call.per_sample == 0) return cudaSuccess;
  const DeviceGuard guard(device);
  if (guard.code()) return guard.code();
  const auto target = static_cast<cudaStream_t>(stream);
  switch (call.dtype) {
    case DType::fp32:
      launch<Fp32>(call, target);
      break;
    case DType::bf16:
      launch<Bf16>(call, target);
      break;
    case DType::fp16:
      launch<Fp16>(call, target);
      break;
  }
  return cudaGetLastError();
}

}  // namespace rf
