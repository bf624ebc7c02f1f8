// Steps of a transformer's passes over rows of bf16 numbers, on the CPU alone: torch's kernels on
// CUDA do them at the memory's speed. Sums are made in fp32, in an order that a row's length fixes.
#pragma once

#include <cstdint>

namespace rf {

constexpr int64_t kMostColumns = 4096;  // of a row, which is kept in the first-level cache as floats

struct SoftmaxCall {
  void* scores;  // (rows, columns), contiguous; softmax(scale * scores) is written
  int64_t rows;
  int64_t columns;
  float scale;
};

struct SoftmaxBackwardCall {
  void* grad;         // (rows, columns), of the probabilities; that of the scores is written
  const void* chance;  // (rows, columns), the probabilities
  int64_t rows;
  int64_t columns;
  float scale;
};

struct NormCall {
  void* out;       // (rows, columns) in bf16, written
  float* mean;     // (rows,), written
  float* factor;   // (rows,), written: 1 / sqrt(variance + eps)
  const float* x;  // (rows, columns)
  const float* weight;  // (columns,), or null
  const float* bias;    // likewise
  int64_t rows;
  int64_t columns;
  float eps;
};

struct NormBackwardCall {
  float* out;        // (rows, columns), the gradient of x, written
  const void* grad;  // (rows, columns) in bf16, of the output
  const float* x;
  const float* mean;
  const float* factor;
  const float* weight;  // or null
  int64_t rows;
  int64_t columns;
};

struct WidenAddCall {
  float* out;      // (n,), written: x + y
  const float* x;  // (n,)
  const void* y;   // (n,) in bf16
  int64_t n;
};

void norm_rows_cpu(const NormCall& call, int threads);
void norm_rows_backward_cpu(const NormBackwardCall& call, int threads);
void widen_add_cpu(const WidenAddCall& call, int threads);
void softmax_rows_cpu(const SoftmaxCall& call, int threads);
void softmax_rows_backward_cpu(const SoftmaxBackwardCall& call, int threads);

}  // namespace rf
