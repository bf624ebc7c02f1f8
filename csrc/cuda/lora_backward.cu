#include "cuda/lora_backward.cuh"

#include <cuda_runtime.h>

#include "cuda/launch.cuh"

namespace rf {
namespace cuda {
namespace {

template <class T>
void launch(const LoraBackwardCall& call, cudaStream_t stream) {
  const int rows = static_cast<int>(chunk_rows(call.tokens, call.rank));
  const int64_t chunks = chunk_count(call.tokens, call.rank);
  const auto blocks = static_cast<unsigned>(chunks);
  switch (rank_tiles(call.rank)) {
    case 1:
      lora_inner_outer<T, 1><<<blocks, kThreads, 0, stream>>>(call, rows);
      break;
    case 2:
      lora_inner_outer<T, 2><<<blocks, kThreads, 0, stream>>>(call, rows);
      break;
    default:
      lora_inner_outer<T, 4><<<blocks, kThreads, 0, stream>>>(call, rows);
  }
  const int64_t elements = call.rank * (call.inputs + call.outputs);
  lora_reduce<<<static_cast<unsigned>((elements + 31) / 32), kThreads, 0, stream>>>(call, chunks);
}

}  // namespace
}  // namespace cuda

int64_t lora_backward_workspace(int64_t tokens, int64_t inputs, int64_t outputs, int rank) {
  return cuda::chunk_count(tokens, rank) * rank * (inputs + outputs);
}

int lora_backward_cuda_load(int device) {
  const DeviceGuard guard(device);
  if (guard.code()) return guard.code();
  using cuda::lora_inner_outer;
  return cuda::load_kernels(
      cuda::lora_reduce, lora_inner_outer<cuda::Bf16, 1>, lora_inner_outer<cuda::Bf16, 2>,
      lora_inner_outer<cuda::Bf16, 4>, lora_inner_outer<cuda::Fp16, 1>,
      lora_inner_outer<cuda::Fp16, 2>, lora_inner_outer<cuda::Fp16, 4>);
}

int lora_backward_cuda(const LoraBackwardCall& call, int device, void* stream) {
  const DeviceGuard guard(device);
  if (guard.code()) return guard.code();
  const auto target = static_cast<cudaStream_t>(stream);
  if (call.dtype == DType::bf16) {
    cuda::launch<cuda::Bf16>(call, target);
  } else {
    cuda::launch<cuda::Fp16>(call, target);
  }
  return cudaGetLastError();
}

}  // namespace rf
