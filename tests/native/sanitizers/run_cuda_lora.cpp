// The emulated CUDA kernels of LoRA, with tensors allocated to the byte: nothing beyond them is read
// or written, and the values are those of loops that are written out. Prints what differs; 0 if
// nothing does.
#include <cstdio>
#include <string>
#include <vector>

#include "memory.h"
#include "run_lora.cpp"

namespace {

using rf::Case;
using rf::DType;
using rf::Memory;

int runs = 0, differences = 0;

void expect(bool right, const char* op, const std::string& what) {
  ++runs;
  differences += !right;
  if (!right) printf("%s: %s\n", op, what.c_str());
}

// A matrix of standard normal numbers.
Memory matrix(int64_t rows, int64_t columns, DType dtype, unsigned seed, int64_t shift = 0) {
  return tensor(Case{{rows, columns, columns}, dtype, shift, false}, seed, 1.0f, 0.0f);
}

float nearest(float value, DType dtype) {
  if (dtype == DType::fp32) return value;
  return dtype == DType::bf16 ? rf::Bf16Grid::nearest(value) : rf::Fp16Grid::nearest(value);
}

std::vector<float> floats(const Memory& memory, int64_t count, DType dtype) {
  std::vector<float> out(count);
  for (int64_t i = 0; i < count; ++i) {
    uint16_t word;
    memcpy(&word, memory.data() + i * 2, 2);
    if (dtype == DType::bf16) out[i] = Bf16::widen(word);
    if (dtype == DType::fp16) out[i] = Fp16::widen(word);
    if (dtype == DType::fp32) memcpy(&out[i], memory.data() + i * 4, 4);
  }
  return out;
}

float* data(const Memory& memory) { return reinterpret_cast<float*>(memory.data()); }

void check_dropout(int64_t n, DType dtype, int64_t shift) {
  const int bytes = dtype == DType::fp32 ? 4 : 2;
  const Memory x = matrix(1, n, dtype, 1, shift);
  const int64_t seed = -77;
  const uint32_t threshold = 0x55555555u;
  Memory here(x);
  rf::lora_dropout_cpu({here.data(), x.data(), &seed, n, threshold, bytes}, 1);
  for (bool in_place : {false, true}) {
    Memory there(x);
    const int ended =
        dropout(there.data(), (in_place ? there : x).data(), &seed, n, threshold, bytes);
    expect(ended >= 0 && here == there, "dropout", std::to_string(n));
  }
}

void check_merge(int parts, int rows, int columns, int rank, DType from, DType to, int64_t shift) {
  const int64_t each = int64_t{rows} * columns;
  const Memory weight = matrix(parts, each, from, 1, shift);
  const Memory merged = matrix(parts, each, to, 2, shift);
  const Memory a = matrix(parts, rank * columns, DType::fp32, 3);
  const Memory b = matrix(parts, rows * rank, DType::fp32, 4);
  const int ended = merge(weight.data(), merged.data(), data(a), data(b), parts, rows, columns,
                          rank, 0.25f, static_cast<int>(from), static_cast<int>(to));
  const std::vector<float> w = floats(weight, parts * each, from);
  const std::vector<float> found = floats(merged, parts * each, to);
  bool same = ended == 0;
  for (int64_t i = 0; i < parts * each; ++i) {
    const int64_t part = i / each, row = i % each / columns, column = i % columns;
    float sum = 0.0f;
    for (int k = 0; k < rank; ++k) {
      sum += data(b)[(part * rows + row) * rank + k] *
             data(a)[(part * rank + k) * columns + column];
    }
    same &= found[i] == nearest(part % 3 == 2 ? w[i] : w[i] + 0.25f * sum, to);
  }
  expect(same, "merge", std::to_string(parts) + " of " + std::to_string(rows));
}

struct Sizes {
  int64_t tokens, inputs, stride;
  int rank;  // of a slice
  std::vector<int64_t> slices;  // start and length of each
};

// Within a spacing of the largest: a sum may be rounded to the other side.
bool close(const std::vector<double>& wanted, const std::vector<float>& found, DType dtype) {
  double largest = 0.0, apart = 0.0;
  for (size_t i = 0; i < wanted.size(); ++i) {
    largest = std::max(largest, std::fabs(wanted[i]));
    const double gap = std::fabs(wanted[i] - found[i]);
    apart = gap <= apart ? apart : gap;  // a NaN stays
  }
  return apart <= largest * (dtype == DType::bf16 ? 0x1p-7 : 0x1p-10);
}

// `left`^T `right` of matrices with `tokens` rows, for one column of each.
double outer(const std::vector<float>& left, int64_t i, int64_t width,
             const std::vector<float>& right, int64_t j, int64_t other) {
  double sum = 0.0;
  for (size_t t = 0; t * width < left.size(); ++t) {
    sum += double{left[t * width + i]} * right[t * other + j];
  }
  return sum;
}

// Rows of `left` times rows of `right`, rounded to the storage type.
std::vector<float> inner(const std::vector<float>& left, const std::vector<float>& right,
                         int64_t width, DType dtype) {
  std::vector<float> out;
  for (size_t t = 0; t < left.size(); t += width) {
    for (size_t r = 0; r < right.size(); r += width) {
      double sum = 0.0;
      for (int64_t i = 0; i < width; ++i) sum += double{left[t + i]} * right[r + i];
      out.push_back(nearest(static_cast<float>(sum), dtype));
    }
  }
  return out;
}

void check_backward(const Sizes& s, DType dtype, bool drops, bool wants_ds) {
  const int slices = static_cast<int>(s.slices.size() / 2), rank = s.rank * slices;
  std::vector<int64_t> columns, owner;  // of the slices side by side
  for (int i = 0; i < slices; ++i) {
    for (int64_t at = 0; at < s.slices[2 * i + 1]; ++at) {
      columns.push_back(s.slices[2 * i] + at);
      owner.push_back(i);
    }
  }
  const int64_t outputs = columns.size(), seed = -77;
  const uint32_t threshold = 0x55555555u;
  const Memory x = matrix(s.tokens, s.inputs, dtype, 1), dy = matrix(s.tokens, s.stride, dtype, 2);
  const Memory a = matrix(rank, s.inputs, dtype, 3), turned = matrix(rank, outputs, dtype, 4);
  for (int64_t i = 0; i < rank * outputs; ++i) {
    if (i / outputs / s.rank != owner[i % outputs]) memset(turned.data() + i * 2, 0, 2);
  }
  Memory ds(s.tokens * rank * 2, 0), da(rank * s.inputs * 4, 0), db(outputs * s.rank * 4, 0);
  const int chunks = backward(x.data(), dy.data(), a.data(), turned.data(),
                              wants_ds ? ds.data() : nullptr, data(da), data(db),
                              drops ? &seed : nullptr, s.tokens, s.inputs, s.stride,
                              s.slices.data(), slices, rank, threshold, 0.5f,
                              static_cast<int>(dtype));
  Memory seen(x);
  if (drops) {
    rf::lora_dropout_cpu({seen.data(), x.data(), &seed, s.tokens * s.inputs, threshold, 2}, 1);
  }
  const std::vector<float> left = floats(seen, s.tokens * s.inputs, dtype);
  const std::vector<float> all = floats(dy, s.tokens * s.stride, dtype);
  std::vector<float> right;
  for (int64_t t = 0; t < s.tokens; ++t) {
    for (int64_t column : columns) right.push_back(all[t * s.stride + column]);
  }
  const std::vector<float> sums = inner(left, floats(a, rank * s.inputs, dtype), s.inputs, dtype);
  const std::vector<float> dsums =
      inner(right, floats(turned, rank * outputs, dtype), outputs, dtype);
  std::vector<double> wanted_a, wanted_b;
  for (int64_t i = 0; i < rank * s.inputs; ++i) {
    wanted_a.push_back(0.5 * outer(dsums, i / s.inputs, rank, left, i % s.inputs, s.inputs));
  }
  for (int64_t i = 0; i < outputs * s.rank; ++i) {
    const int64_t row = i / s.rank, r = owner[row] * s.rank + i % s.rank;
    wanted_b.push_back(0.5 * outer(right, row, outputs, sums, r, rank));
  }
  bool same = chunks >= 1 && close(wanted_a, floats(da, wanted_a.size(), DType::fp32), dtype);
  same &= close(wanted_b, floats(db, wanted_b.size(), DType::fp32), dtype);
  if (wants_ds) same &= close({dsums.begin(), dsums.end()}, floats(ds, dsums.size(), dtype), dtype);
  expect(same, "backward", std::to_string(s.tokens) + " tokens, rank " + std::to_string(rank));
}

}  // namespace

