// Runs a block of a CUDA kernel on the CPU, or a team of blocks, each thread on a stack of its own, so
// that barriers and shuffles work. A thread runs until it waits; it goes on when all threads of its
// block wait at a barrier, all of its warp at a shuffle, or all of the team for the team. Where nobody
// can go on, the kernel would hang a GPU or do what CUDA leaves undefined: the run ends with `false`.
#pragma once

#include <ucontext.h>

#include <functional>
#include <memory>
#include <vector>

#include "cuda_fp16.h"

#define RF_EMULATED 1
#define __shared__ static  // blocks run one after the other; those of a team use fibers::shared

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
constexpr int kMostBlocks = 8;  // of a team
constexpr size_t kStack = 64 * 1024;

enum class State { ready, barrier, shuffle, team, done };

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
inline int block_size;

// The place of the running block in its team.
inline unsigned rank() { return static_cast<unsigned>(current / block_size); }

// Shared memory of a block of the team.
template <class S>
S& shared(unsigned block) {
  static S all[kMostBlocks];
  return all[block];
}

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
  threadIdx.x = static_cast<unsigned>(index % block_size);
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

// Lets go on whoever of a block may, `together` all of it; whether anybody might.
inline bool advance(size_t begin, bool together) {
  bool moved = false;
  for (size_t warp = begin; warp < begin + block_size; warp += kWarp) {
    const bool ready = together || all(warp, warp + kWarp, State::shuffle) ||
                       all(warp, warp + kWarp, State::ready);
    for (size_t i = warp; ready && i < warp + kWarp; ++i) resume(static_cast<int>(i));
    moved |= ready;
  }
  return moved;
}

// Runs `blocks` blocks of `count` threads as one team, from blockIdx.x on; false if they cannot come
// to their end.
inline bool run_team(unsigned blocks, int count, const std::function<void()>& kernel) {
  const unsigned first = blockIdx.x;
  body = kernel;
  block_size = count;
  threads.resize(blocks * count);
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
  bool moved = true;
  while (moved && !all(0, threads.size(), State::done)) {
    const bool team = all(0, threads.size(), State::team);
    moved = false;
    for (unsigned block = 0; block < blocks; ++block) {
      const size_t begin = block * count;
      blockIdx.x = first + block;
      // as far as it gets before the next one begins: what waits for nobody finds nothing there
      bool on = advance(begin, team || all(begin, begin + count, State::barrier));
      while (on) {
        moved = true;
        on = advance(begin, all(begin, begin + count, State::barrier));
      }
    }
  }
  blockIdx.x = first;
  return moved;
}

inline bool run_block(int count, const std::function<void()>& kernel) {
  return run_team(1, count, kernel);
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
