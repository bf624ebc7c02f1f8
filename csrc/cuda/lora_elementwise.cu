#include "cuda/lora_elementwise.cuh"

#include <cuda_runtime.h>

#include "cuda/launch.cuh"

namespace rf {
namespace cuda {
namespace {

template <class From, class To>
void merge(const LoraMergeCall& call, cudaStream_t stream) {
  MergeBatch batch;
  for (int64_t first = 0; first < call.count; first += kMostParts) {
    const auto tiles = static_cast<unsigned>(fill_batch(call, first, batch));
    lora_merge_kernel<From, To><<<tiles, kThreads, 0, stream>>>(batch);
  }
}

template <class Word>
void drop(const LoraDropoutCall& call, cudaStream_t stream) {
  const auto blocks = static_cast<unsigned>(dropout_blocks(call));
  if (by_vectors(call)) {
    lora_dropout_kernel<Word, true><<<blocks, kThreads, 0, stream>>>(call);
  } else {
    lora_dropout_kernel<Word, false><<<blocks, kThreads, 0, stream>>>(call);
  }
}

}  // namespace
}  // namespace cuda

int lora_elementwise_cuda_load(int device) {
  const DeviceGuard guard(device);
  if (guard.code()) return guard.code();
  using namespace cuda;
  return load_kernels(lora_merge_kernel<Fp32, Fp32>, lora_merge_kernel<Fp32, Bf16>,
                      lora_merge_kernel<Fp32, Fp16>, lora_merge_kernel<Bf16, Bf16>,
                      lora_merge_kernel<Fp16, Fp16>, lora_dropout_kernel<uint16_t, true>,
                      lora_dropout_kernel<uint16_t, false>, lora_dropout_kernel<uint32_t, true>,
                      lora_dropout_kernel<uint32_t, false>, lora_dropout_kernel<uint64_t, true>,
                      lora_dropout_kernel<uint64_t, false>);
}

int lora_merge_cuda(const LoraMergeCall& call, int device, void* stream) {
  const DeviceGuard guard(device);
  if (guard.code()) return guard.code();
  const auto target = static_cast<cudaStream_t>(stream);
  using namespace cuda;
  if (call.from == DType::bf16) {
    merge<Bf16, Bf16>(call, target);
  } else if (call.from == DType::fp16) {
    merge<Fp16, Fp16>(call, target);
  } else {
    with_type(call.to, [&](auto to) { merge<Fp32, decltype(to)>(call, target); });
  }
  return cudaGetLastError();
}

int lora_dropout_cuda(const LoraDropoutCall& call, int device, void* stream) {
  const DeviceGuard guard(device);
  if (guard.code()) return guard.code();
  const auto target = static_cast<cudaStream_t>(stream);
  if (call.bytes == 2) cuda::drop<uint16_t>(call, target);
  if (call.bytes == 4) cuda::drop<uint32_t>(call, target);
  if (call.bytes == 8) cuda::drop<uint64_t>(call, target);
  return cudaGetLastError();
}

}  // namespace rf
