// Drives every CPU kernel under sanitizers, without Python: odd lengths, tails, empty batches,
// misaligned words, one amount a sample and wild ones, one thread and two. Memory is allocated to
// the byte, so that a step beyond it is seen. Every number of threads has to leave the same bits,
// and what is only read has to stay as it is. Prints what differs; 0 if nothing does.
#include <cstdio>
#include <random>
#include <vector>

#include "ops.h"
#include "memory.h"

namespace {

using namespace rf;

#ifdef RF_STD_THREADS
constexpr bool kOnlyThreads = true;  // ThreadSanitizer is slow, and values do not matter to it
#else
constexpr bool kOnlyThreads = false;
#endif

int runs = 0, differences = 0;

// run(copies of `written`, threads) on one thread and on two: the same bits.
template <class Run>
void compare(const char* op, const Case& c, const std::vector<Memory>& written,
             const std::vector<const Memory*>& read, const Run& run) {
  std::vector<Memory> before, first;
  for (const Memory* memory : read) before.push_back(*memory);
  for (int threads = 1; threads <= 2; ++threads, ++runs) {
    std::vector<Memory> results(written);
    run(results, threads);
    bool same = threads == 1 || results == first;
    if (threads == 1) first = std::move(results);
    for (size_t i = 0; i < read.size(); ++i) same &= before[i] == *read[i];
    if (same) continue;
    ++differences;
    printf("%s: (%ld, %ld), dtype %d, shift %ld, %d threads\n", op,
           static_cast<long>(c.shape.samples), static_cast<long>(c.shape.length),
           static_cast<int>(c.dtype), static_cast<long>(c.shift), threads);
  }
}

struct Tensors {
  Memory x, x_adv, grad, x_prev, eps, step, fraction;

