// select_best_: one kernel decides and keeps the losses, a second copies the rows that improved.
//
// Also compiled by g++ in tests, block by block, without the launchers.
#include "cuda/packs.cuh"
#include "math/select_best.h"
#include "ops.h"

namespace rf {
namespace cuda {

template <class Word>
__device__ void keep_loss(const SelectBestCall& call, int64_t i, double (*widen)(Word)) {
  Word* best = static_cast<Word*>(call.best_loss);
  const Word loss = static_cast<const Word*>(call.loss)[i];
  const bool better = is_better(widen(loss), widen(best[i]));
  call.improved[i] = better;
  if (better) best[i] = loss;
}

template <class T>
__device__ double widen_loss(typename T::Word word) {
  return T::widen(word);
}

__device__ inline double same_loss(double loss) { return loss; }

static __global__ void __launch_bounds__(kThreads) decide_kernel(SelectBestCall call) {
  const int64_t stride = static_cast<int64_t>(gridDim.x) * kThreads;
  int64_t i = static_cast<int64_t>(blockIdx.x) * kThreads + threadIdx.x;
  for (; i < call.samples; i += stride) {
    if (call.loss_type == LossType::fp32) keep_loss<float>(call, i, widen_loss<Fp32>);
    if (call.loss_type == LossType::bf16) keep_loss<uint16_t>(call, i, widen_loss<Bf16>);
    if (call.loss_type == LossType::fp16) keep_loss<uint16_t>(call, i, widen_loss<Fp16>);
    if (call.loss_type == LossType::fp64) keep_loss<double>(call, i, same_loss);
  }
}

// Words that are only moved.
template <class Unit>
struct Same {
  using Word = Unit;
  static __device__ Unit widen(Unit unit) { return unit; }
};

constexpr int kCopies = 2;  // units at once

// Unit: uint4 where all rows start at 16-byte borders and end there, else uint16_t.
template <class Unit>
__global__ void __launch_bounds__(kThreads) copy_kernel(SelectBestCall call) {
  const int64_t units = call.row_bytes / static_cast<int64_t>(sizeof(Unit));
  for (int64_t sample = blockIdx.y; sample < call.samples; sample += gridDim.y) {
    if (!call.improved[sample]) continue;
    each_pack<Same<Unit>, false, kCopies>(units, sample * units, {call.x_adv, call.grad},
                                          [&](int64_t at, auto& v) {
                                            static_cast<Unit*>(call.best_x)[at] = v[0][0];
                                            static_cast<Unit*>(call.best_grad)[at] = v[1][0];
                                          });
  }
}

inline bool by_vectors(const SelectBestCall& call) {
  return aligned(call.best_x) && aligned(call.best_grad) && aligned(call.x_adv) &&
         aligned(call.grad) && call.row_bytes % kVectorBytes == 0;
}

}  // namespace cuda
}  // namespace rf

#ifdef __CUDACC__
#include "cuda/launch.cuh"

namespace rf {

using namespace cuda;

int select_best_cuda_load(int device) {
  return load_on(device, decide_kernel, copy_kernel<uint4>, copy_kernel<uint16_t>);
}

int select_best_cuda(const SelectBestCall& call, int device, void* stream) {
  const bool vectors = by_vectors(call);
  const int unit = vectors ? sizeof(uint4) : sizeof(uint16_t);
  const dim3 grid = blocks_of(elementwise_grid(call.samples, call.row_bytes, kCopies * unit));
  const dim3 deciding = blocks_of(elementwise_grid(1, call.samples, 1));
  return on_device(device, stream, [&](cudaStream_t target) {
    decide_kernel<<<deciding, kThreads, 0, target>>>(call);
    (vectors ? copy_kernel<uint4> : copy_kernel<uint16_t>)<<<grid, kThreads, 0, target>>>(call);
  });
}

}  // namespace rf
#endif
