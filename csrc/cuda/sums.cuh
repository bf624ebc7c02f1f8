// Sums over samples in a fixed order. Either every block of a sample leaves one partial sum in the
// workspace, and one block adds these up by the same tree; or the blocks of a sample are a team,
// which waits for its own and reads their shared memory: a cluster on sm_90 and up, else one block.
#pragma once

#include "cuda/packs.cuh"
#include "math/l2.h"

#ifndef RF_TEAM_SHARE  // tests take few, to see teams
#define RF_TEAM_SHARE 8192
#endif

namespace rf {
namespace cuda {

constexpr int kWarp = 32;
constexpr int kWarps = kThreads / kWarp;
constexpr int kBlocksPerUnit = 3;  // leaves 80 registers; with 64 ptxas spills round a division
#if defined(__CUDA_ARCH__) && (__CUDA_ARCH__ < 900 || __CUDA_ARCH__ >= 1200)
constexpr int kFewPerUnit = 2;  // in 16 bits ptxas spills with 80 registers there
#else
constexpr int kFewPerUnit = 3;
#endif
constexpr int64_t kPerBlock = 16 * kThreads;  // elements that make another block worth it
constexpr int kSumPacks = 4;                  // read at once
constexpr unsigned kMostTeam = 8;             // blocks of a cluster that every device takes
constexpr int64_t kTeamShare = RF_TEAM_SHARE;  // elements of a sample that a block takes by itself

// Blocks, and so partial sums, of one sample: a matter of its length alone.
RF_HD int64_t parts_of(int64_t per_sample) {
  const int64_t blocks = (per_sample + kPerBlock - 1) / kPerBlock;
  return blocks < kThreads ? blocks : kThreads;
}

// Blocks of a team, likewise.
inline unsigned team_of(int64_t per_sample) {
  unsigned blocks = 1;
  while (blocks < kMostTeam && per_sample > blocks * kTeamShare) blocks *= 2;
  return blocks;
}

#if defined(RF_EMULATED)
template <class S>
S& own_shared() {
  return fibers::shared<S>(fibers::rank());
}

template <class S>
S& shared_of(unsigned rank) {
  return fibers::shared<S>(rank);
}

inline void team_sync() { fibers::wait(fibers::State::team); }
#else
// The block's S in shared memory, the same at every call with this type.
template <class S>
__device__ S& own_shared() {
  __shared__ S shared;
  return shared;
}

// The S of block `rank` of the team.
template <class S>
__device__ const S& shared_of(unsigned rank) {
#if defined(__CUDA_ARCH__) && __CUDA_ARCH__ >= 900
  return *static_cast<const S*>(__cluster_map_shared_rank(&own_shared<S>(), rank));
#else
  return own_shared<S>();
#endif
}

// Waits for all threads of all blocks of the team, and sees what they wrote.
__device__ inline void team_sync() {
#if defined(__CUDA_ARCH__) && __CUDA_ARCH__ >= 900
  __cluster_barrier_arrive();
  __cluster_barrier_wait();
#else
  __syncthreads();
#endif
}
#endif

struct BlockValues {
  double warps[kWarps];
  double total;
  double for_team[2];  // in turn: a block may be one join ahead of those that still read
};

// join(a, b) over the values of the block's threads, by one tree, for all of them. Every thread has
// to call it.
template <class Join>
__device__ double block_join(double value, const Join& join) {
  BlockValues& shared = own_shared<BlockValues>();
  for (int step = kWarp / 2; step > 0; step /= 2) {
    value = join(value, __shfl_down_sync(0xffffffffu, value, step));
  }
  const int warp = threadIdx.x / kWarp, lane = threadIdx.x % kWarp;
  if (lane == 0) shared.warps[warp] = value;
  __syncthreads();
  if (threadIdx.x == 0) {
    double joined = shared.warps[0];
    for (int i = 1; i < kWarps; ++i) joined = join(joined, shared.warps[i]);
    shared.total = joined;
  }
  __syncthreads();
  return shared.total;
}

// The sum over the block's threads.
__device__ inline double block_sum(double value) {
  return block_join(value, [](double a, double b) { return a + b; });
}

// The blocks of gridDim.x, which share a sample.
struct Team {
  unsigned turn = 0;

  // block_join over all of them.
  template <class Join>
  __device__ double join(double value, const Join& join) {
    double joined = block_join(value, join);
    if (gridDim.x == 1) return joined;
    if (threadIdx.x == 0) own_shared<BlockValues>().for_team[turn] = joined;
    team_sync();
    joined = shared_of<BlockValues>(0).for_team[turn];
    for (unsigned rank = 1; rank < gridDim.x; ++rank) {
      joined = join(joined, shared_of<BlockValues>(rank).for_team[turn]);
    }
    turn = 1 - turn;
    return joined;
  }

  __device__ double sum(double value) {
    return join(value, [](double a, double b) { return a + b; });
  }
};

// Adds up one number of every part: `first` is that of part 0, the next lies `stride` further.
__device__ inline double sum_parts(const double* first, int64_t parts, int64_t stride) {
  return block_sum(threadIdx.x < parts ? first[threadIdx.x * stride] : 0.0);
}

struct SumCall {
  const void* x_adv;
  const void* grad;
  const void* x;
  int64_t samples;
  int64_t per_sample;
  double* sums;  // (samples, parts, 3)
};

template <class T, bool kVectors>
__global__ void __launch_bounds__(kThreads, kBlocksPerUnit) sum_kernel(SumCall call) {
  for (int64_t sample = blockIdx.y; sample < call.samples; sample += gridDim.y) {
    L2Sums sums = {0.0, 0.0, 0.0};
    each_pack<T, kVectors, kSumPacks>(
        call.per_sample, sample * call.per_sample, {call.x_adv, call.x, call.grad},
        [&](int64_t, const auto& v) {
          constexpr int kWords = sizeof(v[0]) / sizeof(float);
#pragma unroll
          for (int i = 0; i < kWords; ++i) {
            const double d = static_cast<double>(v[0][i]) - static_cast<double>(v[1][i]);
            const double g = finite_or_zero(v[2][i]);
            sums += L2Sums{d * d, d * g, g * g};
          }
        });
    double* out = call.sums + (sample * gridDim.x + blockIdx.x) * 3;
    const double dd = block_sum(sums.dd), dg = block_sum(sums.dg), gg = block_sum(sums.gg);
    if (threadIdx.x == 0) {
      out[0] = dd;
      out[1] = dg;
      out[2] = gg;
    }
  }
}

inline Grid2 sum_grid(int64_t samples, int64_t per_sample) {
  return {static_cast<unsigned>(parts_of(per_sample)),
          static_cast<unsigned>(std::min(samples, kMaxSamples))};
}

}  // namespace cuda
}  // namespace rf
