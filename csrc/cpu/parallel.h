// Splits work over the threads of torch's OpenMP pool. RF_STD_THREADS takes threads of its own
// instead: ThreadSanitizer does not see how OpenMP's synchronise.
#pragma once

#include <algorithm>
#include <atomic>
#include <cstdint>

#ifdef RF_STD_THREADS
#include <thread>
#include <vector>
#endif

namespace rf {

constexpr int64_t kGrain = 32768;  // below this a second thread costs more than it saves

// Calls body(part) for every part, each on a thread of its own where there are so many.
template <class Body>
void run_parts(int64_t parts, const Body& body) {
#ifdef RF_STD_THREADS
  std::vector<std::thread> others;
  for (int64_t part = 1; part < parts; ++part) others.emplace_back([&body, part] { body(part); });
  body(int64_t{0});
  for (std::thread& other : others) other.join();
#else
#pragma omp parallel for num_threads(static_cast<int>(parts)) schedule(static, 1)
  for (int64_t part = 0; part < parts; ++part) body(part);
#endif
}

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
  run_parts(parts, [&](int64_t part) {
    const int64_t begin = std::min(part * share, n);
    const int64_t end = std::min(begin + share, n);
    if (begin < end) body(begin, end);
  });
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
  run_parts(parts,
            [&](int64_t part) { body(part * items / parts, (part + 1) * items / parts); });
}

// body(sample) for every sample, each on one thread, so that results do not depend on how many. A
// thread that is done takes the next: samples differ in their work.
template <class Body>
void parallel_samples(int64_t samples, int64_t per_sample, int threads, const Body& body) {
  const int64_t useful = (samples * per_sample + kGrain - 1) / kGrain;
  const int64_t parts = std::min({static_cast<int64_t>(threads), samples, useful});
  if (parts <= 1) {
    for (int64_t sample = 0; sample < samples; ++sample) body(sample);
    return;
  }
  std::atomic<int64_t> next{0};
  run_parts(parts, [&](int64_t) {
    for (int64_t sample = next++; sample < samples; sample = next++) body(sample);
  });
}

}  // namespace rf
