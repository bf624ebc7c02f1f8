// Splits [0, n) over the threads of torch's OpenMP pool.
#pragma once

#include <algorithm>
#include <cstdint>

namespace rf {

constexpr int64_t kGrain = 32768;  // below this a second thread costs more than it saves

// Calls body(begin, end) for disjoint ranges that start at multiples of 64. With one thread no
// parallel region is opened, so that a forked child, whose pool is gone, cannot hang.
template <class Body>
void parallel_for(int64_t n, int threads, const Body& body) {
  const int64_t parts = std::min<int64_t>(std::max(threads, 1), (n + kGrain - 1) / kGrain);
  if (parts <= 1) {
    if (n > 0) body(int64_t{0}, n);
    return;
  }
  const int64_t share = ((n + parts - 1) / parts + 63) / 64 * 64;
#pragma omp parallel for num_threads(static_cast<int>(parts)) schedule(static, 1)
  for (int64_t part = 0; part < parts; ++part) {
    const int64_t begin = std::min(part * share, n);
    const int64_t end = std::min(begin + share, n);
    if (begin < end) body(begin, end);
  }
}

// Calls body(begin, end) for disjoint ranges of [0, items), where an item is `size` elements.
template <class Body>
void parallel_items(int64_t items, int64_t size, int threads, const Body& body) {
  const int64_t enough = (items * size + kGrain - 1) / kGrain;
  const int64_t parts = std::min({static_cast<int64_t>(std::max(threads, 1)), enough, items});
  if (parts <= 1) {
    if (items > 0) body(int64_t{0}, items);
    return;
  }
#pragma omp parallel for num_threads(static_cast<int>(parts)) schedule(static, 1)
  for (int64_t part = 0; part < parts; ++part) {
    body(part * items / parts, (part + 1) * items / parts);
  }
}

// body(sample) for every sample, each on one thread, so that results do not depend on how many.
template <class Body>
void parallel_samples(int64_t samples, int64_t per_sample, int threads, const Body& body) {
  const int64_t useful = (samples * per_sample + kGrain - 1) / kGrain;
  const int64_t parts = std::min({static_cast<int64_t>(threads), samples, useful});
  if (parts <= 1) {
    for (int64_t sample = 0; sample < samples; ++sample) body(sample);
    return;
  }
#pragma omp parallel for num_threads(static_cast<int>(parts)) schedule(dynamic, 1)
  for (int64_t sample = 0; sample < samples; ++sample) body(sample);
}

}  // namespace rf
