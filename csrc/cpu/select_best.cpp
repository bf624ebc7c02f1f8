#include <cstring>

#include "cpu/blocks.h"
#include "cpu/parallel.h"
#include "math/select_best.h"
#include "ops.h"

namespace rf {
namespace {

double loss_at(const void* losses, int64_t i, LossType type) {
  float wide;
  switch (type) {
    case LossType::fp32:
      return static_cast<const float*>(losses)[i];
    case LossType::fp64:
      return static_cast<const double*>(losses)[i];
    case LossType::bf16:
      return widen_bf16(static_cast<const uint16_t*>(losses)[i]);
    default:
      half_to_float(static_cast<const uint16_t*>(losses) + i, &wide, 1);
      return wide;
  }
}

int64_t bytes_of(LossType type) {
  return type == LossType::fp64 ? 8 : (type == LossType::fp32 ? 4 : 2);
}

void copy_row(void* to, const void* from, int64_t row, int64_t bytes) {
  memcpy(static_cast<char*>(to) + row * bytes, static_cast<const char*>(from) + row * bytes, bytes);
}

}  // namespace

void select_best_cpu(const SelectBestCall& call, int threads) {
  const auto select = [&](int64_t begin, int64_t end) {
    for (int64_t i = begin; i < end; ++i) {
      const bool better = is_better(loss_at(call.loss, i, call.loss_type),
                                    loss_at(call.best_loss, i, call.loss_type));
      call.improved[i] = better;
      if (!better) continue;
      copy_row(call.best_loss, call.loss, i, bytes_of(call.loss_type));
      copy_row(call.best_x, call.x_adv, i, call.row_bytes);
      copy_row(call.best_grad, call.grad, i, call.row_bytes);
    }
  };
  parallel_items(call.samples, call.row_bytes / 4, threads, select);
}

}  // namespace rf
