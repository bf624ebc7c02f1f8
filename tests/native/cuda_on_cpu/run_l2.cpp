// Runs the CUDA kernels of the L2, APGD and FAB steps and of select_best_, block by block, and compares
// them with the CPU's. A program of its own, so that it can run under AddressSanitizer: memory is
// allocated to the byte. Prints what differs; 0 if nothing does.
#include "block.h"

#include <cstdio>
#include <cstdlib>
#include <random>

#include "cuda/linf.cu"
#include "cuda/fab.cu"
#include "cuda/l2.cu"
#include "cuda/select_best.cu"

namespace {

using namespace rf;
using namespace rf::cuda;

int went_by_vectors = 0, went_by_words = 0, differences = 0;

int most_blocks = 0;  // of a team

// A team a sample.
template <class Call, class Kernel>
bool run_teams(const Call& call, const Kernel& kernel) {
  gridDim = {team_of(call.per_sample), static_cast<unsigned>(call.samples)};
  most_blocks = std::max(most_blocks, static_cast<int>(gridDim.x));
  for (blockIdx = {0, 0}; blockIdx.y < gridDim.y; ++blockIdx.y) {
    if (!fibers::run_team(gridDim.x, kThreads, kernel)) return false;
  }
  return true;
}

template <class Kernel>
bool run_grid(Grid2 grid, const Kernel& kernel) {
  gridDim = {grid.blocks, grid.samples};
  for (unsigned y = 0; y < grid.samples; ++y) {
    for (unsigned x = 0; x < grid.blocks; ++x) {
      blockIdx = {x, y};
      if (!fibers::run_block(kThreads, kernel)) return false;
    }
  }
  return true;
}

template <class T, bool kVectors>
bool run_l2(const StepCall& call) {
  const int words = kVectors ? kPack<T> : 1;
  return run_grid(sum_grid(call.samples, call.per_sample),
                  [&] { sum_kernel<T, kVectors>(sums_for(call)); }) &&
         run_grid(scale_grid(call.samples), [&] { l2_scale_kernel<StepCall, false>(call); }) &&
         run_grid(elementwise_grid(call.samples, call.per_sample, words),
                  [&] { l2_step_kernel<T, kVectors>(call); });
}

template <class T, bool kVectors>
bool run_apgd_l2(const ApgdStepCall& call) {
  const Grid2 sums = sum_grid(call.samples, call.per_sample);
  const int words = kVectors ? kPack<T> : 1;
  const Grid2 scales = scale_grid(call.samples);
  return run_grid(sums, [&] { sum_kernel<T, kVectors>(sums_for(call)); }) &&
         run_grid(scales, [&] { l2_scale_kernel<ApgdStepCall, false>(call); }) &&
         run_grid(sums, [&] { apgd_l2_length_kernel<T, kVectors>(call); }) &&
         run_grid(scales, [&] { l2_scale_kernel<ApgdStepCall, true>(call); }) &&
         run_grid(elementwise_grid(call.samples, call.per_sample, words),
                  [&] { apgd_l2_step_kernel<T, kVectors>(call); });
}

template <class T, bool kVectors>
bool run_apgd_linf(const ApgdStepCall& call) {
  return run_grid(elementwise_grid(call.samples, call.per_sample, kVectors ? kPack<T> : 1),
                  [&] { apgd_linf_step_kernel<T, kVectors>(call); });
}

template <class Call, class Run>
bool with_words(const Call& call, const Run& run) {
  const auto typed = [&](auto type) {
    using T = decltype(type);
    const bool vectors = by_vectors(call, sizeof(typename T::Word));
    (vectors ? went_by_vectors : went_by_words) += 1;
    return vectors ? run(type, std::true_type{}) : run(type, std::false_type{});
  };
  switch (call.dtype) {
    case DType::fp32:
      return typed(Fp32{});
    case DType::bf16:
      return typed(Bf16{});
    default:
      return typed(Fp16{});
  }
}

bool emulate(const StepCall& call) {
  return with_words(call, [&](auto type, auto vectors) {
    return run_l2<decltype(type), decltype(vectors)::value>(call);
  });
}

bool emulate(const ApgdStepCall& call, bool l2) {
  return with_words(call, [&](auto type, auto vectors) {
    using T = decltype(type);
    constexpr bool kVectors = decltype(vectors)::value;
    return l2 ? run_apgd_l2<T, kVectors>(call) : run_apgd_linf<T, kVectors>(call);
  });
}

template <Norm kNorm>
bool emulate_fab(const FabStepCall& call) {
  return with_words(call, [&](auto type, auto vectors) {
    return run_teams(call, [&] {
      fab_step_kernel<decltype(type), decltype(vectors)::value, kNorm>(call);
    });
  });
}

bool emulate(const FabStepCall& call) {
  if (call.norm == Norm::linf) return emulate_fab<Norm::linf>(call);
  return call.norm == Norm::l2 ? emulate_fab<Norm::l2>(call) : emulate_fab<Norm::l1>(call);
}

bool emulate(const SelectBestCall& call) {
  const bool vectors = by_vectors(call);
  (vectors ? went_by_vectors : went_by_words) += 1;
  const int unit = vectors ? sizeof(uint4) : sizeof(uint16_t);
  return run_grid(elementwise_grid(1, call.samples, 1), [&] { decide_kernel(call); }) &&
         run_grid(elementwise_grid(call.samples, call.row_bytes, unit), [&] {
           vectors ? copy_kernel<uint4>(call) : copy_kernel<uint16_t>(call);
         });
}

// A tensor whose last byte is the last of its allocation, `offset` words past a 16-byte border.
class Memory {
 public:
  Memory(int64_t n, DType dtype, int offset)
      : word_(dtype == DType::fp32 ? 4 : 2), n_(n), block_(n * word_ + offset * word_),
        data_(block_.data() + offset * word_) {}
  Memory(const Memory& other) : word_(other.word_), n_(other.n_), block_(other.block_) {
    data_ = block_.data() + (other.data_ - other.block_.data());
  }
  void* data() { return data_; }
  void set(int64_t i, float value, DType dtype) {
    if (dtype == DType::fp32) memcpy(data_ + i * 4, &value, 4);
    const uint16_t half = dtype == DType::bf16 ? Bf16::narrow(Bf16Grid::nearest(value))
                                               : Fp16::narrow(Fp16Grid::nearest(value));
    if (dtype != DType::fp32) memcpy(data_ + i * 2, &half, 2);
  }
  // Elements that differ. One in a thousand may: sums are made in another order.
  void compare(const Memory& other, const char* what) const {
    int64_t differing = 0;
    for (int64_t i = 0; i < n_; ++i) differing += memcmp(data_ + i * word_, other.data_ + i * word_, word_) != 0;
    if (differing * 1000 <= n_) return;
    ++differences;
    printf("%s: %ld of %ld elements differ\n", what, static_cast<long>(differing), static_cast<long>(n_));
  }

