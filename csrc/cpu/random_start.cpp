#include "math/random_start.h"

#include <atomic>
#include <memory>

#include "cpu/blocks.h"
#include "cpu/dispatch.h"
#include "cpu/parallel.h"
#include "ops.h"

namespace rf {
namespace {

// Every function below takes blocks of at most kBlock elements, which begin at multiples of four.

RF_CLONES void draw_uniform(const uint32_t* __restrict words, float* __restrict draws, int64_t n) {
  for (int64_t i = 0; i < n; ++i) draws[i] = signed_uniform(words[i]);
}

RF_CLONES void draw_gaussian(const uint32_t* __restrict words, float* __restrict draws, int64_t n) {
  for (int64_t i = 0; i < n; i += 2) {
    const Pair pair = gaussians(words[i], words[i + 1]);
    draws[i] = pair.first;
    draws[i + 1] = pair.second;
  }
}

RF_CLONES void draw_laplace(const uint32_t* __restrict words, float* __restrict draws, int64_t n) {
  for (int64_t i = 0; i < n; ++i) draws[i] = laplace(words[i]);
}

// The draws of elements first .. first + kBlock of a sample.
void fill_draws(Norm norm, float* draws, uint64_t key, uint64_t id, int64_t first) {
  alignas(64) uint32_t words[kBlock];
  fill_words(words, kBlock / 4, key, static_cast<uint64_t>(first) / 4, id);
  switch (norm) {
    case Norm::linf:
      return draw_uniform(words, draws, kBlock);
    case Norm::l2:
      return draw_gaussian(words, draws, kBlock);
    case Norm::l1:
      return draw_laplace(words, draws, kBlock);
  }
}

RF_CLONES int64_t l2_total(const float* __restrict draws, int64_t n) {
  int64_t total = 0;
  for (int64_t i = 0; i < n; ++i) total += l2_share(draws[i]);
  return total;
}

RF_CLONES int64_t l1_total(const float* __restrict draws, int64_t n) {
  int64_t total = 0;
  for (int64_t i = 0; i < n; ++i) total += l1_share(draws[i]);
  return total;
}

template <class Grid, bool kScaled>
RF_HD void place_all(float* __restrict out, const float* __restrict x,
                     const float* __restrict draws, int64_t n, StartScalars s) {
  for (int64_t i = 0; i < n; ++i) {
    out[i] = kScaled ? scaled_start<Grid>(x[i], draws[i], s) : linf_start<Grid>(x[i], draws[i], s);
  }
}

#define RF_PLACE(Grid)                                                                        \
  RF_CLONES void place_linf(Grid, float* out, const float* x, const float* draws, int64_t n,  \
                            StartScalars s) {                                                 \
    place_all<Grid, false>(out, x, draws, n, s);                                              \
  }                                                                                           \
  RF_CLONES void place_scaled(Grid, float* out, const float* x, const float* draws,           \
                              int64_t n, StartScalars s) {                                    \
    place_all<Grid, true>(out, x, draws, n, s);                                               \
  }
RF_EACH_GRID(RF_PLACE)
#undef RF_PLACE

// Walks logical elements first .. first + n of a sample: body(place in memory, index, how many lie
// `channels` apart from there).
template <class Body>
void walk(const RandomStartCall& call, int64_t first, int64_t n, const Body& body) {
  const int64_t channels = call.per_sample / call.plane;
  for (int64_t i = first; i < first + n;) {
    const int64_t channel = i / call.plane, inside = i % call.plane;
    const int64_t run = std::min(call.plane - inside, first + n - i);
    body(channel + inside * channels, i - first, run, channels);
    i += run;
  }
}

template <class Word>
void gather(const RandomStartCall& call, const Word* sample, int64_t first, int64_t n, Word* to) {
  walk(call, first, n, [&](int64_t place, int64_t at, int64_t run, int64_t apart) {
    for (int64_t i = 0; i < run; ++i) to[at + i] = sample[place + i * apart];
  });
}

template <class Word>
void scatter(const RandomStartCall& call, const Word* from, int64_t first, int64_t n,
             Word* sample) {
  walk(call, first, n, [&](int64_t place, int64_t at, int64_t run, int64_t apart) {
    for (int64_t i = 0; i < run; ++i) sample[place + i * apart] = from[at + i];
  });
}

uint64_t id_of(const RandomStartCall& call, int64_t sample) {
  return static_cast<uint64_t>(call.sample_ids ? call.sample_ids[sample] : sample);
}

// Blocks [begin, end) of the call, counted over all samples: body(sample, first element, length).
template <class Body>
void blocks(const RandomStartCall& call, int threads, const Body& body) {
  const int64_t per_sample = (call.per_sample + kBlock - 1) / kBlock;
  parallel_for(call.samples * per_sample * kBlock, threads, [&](int64_t begin, int64_t end) {
    for (int64_t block = (begin + kBlock - 1) / kBlock; block * kBlock < end; ++block) {
      const int64_t sample = block / per_sample, first = block % per_sample * kBlock;
      body(sample, first, std::min(kBlock, call.per_sample - first));
    }
  });
}

// Draws and adds up; integers, so that neither threads nor their order matter.
void add_totals(const RandomStartCall& call, int threads, std::atomic<int64_t>* totals) {
  const uint64_t key = static_cast<uint64_t>(*call.key);
  blocks(call, threads, [&](int64_t sample, int64_t first, int64_t n) {
    alignas(64) float draws[kBlock];
    fill_draws(call.norm, draws, key, id_of(call, sample), first);
    const int64_t share = call.norm == Norm::l2 ? l2_total(draws, n) : l1_total(draws, n);
    totals[sample].fetch_add(share, std::memory_order_relaxed);
  });
}

template <class Blocks>
void write_block(const RandomStartCall& call, int64_t sample, int64_t first, int64_t n,
                 const StartScalars& s) {
  using Word = typename Blocks::Word;
  using Grid = typename Blocks::Grid;
  alignas(64) float draws[kBlock];
  alignas(64) Word from[kBlock], to[kBlock];
  typename Blocks::Reader origin;
  typename Blocks::Writer result;
  fill_draws(call.norm, draws, static_cast<uint64_t>(*call.key), id_of(call, sample), first);
  gather(call, static_cast<const Word*>(call.x) + sample * call.per_sample, first, n, from);
  const float* x = origin.read(from, n);
  float* out = result.place(to);
  if (call.norm == Norm::linf) {
    place_linf(Grid{}, out, x, draws, n, s);
  } else {
    place_scaled(Grid{}, out, x, draws, n, s);
  }
  result.write(to, n);
  scatter(call, to, first, n, static_cast<Word*>(call.out) + sample * call.per_sample);
}

template <class Blocks>
void run(const RandomStartCall& call, int threads) {
  std::unique_ptr<std::atomic<int64_t>[]> totals;
  if (call.norm != Norm::linf) {
    totals.reset(new std::atomic<int64_t>[call.samples]());
    add_totals(call, threads, totals.get());
  }
  blocks(call, threads, [&](int64_t sample, int64_t first, int64_t n) {
    float scale = amount_of(call.eps, sample);
    if (totals) {
      const uint64_t key = static_cast<uint64_t>(*call.key);
      const float extra = sample_draw(key, id_of(call, sample));
      scale = start_scale(call.norm, scale, totals[sample].load(), extra);
    }
    write_block<Blocks>(call, sample, first, n, {scale, call.low, call.high});
  });
}

}  // namespace

void random_start_cpu(const RandomStartCall& call, int threads) {
  with_blocks(call.dtype, [&](auto blocks) { run<decltype(blocks)>(call, threads); });
}

}  // namespace rf
