// The emulated CUDA kernels of the Linf step, of the L1 ops and of the random starts beside the CPU's,
// with tensors allocated to the byte: same bits, and nothing beyond them read or written. The other
// kernels' program is run_l2.cpp. Prints what differs; 0 if nothing does.
#include <cstdio>

#include "memory.h"
#include "run.cpp"
#include "run_l1.cpp"

namespace {

using rf::Memory;

int runs = 0, differences = 0, went_by_vectors = 0, went_by_words = 0;

void expect(const char* op, const rf::Case& c, int ended, const Memory& there, const Memory& here) {
  ++runs;
  (ended > 0 ? went_by_vectors : went_by_words) += 1;
  if (ended >= 0 && there == here) return;
  ++differences;
  printf("%s: (%ld, %ld), dtype %d, shift %ld%s\n", op, static_cast<long>(c.shape.samples),
         static_cast<long>(c.shape.length), static_cast<int>(c.dtype), static_cast<long>(c.shift),
         ended < 0 ? ": a block hangs" : "");
}

void check(const rf::Case& c) {
  const int64_t samples = c.shape.samples, length = c.shape.length;
  const int code = static_cast<int>(c.dtype);
  const rf::PerSample step_size = {nullptr, 0.015625f, 0};  // as in run.cpp
  const Memory x = tensor(c, 1, 0.2f, 0.5f), x_adv = tensor(c, 2, 0.2f, 0.5f);
  const Memory grad = tensor(c, 3, 1.0f, 0.0f), eps = amounts(c, 0.0f, 0.3f);
  const Memory step_sizes = amounts(c, 0.0f, 0.2f), density = amounts(c, 0.0f, 0.25f);
  {
    Memory here(x_adv), there(x_adv);
    rf::linf_step_cpu({here.data(), grad.data(), x.data(), samples, length, c.dtype, of(eps),
                       step_size, 0.0f, 1.0f}, 1);
    const int ended = step(there.data(), grad.data(), x.data(), samples, length, code,
                           of(eps).values, 1);
    expect("linf_step", c, ended, there, here);
  }
  if (samples > 65535) return;  // fibers would take minutes
  for (bool steps : {false, true}) {
    Memory here(x_adv), there(x_adv);
    const char* slope = steps ? grad.data() : nullptr;
    rf::l1_step_cpu({here.data(), slope, x.data(), samples, length, c.dtype, of(eps),
                     of(step_sizes), of(density), 0.0f, 1.0f}, 1);
    const int ended = l1(there.data(), slope, x.data(), samples, length, code,
                         of(eps).values, of(step_sizes).values, of(density).values);
    expect("l1", c, ended, there, here);
  }
  const int64_t key = -0x123456789abcdef;
  for (rf::Norm norm : {rf::Norm::linf, rf::Norm::l2, rf::Norm::l1}) {
    for (int64_t plane : {length, c.shape.plane}) {
      Memory here(x_adv), there(x_adv), totals(samples * 8, 0);
      rf::random_start_cpu({here.data(), x.data(), &key, nullptr, samples, length, plane, c.dtype,
                            norm, of(eps), 0.0f, 1.0f}, 1);
      const int ended = start(there.data(), x.data(), &key, nullptr,
                              reinterpret_cast<int64_t*>(totals.data()), samples, length, plane,
                              code, static_cast<int>(norm), of(eps).values);
      expect("random_start", c, ended, there, here);
    }
  }
}

}  // namespace

int main() {
  const rf::Shape shapes[] = {{1, 1, 1},   {1, 7, 1},    {9, 2, 1},    {2, 16, 4}, {1, 65, 13},
                              {5, 64, 16}, {1, 1029, 7}, {3, 520, 65}, {2, 4104, 1026}};
  for (const rf::Shape& shape : shapes) {
    for (rf::DType dtype : {rf::DType::fp32, rf::DType::bf16, rf::DType::fp16}) {
      for (int64_t shift : {0, 1}) check({shape, dtype, shift, shift == 1});
    }
  }
  check({{70000, 2, 1}, rf::DType::bf16, 0, false});  // more samples than gridDim.y may be
  if (!went_by_vectors || !went_by_words) ++differences, printf("one way was never taken\n");
  printf("%d runs, %d differences\n", runs, differences);
  return differences != 0;
}
