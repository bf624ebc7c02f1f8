// Indices beyond 2^32 elements in the L1 kernels and the random starts. Prints what differs; 0 if nothing does.
#include "far.h"

template <class T>
T atomicAdd(T* target, T value) {
  const T before = *target;
  *target += value;
  return before;
}

#include "cuda/l1.cu"
#include "cuda/random_start.cu"

namespace {

using namespace rf;
using namespace rf::cuda;

template <bool kVectors, bool kStep>
void l1() {
  const Far target(4, 1.0f, 0.0f);
  auto here = target.copy();
  l1_step_cpu({here.data(), kStep ? grad.tested() : nullptr, x.tested(), kTested, kLength,
               DType::bf16, l1_eps.near(), step.near(), fraction.near(), 0.0f, 1.0f}, 1);
  const L1StepCall call = {target.all, grad.all, x.all, kSamples, kLength, DType::bf16,
                           l1_eps.far(), step.far(), fraction.far(), 0.0f, 1.0f};
  run_last(1, [&] { l1_kernel<Bf16, kVectors, kStep>(call); });
  compare("l1", target.tested(), here);
}

template <bool kVectors>
void start(Norm norm, int64_t plane, int64_t* totals) {
  const Far target(4, 1.0f, 0.0f);
  auto here = target.copy();
  const int64_t key = 12345, ids[] = {kFirst, kFirst + 1};
  random_start_cpu({here.data(), x.tested(), &key, ids, kTested, kLength, plane, DType::bf16, norm,
                    eps.near(), 0.0f, 1.0f}, 1);
  const RandomStartCall call = {target.all, x.all, &key, nullptr, kSamples, kLength, plane,
                                DType::bf16, norm, eps.far(), 0.0f, 1.0f, totals};
  memset(totals + kFirst, 0, kTested * 8);
  if (norm != Norm::linf) run_last(1, [&] { start_totals(call); });
  run_last(1, [&] { start_kernel<Bf16, kVectors>(call); });
  compare("random_start", target.tested(), here);
}

}  // namespace

int main() {
  int64_t* totals = sparse<int64_t>(kSamples);
  l1<true, true>(), l1<true, false>(), l1<false, true>(), l1<false, false>();
  for (Norm norm : {Norm::linf, Norm::l2, Norm::l1}) {
    start<true>(norm, kLength, totals);
    start<false>(norm, kLength / 4, totals);
  }
  printf("large tensors, %d differences\n", differences);
  return differences != 0;
}
