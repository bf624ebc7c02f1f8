// Indices beyond 2^32 elements in the other kernels. Prints what differs; 0 if nothing does.
#include "far.h"

#include "cuda/fab.cu"
#include "cuda/l2.cu"
#include "cuda/linf.cu"
#include "cuda/select_best.cu"

namespace {

using namespace rf;
using namespace rf::cuda;

template <bool kVectors>
void linf() {
  const Far target(4, 1.0f, 0.0f);
  auto here = target.copy();
  linf_step_cpu({here.data(), grad.tested(), x.tested(), kTested, kLength, DType::bf16,
                 linf_eps.near(), step.near(), 0.0f, 1.0f}, 1);
  const StepCall call = {target.all, grad.all, x.all, kSamples, kLength, DType::bf16,
                             linf_eps.far(), step.far(), 0.0f, 1.0f};
  run_last(1, [&] { step_kernel<Bf16, kVectors>(call); });
  compare("linf_step", target.tested(), here);
}

// One sample of 2^32 elements and more: the blocks at its end.
void linf_long() {
  const Far target(4, 1.0f, 0.0f);
  auto here = target.copy();
  const PerSample radius = {nullptr, 0.1f, 0}, length = {nullptr, 0.05f, 0};
  linf_step_cpu({here.data(), grad.tested(), x.tested(), kTested, kLength, DType::bf16, radius,
                 length, 0.0f, 1.0f}, 1);
  const StepCall call = {target.all, grad.all, x.all, 1, kSamples * kLength, DType::bf16,
                             radius, length, 0.0f, 1.0f};
  const unsigned first = static_cast<unsigned>(kFirstElement / kThreads);
  gridDim = {static_cast<unsigned>(kSamples * kLength / kThreads), 1};
  for (unsigned block = first; block < gridDim.x; ++block) {
    blockIdx = {block, 0};
    fibers::run_block(kThreads, [&] { step_kernel<Bf16, false>(call); });
  }
  compare("linf_step of one sample", target.tested(), here);
}

template <bool kVectors>
void l2(double* workspace) {
  const Far target(4, 1.0f, 0.0f);
  auto here = target.copy();
  StepCall call = {here.data(), grad.tested(), x.tested(), kTested, kLength, DType::bf16,
                     eps.near(), step.near(), 0.0f, 1.0f, 0.01, nullptr};
  l2_step_cpu(call, 1);
  call = {target.all, grad.all, x.all, kSamples, kLength, DType::bf16, eps.far(), step.far(), 0.0f,
          1.0f, 0.01, workspace};
  run_last(sum_grid(kSamples, kLength).blocks, [&] { sum_kernel<Bf16, kVectors>(sums_for(call)); });
  run_last(1, [&] { l2_scale_kernel<StepCall, false>(call); });
  run_last(1, [&] { l2_step_kernel<Bf16, kVectors>(call); });
  compare("l2_step", target.tested(), here);
}

template <bool kVectors>
void apgd(bool is_l2, double* workspace) {
  const Far target(4, 1.0f, 0.0f);
  auto here = target.copy();
  const Amounts& radius = is_l2 ? eps : linf_eps;
  (is_l2 ? apgd_l2_step_cpu : apgd_linf_step_cpu)(
      {x_adv.tested(), here.data(), grad.tested(), x.tested(), kTested, kLength, DType::bf16,
       radius.near(), step.near(), fraction.near(), 0.0f, 1.0f, 0.01, nullptr}, 1);
  const ApgdStepCall call = {x_adv.all, target.all, grad.all, x.all, kSamples, kLength,
                             DType::bf16, radius.far(), step.far(), fraction.far(), 0.0f, 1.0f,
                             0.01, workspace};
  const unsigned blocks = sum_grid(kSamples, kLength).blocks;
  if (is_l2) {
    run_last(blocks, [&] { sum_kernel<Bf16, kVectors>(sums_for(call)); });
    run_last(1, [&] { l2_scale_kernel<ApgdStepCall, false>(call); });
    run_last(blocks, [&] { apgd_l2_length_kernel<Bf16, kVectors>(call); });
    run_last(1, [&] { l2_scale_kernel<ApgdStepCall, true>(call); });
    run_last(1, [&] { apgd_l2_step_kernel<Bf16, kVectors>(call); });
  } else {
    run_last(1, [&] { apgd_linf_step_kernel<Bf16, kVectors>(call); });
  }
  compare("apgd_step", target.tested(), here);
}

template <bool kVectors, Norm kNorm>
void fab() {
  const Far target(4, 1.0f, 0.0f);
  auto here = target.copy();
  const PerSample eta = {nullptr, 1.05f, 0};
  FabStepCall call = {here.data(), grad.tested(), x.tested(), kTested, kLength, DType::bf16, kNorm,
                      l1_eps.near(), fraction.near(), eta, 0.0f, 1.0f};
  fab_step_cpu(call, 1);
  call = {target.all, grad.all, x.all, kSamples, kLength, DType::bf16, kNorm, l1_eps.far(),
          fraction.far(), eta, 0.0f, 1.0f};
  run_last(1, [&] { fab_step_kernel<Bf16, kVectors, kNorm>(call); });
  compare("fab_step", target.tested(), here);
}

template <class Unit>
void select() {
  const Far best(4, 1.0f, 0.0f), best_grad(5, 1.0f, 0.0f);
  uint8_t* improved = sparse<uint8_t>(kSamples);
  float *best_loss = sparse<float>(kSamples), *loss = sparse<float>(kSamples);
  loss[kSamples - 1] = 1.0f;
  const SelectBestCall call = {best.all, best_grad.all, best_loss, improved, x_adv.all, grad.all,
                               loss, kSamples, kLength * 2, LossType::fp32};
  auto here = best.copy(), here_grad = best_grad.copy();
  memcpy(here.data() + kLength, x_adv.tested() + kLength, kLength * 2);
  memcpy(here_grad.data() + kLength, grad.tested() + kLength, kLength * 2);
  gridDim = {static_cast<unsigned>(kSamples / kThreads + 1), 1};
  blockIdx = {static_cast<unsigned>((kSamples - 1) / kThreads), 0};
  if (!fibers::run_block(kThreads, [&] { decide_kernel(call); })) ++differences;
  run_last(1, [&] { copy_kernel<Unit>(call); });
  compare("select_best", best.tested(), here);
  compare("select_best's gradient", best_grad.tested(), here_grad);
  if (best_loss[kSamples - 1] != 1.0f || improved[kFirst]) ++differences, printf("losses\n");
}

}  // namespace

int main() {
  double* workspace = sparse<double>(kSamples * (kScaleDoubles + parts_of(kLength) * 4));
  linf<true>(), linf<false>(), linf_long();
  l2<true>(workspace), l2<false>(workspace);
  for (bool is_l2 : {false, true}) apgd<true>(is_l2, workspace), apgd<false>(is_l2, workspace);
  fab<true, Norm::linf>(), fab<false, Norm::l2>(), fab<true, Norm::l1>();
  select<uint4>(), select<uint16_t>();
  printf("large tensors, %d differences\n", differences);
  return differences != 0;
}
