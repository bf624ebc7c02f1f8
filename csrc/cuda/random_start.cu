// The kernels of the random starts. A thread takes four elements at a time, those of one Philox
// counter. Totals are integers, so that adding them up atomically leaves the same bits in any
// order.
// Also compiled by g++ in tests, block by block, without the launchers.
#include "cuda/packs.cuh"
#include "math/random_start.h"
#include "ops.h"

namespace rf {
namespace cuda {

struct Draws {
  float v[4];
};

__device__ inline uint64_t id_of(const RandomStartCall& call, int64_t sample) {
  return static_cast<uint64_t>(call.sample_ids ? call.sample_ids[sample] : sample);
}

__device__ inline Draws draws_of(Norm norm, const Words& words) {
  const uint32_t* w = words.v;
  if (norm == Norm::l2) {
    const Pair left = gaussians(w[0], w[1]), right = gaussians(w[2], w[3]);
    return {{left.first, left.second, right.first, right.second}};
  }
  if (norm == Norm::l1) return {{laplace(w[0]), laplace(w[1]), laplace(w[2]), laplace(w[3])}};
  return {{signed_uniform(w[0]), signed_uniform(w[1]), signed_uniform(w[2]), signed_uniform(w[3])}};
}

__device__ inline int64_t share_of(Norm norm, float draw) {
  return norm == Norm::l2 ? l2_share(draw) : l1_share(draw);
}

// blockIdx.y walks the samples, blockIdx.x the counters of one.
__global__ void __launch_bounds__(kThreads) start_totals(RandomStartCall call) {
  __shared__ unsigned long long sums[kThreads];
  const uint64_t key = static_cast<uint64_t>(*call.key);
  const int64_t quads = (call.per_sample + 3) / 4;
  for (int64_t sample = blockIdx.y; sample < call.samples; sample += gridDim.y) {
    const uint64_t id = id_of(call, sample);
    int64_t total = 0;
    for (int64_t quad = static_cast<int64_t>(blockIdx.x) * kThreads + threadIdx.x; quad < quads;
         quad += static_cast<int64_t>(gridDim.x) * kThreads) {
      const Draws draws = draws_of(call.norm, philox(key, static_cast<uint64_t>(quad), id));
      for (int i = 0; i < 4; ++i) {
        if (quad * 4 + i < call.per_sample) total += share_of(call.norm, draws.v[i]);
      }
    }
    sums[threadIdx.x] = static_cast<unsigned long long>(total);
    __syncthreads();
    for (unsigned half = kThreads / 2; half > 0; half /= 2) {
      if (threadIdx.x < half) sums[threadIdx.x] += sums[threadIdx.x + half];
      __syncthreads();
    }
    if (threadIdx.x == 0) {
      atomicAdd(reinterpret_cast<unsigned long long*>(call.totals) + sample, sums[0]);
    }
    __syncthreads();
  }
}

template <class Grid>
__device__ float start_of(Norm norm, float x, float draw, const StartScalars& s) {
  return norm == Norm::linf ? linf_start<Grid>(x, draw, s) : scaled_start<Grid>(x, draw, s);
}

// Four elements: at once where they lie side by side, else each where its plane puts it.
template <class T, bool kVectors>
__device__ void start_quad(const RandomStartCall& call, int64_t sample, int64_t first,
                           const Draws& draws, const StartScalars& s) {
  using Grid = typename T::Grid;
  const int64_t base = sample * call.per_sample;
  if constexpr (kVectors) {
    float x[4];
    load<T>(call.x, base + first, x);
#pragma unroll
    for (int i = 0; i < 4; ++i) x[i] = start_of<Grid>(call.norm, x[i], draws.v[i], s);
    store<T>(call.out, base + first, x);
  } else {
    const int64_t channels = call.per_sample / call.plane;
#pragma unroll
    for (int i = 0; i < 4; ++i) {
      const int64_t element = first + i;
      if (element >= call.per_sample) return;
      const int64_t place =
          channels == 1 ? element : element / call.plane + element % call.plane * channels;
      float x[1];
      load<T>(call.x, base + place, x);
      x[0] = start_of<Grid>(call.norm, x[0], draws.v[i], s);
      store<T>(call.out, base + place, x);
    }
  }
}

template <class T, bool kVectors>
__global__ void __launch_bounds__(kThreads) start_kernel(RandomStartCall call) {
  __shared__ float scale;
  const uint64_t key = static_cast<uint64_t>(*call.key);
  const int64_t quads = (call.per_sample + 3) / 4;
  for (int64_t sample = blockIdx.y; sample < call.samples; sample += gridDim.y) {
    const uint64_t id = id_of(call, sample);
    if (threadIdx.x == 0) {
      const float eps = amount_of(call.eps, sample);
      scale = call.norm == Norm::linf
                  ? eps
                  : start_scale(call.norm, eps, call.totals[sample], sample_draw(key, id));
    }
    __syncthreads();
    const StartScalars s = {scale, call.low, call.high};
    for (int64_t quad = static_cast<int64_t>(blockIdx.x) * kThreads + threadIdx.x; quad < quads;
         quad += static_cast<int64_t>(gridDim.x) * kThreads) {
      const Draws draws = draws_of(call.norm, philox(key, static_cast<uint64_t>(quad), id));
      start_quad<T, kVectors>(call, sample, quad * 4, draws, s);
    }
    __syncthreads();
  }
}

// By four words at a time, where samples lie as they are drawn.
inline bool by_vectors(const RandomStartCall& call, int64_t) {
  return call.plane == call.per_sample && call.per_sample % 4 == 0 && aligned(call.x) &&
         aligned(call.out);
}

inline Grid2 start_grid(const RandomStartCall& call) {
  return elementwise_grid(call.samples, (call.per_sample + 3) / 4, 1);
}

}  // namespace cuda
}  // namespace rf

#ifdef __CUDACC__
#include "cuda/launch.cuh"

namespace rf {

using namespace cuda;

int random_start_cuda_load(int device) {
  return load_on(device, start_totals, RF_EACH_TYPE(start_kernel));
}

int random_start_cuda(const RandomStartCall& call, int device, void* stream) {
  if (call.norm != Norm::linf && !call.totals) return cudaErrorInvalidValue;
  const dim3 grid = blocks_of(start_grid(call));
  return launch_on(device, stream, call.dtype, call, [&](auto type, auto vectors, auto target) {
    if (call.norm != Norm::linf) start_totals<<<grid, kThreads, 0, target>>>(call);
    start_kernel<decltype(type), vectors()><<<grid, kThreads, 0, target>>>(call);
  });
}

}  // namespace rf
#endif
