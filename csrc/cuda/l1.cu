// The kernel of l1_project_ and l1_step_: a team of blocks a sample. Selection counts in shared
// memory, sums are added up in a fixed order, and every thread walks the search on its own, from the
// same sums.
// Also compiled by g++ in tests, block by block, without the launchers.
#include "cuda/sums.cuh"
#include "math/l1.h"
#include "ops.h"

namespace rf {
namespace cuda {

constexpr int kL1Packs = 2;  // read at once
constexpr int kGroups = kThreads / kWarp;

struct L1Shared {
  uint32_t bins[kBins];      // of the block's share
  uint32_t all_bins[kBins];  // of the sample
  uint32_t runs[kThreads];   // sums over neighbouring bins
  uint32_t groups[kGroups];  // sums over 32 runs
  uint32_t bin, before, count;
};

// One sample, for one thread of its team. A thread meets the same elements in every sweep, and reads
// back only what it wrote itself.
template <class T, bool kVectors>
struct L1Sample {
  using Grid = typename T::Grid;

  const L1StepCall& call;
  int64_t base;
  L1Scalars scalars;
  Team& team;

  // x_adv[i] = rule(x_adv[i], other[i]).
  template <class Rule>
  __device__ void rewrite(const void* other, const Rule& rule) const {
    each_pack<T, kVectors, kL1Packs>(call.per_sample, base, {call.x_adv, other},
                                     [&](int64_t at, auto& v) {
                                       constexpr int kWords = sizeof(v[0]) / sizeof(float);
#pragma unroll
                                       for (int i = 0; i < kWords; ++i) {
                                         v[0][i] = rule(v[0][i], v[1][i]);
                                       }
                                       store<T>(call.x_adv, at, v[0]);
                                     });
  }

  struct Sums {
    double distance;
    int64_t free;
  };

  __device__ Sums distances(float threshold) const {
    double distance = 0.0;
    uint32_t free = 0;
    each_pack<T, kVectors, kL1Packs>(
        call.per_sample, base, {call.x_adv, call.x}, [&](int64_t, const auto& v) {
          constexpr int kWords = sizeof(v[0]) / sizeof(float);
#pragma unroll
          for (int i = 0; i < kWords; ++i) {
            const float a = v[0][i], b = v[1][i];
            const Shrunk shrunk = l1_shrunk<Grid>(a, b, threshold, scalars);
            distance += l1_distance(a == a ? shrunk.value : b, b);
            free += static_cast<uint32_t>(shrunk.free);
          }
        });
    distance = team.sum(distance);
    return {distance, static_cast<int64_t>(team.sum(free))};
  }

  __device__ void project() const {
    float threshold = 0.0f;
    Sums sums = distances(threshold);
    if (!(sums.distance <= static_cast<double>(scalars.eps))) {
      ThresholdSearch<Grid> search(scalars.eps, sums.distance, sums.free);
      while (!search.found()) {
        sums = distances(search.candidate());
        search.update(sums.distance, sums.free);
      }
      threshold = search.threshold();
    }
    rewrite(call.x, [&](float moved, float origin) {
      return l1_result<Grid>(moved, origin, threshold, scalars);
    });
  }

  __device__ Selection select(int64_t rank) const;

  __device__ void sparse_move(float density, float length) const {
    const Selection selection = select(kept_rank(density, call.per_sample));
    const int64_t moving = selection.moving(call.per_sample);
    if (moving == 0) return;
    const float size = length / static_cast<float>(moving);
    rewrite(call.grad, [&](float moved, float slope) {
      return sparse_step<Grid>(moved, slope, selection.prefix, size);
    });
  }
};

// Leaves in shared memory which bin holds the rank: all threads add up neighbouring bins, some add
// up 32 such sums, and one walks down.
__device__ inline void find_bin(L1Shared& shared, uint32_t rank) {
  constexpr unsigned kRun = kBins / kThreads;
  const unsigned thread = threadIdx.x;
  uint32_t total = 0;
  for (unsigned i = 0; i < kRun; ++i) total += shared.all_bins[thread * kRun + i];
  shared.runs[thread] = total;
  __syncthreads();
  if (thread < kGroups) {
    total = 0;
    for (unsigned i = 0; i < kWarp; ++i) total += shared.runs[thread * kWarp + i];
    shared.groups[thread] = total;
  }
  __syncthreads();
  if (thread == 0) {
    uint32_t before = 0;
    unsigned at = 0;
    while (before + shared.groups[at] <= rank) before += shared.groups[at++];
    at *= kWarp;
    while (before + shared.runs[at] <= rank) before += shared.runs[at++];
    at *= kRun;
    while (before + shared.all_bins[at] <= rank) before += shared.all_bins[at++];
    shared.bin = at;
    shared.before = before;
    shared.count = shared.all_bins[at];
  }
  __syncthreads();
}

template <class T, bool kVectors>
__device__ Selection L1Sample<T, kVectors>::select(int64_t rank) const {
  L1Shared& shared = own_shared<L1Shared>();
  Selection selection(rank);
  for (int digit = 0; digit < kDigits; ++digit) {
    for (int i = threadIdx.x; i < kBins; i += kThreads) shared.bins[i] = 0;
    __syncthreads();
    each_pack<T, kVectors, 2 * kL1Packs>(
        call.per_sample, base, {call.grad}, [&](int64_t, const auto& v) {
          constexpr int kWords = sizeof(v[0]) / sizeof(float);
#pragma unroll
          for (int i = 0; i < kWords; ++i) {
            const int bin = bin_of(magnitude_key(v[0][i]), digit, selection.prefix);
            if (bin >= 0) atomicAdd(&shared.bins[bin], 1u);
          }
        });
    team_sync();
    for (int i = threadIdx.x; i < kBins; i += kThreads) {
      uint32_t total = 0;
      for (unsigned block = 0; block < gridDim.x; ++block) {
        total += shared_of<L1Shared>(block).bins[i];
      }
      shared.all_bins[i] = total;
    }
    team_sync();  // others have read the bins that the next digit clears
    find_bin(shared, static_cast<uint32_t>(selection.rank));
    selection.take(digit, static_cast<int>(shared.bin), shared.before, shared.count);
  }
  return selection;
}

// kStep: the sparse move first.
template <class T, bool kVectors, bool kStep>
// two blocks a unit: with three, 80 registers, ptxas spills in 16 bits
__global__ void __launch_bounds__(kThreads, 2) l1_kernel(L1StepCall call) {
  Team team;
  for (int64_t sample = blockIdx.y; sample < call.samples; sample += gridDim.y) {
    const L1Sample<T, kVectors> own = {
        call, sample * call.per_sample, {amount_of(call.eps, sample), call.low, call.high}, team};
    if constexpr (kStep) {
      own.sparse_move(amount_of(call.density, sample), amount_of(call.step_size, sample));
    }
    own.project();
  }
  team_sync();  // a block's memory may still be read
}

inline bool by_vectors(const L1StepCall& call, int64_t word_bytes) {
  return aligned_rows(call.samples, call.per_sample * word_bytes, call.x_adv, call.grad, call.x);
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
    launch_team(l1_kernel<decltype(type), vectors(), kStep>, call, target);
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
