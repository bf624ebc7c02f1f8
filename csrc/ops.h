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

// A step in the Linf or the L2 ball.
struct StepCall {
  void* x_adv;       // (samples, per_sample), contiguous, written
  const void* grad;  // null, L2 alone: project only
  const void* x;
  int64_t samples;
  int64_t per_sample;
  DType dtype;
  PerSample eps;
  PerSample step_size;
  float low;
  float high;
  double slack;       // L2: see L2Limits
  double* workspace;  // L2 on CUDA: reduction_workspace doubles
};

void linf_step_cpu(const StepCall& call, int threads);
void l2_step_cpu(const StepCall& call, int threads);

enum class Norm : int { linf = 0, l2 = 1, l1 = 2 };

struct RandomStartCall {
  void* out;      // (samples, per_sample), written, in the memory order of x
  const void* x;  // of each sample, element i lies at i / plane + (i % plane) * (per_sample / plane)
  const int64_t* key;         // one number
  const int64_t* sample_ids;  // one a sample, or null for 0, 1, 2, ...
  int64_t samples;
  int64_t per_sample;
  int64_t plane;  // channels_last: height * width; contiguous: per_sample
  DType dtype;
  Norm norm;
  PerSample eps;
  float low;
  float high;
  int64_t* totals;  // CUDA, not linf: zeros, one a sample; CPU: unused
};

struct L1StepCall {
  void* x_adv;       // (samples, per_sample), contiguous, written
  const void* grad;  // null: project only
  const void* x;
  int64_t samples;
  int64_t per_sample;
  DType dtype;
  PerSample eps;
  PerSample step_size;
  PerSample density;
  float low;
  float high;
};

void l1_step_cpu(const L1StepCall& call, int threads);

// APGD's momentum step: the new iterate is written where the old one was.
struct ApgdStepCall {
  const void* x_adv;  // (samples, per_sample), contiguous
  void* x_prev;       // written
  const void* grad;
  const void* x;
  int64_t samples;
  int64_t per_sample;
  DType dtype;
  PerSample eps;
  PerSample step_size;
  PerSample momentum;
  float low;
  float high;
  double slack;  // as in StepCall
  double* workspace;
};

void apgd_linf_step_cpu(const ApgdStepCall& call, int threads);
void apgd_l2_step_cpu(const ApgdStepCall& call, int threads);

// FAB's step: the point is written.
struct FabStepCall {
  void* x_adv;       // (samples, per_sample), contiguous, written
  const void* grad;  // normals of the planes
  const void* x;
  int64_t samples;
  int64_t per_sample;
  DType dtype;
  Norm norm;
  PerSample value;  // of the linear functions at x_adv
  PerSample alpha_max;
  PerSample eta;
  float low;
  float high;
};

void fab_step_cpu(const FabStepCall& call, int threads);

enum class LossType : int { fp32 = 0, bf16 = 1, fp16 = 2, fp64 = 3 };

// Rows of bytes, of any type, that are copied where the loss is better.
struct SelectBestCall {
  void* best_x;  // (samples, row_bytes), contiguous, written
  void* best_grad;
  void* best_loss;    // (samples,), written
  uint8_t* improved;  // (samples,), written
  const void* x_adv;
  const void* grad;
  const void* loss;
  int64_t samples;
  int64_t row_bytes;
  LossType loss_type;
};

void select_best_cpu(const SelectBestCall& call, int threads);

void random_start_cpu(const RandomStartCall& call, int threads);

// The LoRA kernels. The large products are torch's on every device, and so are the merge and the thin
// products on the CPU, where MKL is faster than loops.

// Rows of one matrix of one layer: merged = weight + scale * b a.
struct MergePart {
  const void* weight;  // (rows, columns), contiguous
  void* merged;        // likewise, written
  const float* a;      // (rank, columns)
  const float* b;      // (rows, rank)
  int32_t rows;
  int32_t columns;
  int32_t rank;  // 0: a plain copy
  float scale;
};

struct LoraMergeCall {
  const MergePart* parts;
  int64_t count;
  DType from;  // of the weights
  DType to;    // of the buffers: the same, or anything for fp32 weights
};

// Zero where Philox's word of an element says so, for elements of 2, 4 or 8 bytes.
struct LoraDropoutCall {
  void* out;  // (n,), written; may be x
  const void* x;
  const int64_t* seed;  // one number
  int64_t n;
  uint32_t threshold;  // words below it drop their element
  int bytes;
};

void lora_dropout_cpu(const LoraDropoutCall& call, int threads);

constexpr int kMostSlices = 4;
constexpr int kMostRank = 64;

// Columns of dy, one range after the other.
struct Slice {
  int64_t start;
  int64_t length;  // a multiple of 8
};

// Gradients of the factors of all slices of one layer, with `rank` summed up over the slices.
struct LoraBackwardCall {
  const void* x;         // (tokens, inputs), contiguous
  const void* dy;        // (tokens, dy_stride)
  const void* a;         // (rank, inputs)
  const void* b_turned;  // (rank, outputs): B_i^T in the rows and columns of slice i, else 0
  void* ds;              // (tokens, rank), written: dy B, unscaled; or null
  float* da;             // (rank, inputs), written
  float* db;             // (outputs, rank of a slice), written
  float* workspace;      // lora_backward_workspace floats
  const int64_t* seed;   // one number, or null without dropout
  int64_t tokens;
  int64_t inputs;   // a multiple of 8
  int64_t outputs;  // all slices
  int64_t dy_stride;
  Slice slices[kMostSlices];
  int32_t slice_count;
  int32_t rank;  // at most kMostRank
  uint32_t threshold;
  float gain;
  DType dtype;  // bf16 or fp16
};

#ifdef RF_CUDA
// Each loads the kernels of a family for `device`; returns a cudaError_t.
int linf_cuda_load(int device);
int l2_cuda_load(int device);
int l1_cuda_load(int device);
int fab_cuda_load(int device);
int random_start_cuda_load(int device);
int select_best_cuda_load(int device);
int lora_cuda_load(int device);

// Each returns a cudaError_t; asynchronous on `stream`.
// Doubles of workspace for a reduction over samples of `per_sample` elements.
int64_t reduction_workspace(int64_t samples, int64_t per_sample);

int random_start_cuda(const RandomStartCall& call, int device, void* stream);
int l1_step_cuda(const L1StepCall& call, int device, void* stream);
int linf_step_cuda(const StepCall& call, int device, void* stream);

int l2_step_cuda(const StepCall& call, int device, void* stream);

int apgd_linf_step_cuda(const ApgdStepCall& call, int device, void* stream);
int apgd_l2_step_cuda(const ApgdStepCall& call, int device, void* stream);

int fab_step_cuda(const FabStepCall& call, int device, void* stream);

int select_best_cuda(const SelectBestCall& call, int device, void* stream);

int lora_merge_cuda(const LoraMergeCall& call, int device, void* stream);
int lora_dropout_cuda(const LoraDropoutCall& call, int device, void* stream);

// Needs sm_80: the caller asks the device first.
int lora_backward_cuda(const LoraBackwardCall& call, int device, void* stream);
// Floats of workspace.
int64_t lora_backward_workspace(int64_t tokens, int64_t inputs, int64_t outputs, int rank);
#endif

}  // namespace rf
