#include <cmath>

#include "cpu/dispatch.h"
#include "cpu/parallel.h"
#include "cpu/row_lanes.h"
#include "rows.h"

namespace rf {
namespace {

RF_CLONES float mean_of(const float* __restrict x, int64_t columns) {
  return sum_row(x, columns) / static_cast<float>(columns);
}

// `work`: room for `columns` floats.
RF_CLONES float variance_of(const float* __restrict x, float* __restrict work, int64_t columns,
                            float mean) {
  for (int64_t i = 0; i < columns; ++i) work[i] = (x[i] - mean) * (x[i] - mean);
  return sum_row(work, columns) / static_cast<float>(columns);
}

RF_CLONES void scaled_row(uint16_t* __restrict out, const float* __restrict x,
                          const float* __restrict weight, const float* __restrict bias,
                          int64_t columns, float mean, float factor) {
  for (int64_t i = 0; i < columns; ++i) {
    out[i] = to_bf16((x[i] - mean) * factor * weight[i] + bias[i]);
  }
}

// `inner` and `along`: room for `columns` floats each.
RF_CLONES void backward_row(float* __restrict out, const uint16_t* __restrict grad,
                            const float* __restrict x, const float* __restrict weight,
                            float* __restrict inner, float* __restrict along, int64_t columns,
                            float mean, float factor) {
  for (int64_t i = 0; i < columns; ++i) {
    inner[i] = widen_bf16(grad[i]) * weight[i];
    along[i] = inner[i] * (x[i] - mean);
  }
  const float share = 1.0f / static_cast<float>(columns);
  const float level = sum_row(inner, columns) * share;
  const float slope = sum_row(along, columns) * share * factor * factor;
  for (int64_t i = 0; i < columns; ++i) {
    out[i] = factor * (inner[i] - level - (x[i] - mean) * slope);
  }
}

RF_CLONES void add(float* __restrict out, const float* __restrict x, const uint16_t* __restrict y,
                   int64_t n) {
  for (int64_t i = 0; i < n; ++i) out[i] = x[i] + widen_bf16(y[i]);
}

// body(begin, end, weight, bias), with ones and zeros where there are none.
template <class Body>
void each(int64_t rows, int64_t columns, const float* weight, const float* bias, int threads,
          const Body& body) {
  parallel_items(rows, columns, threads, [&](int64_t begin, int64_t end) {
    alignas(64) float ones[kMostColumns], zeros[kMostColumns];
    for (int64_t i = 0; !weight && i < columns; ++i) ones[i] = 1.0f;
    for (int64_t i = 0; !bias && i < columns; ++i) zeros[i] = 0.0f;
    body(begin, end, weight ? weight : ones, bias ? bias : zeros);
  });
}

}  // namespace

void norm_rows_cpu(const NormCall& call, int threads) {
  const auto norm = [&](int64_t begin, int64_t end, const float* weight, const float* bias) {
    alignas(64) float work[kMostColumns];
    for (int64_t row = begin; row < end; ++row) {
      const int64_t at = row * call.columns;
      call.mean[row] = mean_of(call.x + at, call.columns);
      const float variance = variance_of(call.x + at, work, call.columns, call.mean[row]);
      call.factor[row] = 1.0f / std::sqrt(variance + call.eps);
      scaled_row(static_cast<uint16_t*>(call.out) + at, call.x + at, weight, bias, call.columns,
                 call.mean[row], call.factor[row]);
    }
  };
  each(call.rows, call.columns, call.weight, call.bias, threads, norm);
}

void norm_rows_backward_cpu(const NormBackwardCall& call, int threads) {
  const auto back = [&](int64_t begin, int64_t end, const float* weight, const float*) {
    alignas(64) float inner[kMostColumns], along[kMostColumns];
    for (int64_t row = begin; row < end; ++row) {
      const int64_t at = row * call.columns;
      backward_row(call.out + at, static_cast<const uint16_t*>(call.grad) + at, call.x + at, weight,
                   inner, along, call.columns, call.mean[row], call.factor[row]);
    }
  };
  each(call.rows, call.columns, call.weight, nullptr, threads, back);
}

void widen_add_cpu(const WidenAddCall& call, int threads) {
  const uint16_t* y = static_cast<const uint16_t*>(call.y);
  parallel_for(call.n, threads, [&](int64_t begin, int64_t end) {
    add(call.out + begin, call.x + begin, y + begin, end - begin);
  });
}

}  // namespace rf
