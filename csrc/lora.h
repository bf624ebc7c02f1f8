// What Python hands to the LoRA kernels. The large products are torch's on every device, and so are
// the merge and the thin products on the CPU, where MKL is faster than loops.
#pragma once

#include "ops.h"

namespace rf {

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
int lora_merge_cuda(const LoraMergeCall& call, int device, void* stream);
int lora_dropout_cuda(const LoraDropoutCall& call, int device, void* stream);
int lora_elementwise_cuda_load(int device);

// Needs sm_80: the caller asks the device first.
int lora_backward_cuda(const LoraBackwardCall& call, int device, void* stream);
int lora_backward_cuda_load(int device);
// Floats of workspace.
int64_t lora_backward_workspace(int64_t tokens, int64_t inputs, int64_t outputs, int rank);
#endif

}  // namespace rf