 private:
  int64_t word_, n_;
  std::vector<char> block_;
  char* data_;
};

void ended(bool yes, const char* what) {
  if (yes) return;
  ++differences;
  printf("%s: a block hangs\n", what);
}

// One shape, dtype and alignment through every kernel.
void check(int64_t samples, int64_t length, DType dtype, int offset) {
  std::mt19937 bits(static_cast<unsigned>(length));
  std::uniform_real_distribution<float> uniform;
  std::normal_distribution<float> normal;
  const int64_t n = samples * length;
  Memory x(n, dtype, offset), x_adv(n, dtype, offset), x_prev(n, dtype, offset), grad(n, dtype, offset);
  for (int64_t i = 0; i < n; ++i) {
    const float pixel = uniform(bits);
    x.set(i, pixel, dtype);
    x_adv.set(i, pixel + 0.03f * normal(bits), dtype);
    x_prev.set(i, pixel + 0.03f * normal(bits), dtype);
    grad.set(i, i % 13 == 5 ? INFINITY : normal(bits), dtype);
  }
  std::vector<float> eps(samples), step(samples), momentum(samples);
  for (int64_t i = 0; i < samples; ++i) {
    eps[i] = 0.02f * sqrtf(static_cast<float>(length)) * (i % 3);
    step[i] = 0.5f * eps[i] + 0.01f;
    momentum[i] = i % 2 ? 1.0f : 0.75f;
  }
  std::vector<double> workspace(samples * (kScaleDoubles + parts_of(length) * 4));
  const auto l2 = [&](Memory& target, bool steps) {
    return StepCall{target.data(), steps ? grad.data() : nullptr, x.data(), samples, length, dtype,
                      {eps.data(), 0, 1}, {step.data(), 0, 1}, 0.0f, 1.0f, 0.01, workspace.data()};
  };
  const auto apgd = [&](Memory& target) {
    return ApgdStepCall{x_adv.data(), target.data(), grad.data(), x.data(), samples, length, dtype,
                        {eps.data(), 0, 1}, {step.data(), 0, 1}, {momentum.data(), 0, 1},
                        0.0f, 1.0f, 0.01, workspace.data()};
  };
  for (bool steps : {false, true}) {
    Memory here(x_adv), there(x_adv);
    l2_step_cpu(l2(here, steps), 1);
    ended(emulate(l2(there, steps)), "l2_step");
    there.compare(here, "l2_step");
  }
  for (bool is_l2 : {false, true}) {
    Memory here(x_prev), there(x_prev);
    (is_l2 ? apgd_l2_step_cpu : apgd_linf_step_cpu)(apgd(here), 1);
    ended(emulate(apgd(there), is_l2), "apgd_step");
    there.compare(here, "apgd_step");
  }
  for (Norm norm : {Norm::linf, Norm::l2, Norm::l1}) {
    std::vector<float> value(samples);
    for (int64_t i = 0; i < samples; ++i) value[i] = 0.02f * static_cast<float>(length * (i % 3 - 1));
    const auto fab = [&](Memory& target) {
      return FabStepCall{target.data(), grad.data(), x.data(), samples, length, dtype, norm,
                         {value.data(), 0, 1}, {nullptr, 0.1f, 0}, {step.data(), 0, 1}, 0.0f, 1.0f};
    };
    Memory here(x_adv), there(x_adv);
    fab_step_cpu(fab(here), 1);
    ended(emulate(fab(there)), "fab_step");
    there.compare(here, "fab_step");
  }
  std::vector<double> best(samples), loss(samples);
  for (int64_t i = 0; i < samples; ++i) loss[i] = i % 5 ? (i % 5 == 1 ? 1.0 : -1.0) : NAN;
  std::vector<uint8_t> improved(samples), expected(samples);
  Memory here(x_prev), there(x_prev), here_grad(x_prev), there_grad(x_prev);
  std::vector<double> best_there = best;
  const int64_t row = length * (dtype == DType::fp32 ? 4 : 2);
  select_best_cpu({here.data(), here_grad.data(), best.data(), expected.data(), x_adv.data(),
                   grad.data(), loss.data(), samples, row, LossType::fp64}, 1);
  ended(emulate(SelectBestCall{there.data(), there_grad.data(), best_there.data(), improved.data(),
                               x_adv.data(), grad.data(), loss.data(), samples, row, LossType::fp64}),
        "select_best");
  there.compare(here, "select_best");
  there_grad.compare(here_grad, "select_best's gradient");
  if (improved != expected || best != best_there) ++differences, printf("select_best: losses\n");
}

// What the emulator has to notice: a barrier that half of a block never reaches, a shuffle without its
// whole warp, and a block that its team waits for in vain.
void check_the_emulator() {
  for (bool shuffle : {false, true}) {
    const bool came_to_its_end = fibers::run_block(kThreads, [&] {
      if (threadIdx.x % 64 >= 32) return;
      if (!shuffle) __syncthreads();
      if (shuffle && threadIdx.x % 2) __shfl_down_sync(0xffffffffu, 1.0, 1);
    });
    if (came_to_its_end) ++differences, printf("the emulator sees no divergence\n");
  }
  blockIdx = {0, 0};
  const bool alone = fibers::run_team(2, kThreads, [&] {
    if (fibers::rank()) team_sync();
  });
  if (alone) ++differences, printf("the emulator sees no block that is missing\n");
}

}  // namespace

int main() {
  const int64_t shapes[][2] = {{1, 7}, {9, 2}, {2, 16}, {1, 4097}, {3, 4104}, {1, 9000}};
  for (const auto& shape : shapes) {
    for (DType dtype : {DType::fp32, DType::bf16, DType::fp16}) {
      for (int offset : {0, 1}) check(shape[0], shape[1], dtype, offset);
    }
  }
  check_the_emulator();
  if (!went_by_vectors || !went_by_words || most_blocks < 8) ++differences, printf("one way was never taken\n");
  printf("%d by vectors, %d by words, %d differences\n", went_by_vectors, went_by_words, differences);
  return differences != 0;
}
