// Runs a block of a CUDA kernel on the CPU, each thread on a stack of its own, so that barriers and
// shuffles work. A thread runs until it waits; it goes on when all threads of the block wait at a
// barrier, or all of its warp at a shuffle. Where nobody can go on, the kernel would hang a GPU or do
// what CUDA leaves undefined: the run ends with `false`.
#pragma once

#include <ucontext.h>

#include <functional>
#include <memory>
#include <vector>

#include "cuda_fp16.h"

#define __shared__ static  // blocks run one after the other

#if defined(__SANITIZE_ADDRESS__)
#include <sanitizer/common_interface_defs.h>
#define RF_LEAVE(save, to) __sanitizer_start_switch_fiber(save, (to).uc_stack.ss_sp, (to).uc_stack.ss_size)
#define RF_ENTER(save) __sanitizer_finish_switch_fiber(save, nullptr, nullptr)
#else
#define RF_LEAVE(save, to) (void)0
#define RF_ENTER(save) (void)0
#endif

namespace fibers {

constexpr int kWarp = 32;
constexpr size_t kStack = 64 * 1024;

enum class State { ready, barrier, shuffle, done };

struct Fiber {
  ucontext_t context;
  std::unique_ptr<char[]> stack;
  State state = State::ready;
  void* fake_stack = nullptr;
  double offered[2] = {};  // in turn, so that nobody overwrites what is still to be taken
  int shuffles = 0;
};

inline std::vector<Fiber> threads;
inline ucontext_t scheduler;
inline void* scheduler_fake_stack;
inline const void* scheduler_stack;
inline size_t scheduler_size;
inline std::function<void()> body;
inline int current;

inline void wait(State state) {
  Fiber& self = threads[current];
  self.state = state;
#if defined(__SANITIZE_ADDRESS__)
  void** save = state == State::done ? nullptr : &self.fake_stack;
  __sanitizer_start_switch_fiber(save, scheduler_stack, scheduler_size);
#endif
  swapcontext(&self.context, &scheduler);
  RF_ENTER(self.fake_stack);
}

inline void enter() {
#if defined(__SANITIZE_ADDRESS__)
  __sanitizer_finish_switch_fiber(nullptr, &scheduler_stack, &scheduler_size);
#endif
  body();
  wait(State::done);
}

inline void resume(int index) {
  Fiber& fiber = threads[index];
  current = index;
  threadIdx.x = static_cast<unsigned>(index);
  fiber.state = State::ready;
  RF_LEAVE(&scheduler_fake_stack, fiber.context);
  swapcontext(&scheduler, &fiber.context);
  RF_ENTER(scheduler_fake_stack);
}

inline bool all(size_t begin, size_t end, State state) {
  for (size_t i = begin; i < end; ++i) {
    if (threads[i].state != state) return false;
  }
  return true;
}

// Lets go on whoever may; false if nobody may.
inline bool advance() {
  const bool together = all(0, threads.size(), State::barrier);
  bool moved = false;
  for (size_t i = 0; i < threads.size(); ++i) {
    const size_t warp = i / kWarp * kWarp;
    if (i == warp && !together && !all(warp, warp + kWarp, State::shuffle) &&
        !all(warp, warp + kWarp, State::ready)) {
      i += kWarp - 1;
      continue;
    }
    resume(static_cast<int>(i));
    moved = true;
  }
  return moved;
}

// Runs one block of `count` threads; false if it cannot come to its end.
inline bool run_block(int count, const std::function<void()>& kernel) {
  body = kernel;
  threads.resize(count);
  for (Fiber& fiber : threads) {
    if (!fiber.stack) fiber.stack.reset(new char[kStack]);
    fiber.state = State::ready;
    fiber.shuffles = 0;
    getcontext(&fiber.context);
    fiber.context.uc_stack.ss_sp = fiber.stack.get();
    fiber.context.uc_stack.ss_size = kStack;
    fiber.context.uc_link = nullptr;
    makecontext(&fiber.context, reinterpret_cast<void (*)()>(enter), 0);
  }
  while (!all(0, threads.size(), State::done)) {
    if (!advance()) return false;
  }
  return true;
}

}  // namespace fibers

inline void __syncthreads() { fibers::wait(fibers::State::barrier); }

// Lanes beyond the warp's end give their own value, as on a GPU.
inline double __shfl_down_sync(unsigned, double value, int step) {
  using namespace fibers;
  const int self = current;
  const int turn = threads[self].shuffles++ % 2;
  threads[self].offered[turn] = value;
  wait(State::shuffle);
  const double taken = self % kWarp + step < kWarp ? threads[self + step].offered[turn] : value;
  return taken;
}
