// Runs the threads of a block as fibers, for kernels with barriers: each runs up to the next
// barrier, then the next one does, in an order that changes from barrier to barrier. A thread that
// leaves while another waits is an error, as it is undefined on a GPU. Include before a kernel.
#pragma once

#include <ucontext.h>

#include <cstdio>
#include <cstdlib>
#include <functional>
#include <vector>

#include "cuda_fp16.h"

#define __shared__ static

namespace fibers {

constexpr size_t kStack = 64 * 1024;

struct Fiber {
  ucontext_t context;
  std::vector<char> stack = std::vector<char>(kStack);
  bool done;
};

inline std::vector<Fiber> pool;
inline ucontext_t scheduler;
inline size_t current;
inline std::function<void()> body;

inline void enter() {
  body();
  pool[current].done = true;
  swapcontext(&pool[current].context, &scheduler);
}

// One block of `threads` threads, all of which run `kernel`.
inline void run_block(unsigned threads, std::function<void()> kernel) {
  body = std::move(kernel);
  if (pool.size() < threads) pool.resize(threads);
  for (unsigned i = 0; i < threads; ++i) {
    Fiber& fiber = pool[i];
    fiber.done = false;
    getcontext(&fiber.context);
    fiber.context.uc_stack.ss_sp = fiber.stack.data();
    fiber.context.uc_stack.ss_size = kStack;
    makecontext(&fiber.context, enter, 0);
  }
  for (unsigned round = 0;; ++round) {
    unsigned finished = 0;
    for (unsigned i = 0; i < threads; ++i) {
      current = round % 2 ? threads - 1 - i : i;
      threadIdx.x = static_cast<unsigned>(current);
      swapcontext(&scheduler, &pool[current].context);
      finished += pool[current].done;
    }
    if (finished == threads) return;
    if (finished) {
      fprintf(stderr, "%u of %u threads left the block before a barrier\n", finished, threads);
      abort();
    }
  }
}

}  // namespace fibers

inline void __syncthreads() {
  swapcontext(&fibers::pool[fibers::current].context, &fibers::scheduler);
}

template <class T>
T atomicAdd(T* target, T value) {
  const T before = *target;
  *target += value;
  return before;
}