int main() {
  const DType types[] = {DType::fp32, DType::bf16, DType::fp16};
  for (DType dtype : types) {
    for (int64_t shift : {0, 1}) {
      for (int64_t n : {1, 3, 4, 5, 1027, 20000}) check_dropout(n, dtype, shift);
      for (DType to : types) {
        if (dtype != DType::fp32 && to != dtype) continue;
        check_merge(3, 5, 7, 2, dtype, to, shift);
        check_merge(2, 70, 72, 16, dtype, to, shift);
        check_merge(80, 4, 8, 3, dtype, to, shift);
        check_merge(1, 64, 136, 20, dtype, to, shift);
      }
    }
  }
  const Sizes sizes[] = {{1, 8, 8, 1, {0, 8}},
                         {63, 40, 24, 3, {0, 24}},
                         {65, 72, 40, 12, {8, 16}},
                         {200, 136, 72, 8, {0, 24, 48, 24}},
                         {130, 24, 64, 5, {40, 8, 0, 16, 24, 8}},
                         {90, 80, 72, 33, {0, 72}},
                         {70, 48, 32, 16, {0, 8, 8, 8, 16, 8, 24, 8}}};
  for (const Sizes& size : sizes) {
    for (DType dtype : {DType::bf16, DType::fp16}) {
      for (bool drops : {false, true}) check_backward(size, dtype, drops, drops);
    }
  }
  printf("%d runs, %d differences\n", runs, differences);
  return differences != 0;
}
