// The kernel of l1_project_ and l1_step_: one block a sample. Selection counts in shared memory,
// sums are added up in a fixed order, and every thread walks the search on its own, from the same
// sums.
// Also compiled by g++ in tests, block by block, without the launchers.
#include <algorithm>

#include "cuda/packs.cuh"
#include "math/l1.h"
#include "ops.h"

#ifndef RF_L1_THREADS  // tests take few
#define RF_L1_THREADS 512
#endif

namespace rf {
namespace cuda {

constexpr int kL1Threads = RF_L1_THREADS;
constexpr int kGroups = kL1Threads / 32;

struct L1Shared {
  uint32_t bins[kBins];
  uint32_t runs[kL1Threads];  // sums over neighbouring bins
  uint32_t groups[kGroups];   // sums over 32 runs
  uint32_t bin, before, count;
  double distance[kL1Threads];
  uint32_t free[kL1Threads];
};

struct L1Sums {
  double distance;
  int64_t free;
};

// body(Count<N>, first) over a sample of n elements by one block. A thread meets the same elements
// in every sweep of the same n and kVectors.
template <class T, bool kVectors, class Body>
__device__ void sweep(int64_t n, const Body& body) {
  each_pack<T, kVectors>(n, threadIdx.x, kL1Threads, body);
}

// x_adv[i] = rule(x_adv[i], other[i]) for every element of a sample.
template <class T, bool kVectors, class Rule>
__device__ void rewrite(typename T::Word* x_adv, const typename T::Word* other, int64_t n,
                        const Rule& rule) {
  sweep<T, kVectors>(n, [&](auto count, int64_t first) {
    constexpr int kCount = decltype(count)::value;
    float moved[kCount], beside[kCount];
    load<T>(x_adv, first, moved);
    load<T>(other, first, beside);
#pragma unroll
    for (int i = 0; i < kCount; ++i) moved[i] = rule(moved[i], beside[i]);
    store<T>(x_adv, first, moved);
  });
}

// Both sums over the block, for every thread, in the order of a binary tree.
__device__ inline L1Sums block_sums(L1Shared& shared, double distance, uint32_t free) {
  const unsigned thread = threadIdx.x;
  shared.distance[thread] = distance;
  shared.free[thread] = free;
  __syncthreads();
  for (unsigned half = kL1Threads / 2; half > 0; half /= 2) {
    if (thread < half) {
      shared.distance[thread] += shared.distance[thread + half];
      shared.free[thread] += shared.free[thread + half];
    }
    __syncthreads();
  }
  const L1Sums sums = {shared.distance[0], static_cast<int64_t>(shared.free[0])};
  __syncthreads();
  return sums;
}

template <class T, bool kVectors>
__device__ L1Sums distances(L1Shared& shared, const typename T::Word* x_adv,
                            const typename T::Word* x, int64_t n, float threshold,
                            const L1Scalars& s) {
  double distance = 0.0;
  uint32_t free = 0;
  sweep<T, kVectors>(n, [&](auto count, int64_t first) {
    constexpr int kCount = decltype(count)::value;
    float moved[kCount], origin[kCount];
    load<T>(x_adv, first, moved);
    load<T>(x, first, origin);
#pragma unroll
    for (int i = 0; i < kCount; ++i) {
      const float a = moved[i], b = origin[i];
      const Shrunk shrunk = l1_shrunk<typename T::Grid>(a, b, threshold, s);
      distance += l1_distance(a == a ? shrunk.value : b, b);
      free += static_cast<uint32_t>(shrunk.free);
    }
  });
  return block_sums(shared, distance, free);
}

template <class T, bool kVectors>
__device__ void project(L1Shared& shared, typename T::Word* x_adv, const typename T::Word* x,
                        int64_t n, const L1Scalars& s) {
  float threshold = 0.0f;
  L1Sums sums = distances<T, kVectors>(shared, x_adv, x, n, threshold, s);
  if (!(sums.distance <= static_cast<double>(s.eps))) {
    ThresholdSearch<typename T::Grid> search(s.eps, sums.distance, sums.free);
    while (!search.found()) {
      sums = distances<T, kVectors>(shared, x_adv, x, n, search.candidate(), s);
      search.update(sums.distance, sums.free);
    }
    threshold = search.threshold();
  }
  rewrite<T, kVectors>(x_adv, x, n, [&](float moved, float origin) {
    return l1_result<typename T::Grid>(moved, origin, threshold, s);
  });
}

// Leaves in shared memory which bin holds the rank: all threads add up neighbouring bins, some add
// up 32 such sums, and one walks down.
__device__ inline void find_bin(L1Shared& shared, uint32_t rank) {
  constexpr unsigned kRun = kBins / kL1Threads;
  const unsigned thread = threadIdx.x;
  uint32_t total = 0;
  for (unsigned i = 0; i < kRun; ++i) total += shared.bins[thread * kRun + i];
  shared.runs[thread] = total;
  __syncthreads();
  if (thread < kGroups) {
    total = 0;
    for (unsigned i = 0; i < 32; ++i) total += shared.runs[thread * 32 + i];
    shared.groups[thread] = total;
  }
  __syncthreads();
  if (thread == 0) {
    uint32_t before = 0;
    unsigned at = 0;
    while (before + shared.groups[at] <= rank) before += shared.groups[at++];
    at *= 32;
    while (before + shared.runs[at] <= rank) before += shared.runs[at++];
    at *= kRun;
    while (before + shared.bins[at] <= rank) before += shared.bins[at++];
    shared.bin = at;
    shared.before = before;
    shared.count = shared.bins[at];
  }
  __syncthreads();
}

template <class T, bool kVectors>
__device__ Selection select(L1Shared& shared, const typename T::Word* grad, int64_t n,
                            int64_t rank) {
  Selection selection(rank);
  for (int digit = 0; digit < kDigits; ++digit) {
    for (int i = threadIdx.x; i < kBins; i += kL1Threads) shared.bins[i] = 0;
    __syncthreads();
    sweep<T, kVectors>(n, [&](auto count, int64_t first) {
      constexpr int kCount = decltype(count)::value;
      float slope[kCount];
      load<T>(grad, first, slope);
#pragma unroll
      for (int i = 0; i < kCount; ++i) {
        const int bin = bin_of(magnitude_key(slope[i]), digit, selection.prefix);
        if (bin >= 0) atomicAdd(&shared.bins[bin], 1u);
      }
    });
    __syncthreads();
    find_bin(shared, static_cast<uint32_t>(selection.rank));
    selection.take(digit, static_cast<int>(shared.bin), shared.before, shared.count);
  }
  return selection;
}

template <class T, bool kVectors>
__device__ void sparse_move(L1Shared& shared, typename T::Word* x_adv,
                            const typename T::Word* grad, int64_t n, float density, float length) {
  const Selection selection = select<T, kVectors>(shared, grad, n, kept_rank(density, n));
  const int64_t moving = selection.moving(n);
  if (moving == 0) return;
  const float size = length / static_cast<float>(moving);
  rewrite<T, kVectors>(x_adv, grad, n, [&](float moved, float slope) {
    return sparse_step<typename T::Grid>(moved, slope, selection.prefix, size);
  });
}

// kStep: the sparse move first. A thread reads back only what it wrote itself.
template <class T, bool kVectors, bool kStep>
__global__ void __launch_bounds__(kL1Threads, 1) l1_kernel(L1StepCall call) {
  using Word = typename T::Word;
  __shared__ L1Shared shared;
  const int64_t n = call.per_sample;
  for (int64_t sample = blockIdx.x; sample < call.samples; sample += gridDim.x) {
    Word* x_adv = static_cast<Word*>(call.x_adv) + sample * n;
    if constexpr (kStep) {
      sparse_move<T, kVectors>(shared, x_adv, static_cast<const Word*>(call.grad) + sample * n, n,
                             amount_of(call.density, sample), amount_of(call.step_size, sample));
    }
    project<T, kVectors>(shared, x_adv, static_cast<const Word*>(call.x) + sample * n, n,
                       {amount_of(call.eps, sample), call.low, call.high});
  }
}

inline bool by_vectors(const L1StepCall& call, int64_t word_bytes) {
  return aligned_rows(call.samples, call.per_sample * word_bytes, call.x_adv, call.grad, call.x);
}

inline unsigned l1_blocks(const L1StepCall& call) {
  return static_cast<unsigned>(std::min(call.samples, kMaxBlocks));
}

}  // namespace cuda
}  // namespace rf

#ifdef __CUDACC__
#include "cuda/launch.cuh"

namespace rf {

using namespace cuda;

namespace {

template <bool kStep>
int launch_l1(const L1StepCall& call, int device, void* stream) {
  if (call.per_sample > UINT32_MAX) return cudaErrorInvalidValue;  // 32-bit counts
  return launch_on(device, stream, call.dtype, call, [&](auto type, auto vectors, auto target) {
    l1_kernel<decltype(type), vectors(), kStep>
        <<<l1_blocks(call), kL1Threads, 0, target>>>(call);
  });
}

}  // namespace

int l1_cuda_load(int device) {
  return load_on(device, RF_EACH_TYPE(l1_kernel, true), RF_EACH_TYPE(l1_kernel, false));
}

int l1_step_cuda(const L1StepCall& call, int device, void* stream) {
  return call.grad ? launch_l1<true>(call, device, stream) : launch_l1<false>(call, device, stream);
}

}  // namespace rf
#endif
