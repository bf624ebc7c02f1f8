// What Python hands to a kernel: raw pointers and sizes, checked on the Python side.
#pragma once

#include <cstdint>

namespace rf {

enum class DType : int { fp32 = 0, bf16 = 1, fp16 = 2 };

// A number for the whole batch, or, if `values` is set, values[sample * stride] (stride 0 or 1).
struct PerSample {
  const float* values;
  float value;
  int64_t stride;
};

struct LinfStepCall {
  void* x_adv;  // (samples, per_sample), contiguous, written
  const void* grad;
  const void* x;
  int64_t samples;
  int64_t per_sample;
  DType dtype;
  PerSample eps;
  PerSample step_size;
  float low;
  float high;
};

void linf_step_cpu(const LinfStepCall& call, int threads);

#ifdef RF_CUDA
// Returns a cudaError_t; asynchronous on `stream`.
int linf_step_cuda(const LinfStepCall& call, int device, void* stream);
// Loads the kernels for `device`; returns a cudaError_t.
int linf_step_cuda_load(int device);
#endif

}  // namespace rf