  explicit Tensors(const Case& c)
      : x(tensor(c, 1, 0.2f, 0.5f)), x_adv(tensor(c, 2, 0.2f, 0.5f)), grad(tensor(c, 3, 1.0f, 0.0f)),
        x_prev(tensor(c, 4, 0.2f, 0.5f)), eps(amounts(c, 0.0f, 0.3f)),
        step(amounts(c, 0.0f, 0.05f)), fraction(amounts(c, 0.0f, 0.25f)) {}
};

void steps(const Case& c, const Tensors& t) {
  const int64_t samples = c.shape.samples, length = c.shape.length;
  const PerSample eps = of(t.eps), step = of(t.step), fraction = of(t.fraction);
  const std::vector<const Memory*> read = {&t.x, &t.grad, &t.eps, &t.step, &t.fraction};
  compare("linf_step", c, {t.x_adv}, read, [&](auto& w, int threads) {
    linf_step_cpu({w[0].data(), t.grad.data(), t.x.data(), samples, length, c.dtype, eps, step,
                   0.0f, 1.0f}, threads);
  });
  compare("linf_step, one eps", c, {t.x_adv}, read, [&](auto& w, int threads) {
    linf_step_cpu({w[0].data(), t.grad.data(), t.x.data(), samples, length, c.dtype,
                   {nullptr, 0.1f, 0}, {nullptr, 0.02f, 0}, 0.0f, 1.0f}, threads);
  });
  for (const char* grad : {t.grad.data(), static_cast<char*>(nullptr)}) {
    compare("l2_step", c, {t.x_adv}, read, [&](auto& w, int threads) {
      l2_step_cpu({w[0].data(), grad, t.x.data(), samples, length, c.dtype, eps, step, 0.0f, 1.0f,
                   0.01, nullptr}, threads);
    });
    compare("l1_step", c, {t.x_adv}, read, [&](auto& w, int threads) {
      l1_step_cpu({w[0].data(), grad, t.x.data(), samples, length, c.dtype, eps, step, fraction, 0.0f,
                   1.0f}, threads);
    });
  }
  for (const auto& apgd : {apgd_linf_step_cpu, apgd_l2_step_cpu}) {
    compare("apgd_step", c, {t.x_prev}, {&t.x, &t.x_adv, &t.grad}, [&](auto& w, int threads) {
      apgd({t.x_adv.data(), w[0].data(), t.grad.data(), t.x.data(), samples, length, c.dtype, eps,
            step, fraction, 0.0f, 1.0f, 0.01, nullptr}, threads);
    });
  }
  for (Norm norm : {Norm::linf, Norm::l2, Norm::l1}) {
    compare("fab_step", c, {t.x_adv}, read, [&](auto& w, int threads) {
      fab_step_cpu({w[0].data(), t.grad.data(), t.x.data(), samples, length, c.dtype, norm, eps,
                    fraction, step, 0.0f, 1.0f}, threads);
    });
  }
}

void starts(const Case& c, const Tensors& t) {
  const int64_t samples = c.shape.samples, length = c.shape.length;
  Memory key(8, 0), ids(samples * 8, 0);
  memset(key.data(), 0x9e, 8);
  for (int64_t i = 0; i < samples; ++i) memcpy(ids.data() + i * 8, &i, 8);
  for (Norm norm : {Norm::linf, Norm::l2, Norm::l1}) {
    for (int64_t plane : {length, c.shape.plane}) {
      const bool named = plane == length;
      compare("random_start", c, {t.x_adv}, {&t.x, &key, &ids}, [&](auto& w, int threads) {
        random_start_cpu({w[0].data(), t.x.data(), reinterpret_cast<int64_t*>(key.data()),
                          named ? reinterpret_cast<int64_t*>(ids.data()) : nullptr, samples, length,
                          plane, c.dtype, norm, of(t.eps), 0.0f, 1.0f}, threads);
      });
    }
  }
}

void selections(const Case& c, const Tensors& t) {
  const int64_t sizes[] = {4, 2, 2, 8};  // of LossType's numbers
  for (int type = 0; type < 4; ++type) {
    Memory best(c.shape.samples * sizes[type], 0), loss(best), improved(c.shape.samples, 0);
    std::mt19937 bits(5);
    for (int64_t i = 0; i < c.shape.samples * sizes[type]; ++i) {
      loss.data()[i] = static_cast<char>(bits());
      best.data()[i] = static_cast<char>(bits());
    }
    compare("select_best", c, {t.x_prev, t.x, best, improved}, {&t.x_adv, &t.grad, &loss},
            [&](auto& w, int threads) {
              select_best_cpu({w[0].data(), w[1].data(), w[2].data(),
                               reinterpret_cast<uint8_t*>(w[3].data()), t.x_adv.data(),
                               t.grad.data(), loss.data(), c.shape.samples,
                               c.shape.length * c.word(), static_cast<LossType>(type)}, threads);
            });
  }
}

// LoRA's: its other CPU work is torch's. Out of place and in place, elements of each size.
void dropout(const Case& c, const Tensors& t) {
  const int64_t bytes = c.count() * c.word(), seed = -77;
  for (int64_t word : {c.word(), int64_t{8}}) {
    if (word == 8 && c.shift) continue;  // not at a border of eight bytes
    for (bool in_place : {false, true}) {
      compare("lora_dropout", c, {in_place ? t.x : t.x_adv}, {&t.x}, [&](auto& w, int threads) {
        const char* x = in_place ? w[0].data() : t.x.data();
        lora_dropout_cpu({w[0].data(), x, &seed, bytes / word, 0x55555555u, int(word)}, threads);
      });
    }
  }
}

}  // namespace

int main() {
  // Around lanes of 16, blocks of 512, chunks of 4096 and the 32768 elements of a thread.
  const Shape shapes[] = {{0, 5, 5},     {3, 0, 0},       {1, 1, 1},         {5, 1, 1},
                          {3, 17, 17},   {1, 511, 73},    {2, 4097, 241},    {9, 4100, 1025},
                          {1, 40001, 1}, {2, 20003, 241}, {600, 67, 67}};
  for (const Shape& shape : shapes) {
    for (DType dtype : {DType::fp32, DType::bf16, DType::fp16}) {
      for (int64_t shift : {0, 1}) {
        if (kOnlyThreads && shift) continue;
        const Case c = {shape, dtype, shift, shift == 1};
        const Tensors tensors(c);
        steps(c, tensors);
        starts(c, tensors);
        selections(c, tensors);
        dropout(c, tensors);
      }
    }
  }
  printf("%d runs, %d differences\n", runs, differences);
  return differences != 0;
}
