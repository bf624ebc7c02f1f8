// The matrix instruction as a plain loop, after the PTX manual: every lane of a warp offers its
// registers, waits for the others, and sums up its four elements of D.
#pragma once

#include "block.h"

namespace fibers {

constexpr int kMostThreads = 512;
inline uint32_t offered_registers[kMostThreads][2][6];

// Word `half` of a register: an element of 16 bits.
inline uint16_t half_of(uint32_t reg, int half) {
  return static_cast<uint16_t>(half ? reg >> 16 : reg);
}

// A[row][column]: registers 0 .. 3 are (g, left), (g + 8, left), (g, right), (g + 8, right).
inline uint16_t element_a(int warp, int turn, int row, int column) {
  const int lane = row % 8 * 4 + column % 8 / 2;
  const int reg = row / 8 + column / 8 * 2;
  return half_of(offered_registers[warp + lane][turn][reg], column % 2);
}

// B[row][column]: registers 0 and 1 are rows 0 .. 7 and 8 .. 15; a lane's column is lane / 4.
inline uint16_t element_b(int warp, int turn, int row, int column) {
  const int lane = column * 4 + row % 8 / 2;
  return half_of(offered_registers[warp + lane][turn][4 + row / 8], row % 2);
}

}  // namespace fibers

template <class T>
void emulated_mma(float (&d)[4], const uint32_t (&a)[4], uint32_t b0, uint32_t b1) {
  using namespace fibers;
  const int self = current, warp = self / kWarp * kWarp, lane = self % kWarp;
  const int turn = threads[self].shuffles++ % 2;
  uint32_t* mine = offered_registers[self][turn];
  for (int i = 0; i < 4; ++i) mine[i] = a[i];
  mine[4] = b0;
  mine[5] = b1;
  wait(State::shuffle);
  for (int i = 0; i < 4; ++i) {
    const int row = lane / 4 + i / 2 * 8, column = lane % 4 * 2 + i % 2;
    for (int k = 0; k < 16; ++k) {
      d[i] += T::widen(element_a(warp, turn, row, k)) * T::widen(element_b(warp, turn, k, column));
    }
  }
}
