// Sums over samples in an order that depends on the sample's length alone, never on threads, CPU
// level or batch: 16 running sums a chunk, added up by lane, then the chunks in their order.
#pragma once

#include <algorithm>
#include <cstdint>
#include <vector>

#include "cpu/blocks.h"
#include "cpu/parallel.h"

namespace rf {

constexpr int64_t kChunk = 4096;  // elements; a multiple of kBlock
constexpr int kLanes = 16;

inline double add_lanes(const double* lanes) {
  double total = 0.0;
  for (int i = 0; i < kLanes; ++i) total += lanes[i];
  return total;
}

// Samples cut into chunks. A thread takes whole samples where each gets several, so that what was
// summed is still in the cache when it is read again; otherwise the threads share the chunks.
class Chunks {
 public:
  Chunks(int64_t samples, int64_t length, int threads)
      : samples_(samples), length_(length), threads_(threads) {}

  bool by_sample() const {
    return threads_ <= 1 || samples_ >= 4 * threads_ || samples_ * length_ <= kGrain;
  }

  // body(sample), samples spread over the threads.
  template <class Body>
  void each_sample(const Body& body) const {
    parallel_items(samples_, length_, threads_, [&](int64_t begin, int64_t end) {
      for (int64_t sample = begin; sample < end; ++sample) body(sample);
    });
  }

  // sum(begin, end) over the chunks of one sample, in order.
  template <class Total, class Sum>
  Total one(const Sum& sum) const {
    Total total{};
    for (int64_t begin = 0; begin < length_; begin += kChunk) {
      total += sum(begin, std::min(length_, begin + kChunk));
    }
    return total;
  }

  // The same for all samples, sum(sample, begin, end), chunks spread over the threads.
  template <class Total, class Sum>
  std::vector<Total> all(const Sum& sum) const {
    std::vector<Total> parts(samples_ * count()), totals(samples_);
    each_chunk([&](int64_t sample, int64_t begin, int64_t end) {
      parts[sample * count() + begin / kChunk] = sum(sample, begin, end);
    });
    for (size_t i = 0; i < parts.size(); ++i) totals[i / count()] += parts[i];
    return totals;
  }

  // body(sample, begin, end), chunks spread over the threads.
  template <class Body>
  void each_chunk(const Body& body) const {
    parallel_items(samples_ * count(), kChunk, threads_, [&](int64_t first, int64_t last) {
      for (int64_t i = first; i < last; ++i) {
        const int64_t begin = i % count() * kChunk;
        body(i / count(), begin, std::min(length_, begin + kChunk));
      }
    });
  }

 private:
  int64_t count() const { return (length_ + kChunk - 1) / kChunk; }

  int64_t samples_, length_;
  int threads_;
};

// For every sample: the sum of sum(sample, begin, end), then apply(sample, sum, begin, end).
template <class Total, class Sum, class Apply>
void sum_then_apply(int64_t samples, int64_t length, int threads, const Sum& sum,
                    const Apply& apply) {
  const Chunks chunks(samples, length, threads);
  if (chunks.by_sample()) {
    return chunks.each_sample([&](int64_t sample) {
      const Total total = chunks.template one<Total>(
          [&](int64_t begin, int64_t end) { return sum(sample, begin, end); });
      apply(sample, total, int64_t{0}, length);
    });
  }
  const std::vector<Total> totals = chunks.template all<Total>(sum);
  chunks.each_chunk([&](int64_t sample, int64_t begin, int64_t end) {
    apply(sample, totals[sample], begin, end);
  });
}

// The same with a second sum(sample, first, begin, end) that needs the first; apply gets both.
template <class Total, class First, class Second, class Apply>
void sum_twice_then_apply(int64_t samples, int64_t length, int threads, const First& first,
                          const Second& second, const Apply& apply) {
  const Chunks chunks(samples, length, threads);
  if (chunks.by_sample()) {
    return chunks.each_sample([&](int64_t sample) {
      const Total one = chunks.template one<Total>(
          [&](int64_t begin, int64_t end) { return first(sample, begin, end); });
      const Total two = chunks.template one<Total>(
          [&](int64_t begin, int64_t end) { return second(sample, one, begin, end); });
      apply(sample, one, two, int64_t{0}, length);
    });
  }
  const std::vector<Total> one = chunks.template all<Total>(first);
  const std::vector<Total> two = chunks.template all<Total>(
      [&](int64_t sample, int64_t begin, int64_t end) {
        return second(sample, one[sample], begin, end);
      });
  chunks.each_chunk([&](int64_t sample, int64_t begin, int64_t end) {
    apply(sample, one[sample], two[sample], begin, end);
  });
}

}  // namespace rf
