// One thread, one layer of 64-wide heads, and latent attention (MLA) of 16 heads over rows of 512 + 64: the kernel against a plain
// read of the same cache, interleaved in one run.
//
//   attention_bench [goals|decode|prefill|cached] [path]
//
// goals: what `make bench-kernel` prints. cached: decode over one small cache that stays in the core's own cache, which shows the
// arithmetic without the memory.
//
// A round times each case once, one after the other, on the next of several caches that together exceed the last-level cache,
// as they do between two tokens of a model; after each, the plain read of another of them and a loop of nothing but products.
// What is printed of the rounds: minimum, median, and the spread (10th and 90th percentile). GB/s counts each cached byte once,
// scales included (10^9 bytes, at the median). Of the peak: products of bytes, of which one with a 16-bit factor takes two, over
// what the loop of products reaches, both at the median.
#include <algorithm>
#include <chrono>
#include <cstddef>
#include <cstdint>
#include <cstdio>
#include <cstdlib>
#include <cstring>
#include <random>
#include <vector>

#include "edgeqkv_attention.h"

#if defined(__x86_64__)
#include <immintrin.h>
#endif

namespace {

constexpr int kDim = 64;
constexpr size_t kFootprint = size_t(96) << 20;  // bytes of the caches of one case: no last-level cache share holds them

struct Case {
  int n_head, n_kv_head, depth, n_token, dtype;
  bool separate_v;
  int row_dim, value_dim;  // 64 and 64; of MLA 576 and 512, with two scales a row
  std::vector<std::vector<uint8_t>> caches, v_caches;
  std::vector<std::vector<float>> scales;
  std::vector<float> q, k, out;
  std::vector<double> microseconds, read_microseconds, peak;

  int n_scale() const { return row_dim != value_dim ? 2 : 1; }
  // Products of a query's and a weight's with a cached number, of all tokens.
  double products() const { return double(n_token) * (depth + (n_token + 1) / 2.0) * n_head * (row_dim + value_dim); }

  size_t bytes() const {  // that one call reads
    size_t rows = size_t(n_kv_head) * size_t(depth + n_token);
    size_t row = size_t(row_dim) * (dtype == EDGEQKV_FP32 ? 4 : dtype == EDGEQKV_FP16 ? 2 : 1);
    return rows * (row + (dtype == EDGEQKV_INT8 ? 4 * size_t(n_scale()) : 0)) * (separate_v ? 2 : 1);
  }
};

// Sums 64-bit words in eight chains, which the compiler turns into wide loads.
template <class T>
uint64_t plain_read(const std::vector<T>& x) {
  uint64_t sum[8] = {};
  const char* p = reinterpret_cast<const char*>(x.data());
  for (size_t i = 0; i + 64 <= x.size() * sizeof(T); i += 64)
    for (size_t c = 0; c < 8; c++) {
      uint64_t word;
      std::memcpy(&word, p + i + 8 * c, 8);
      sum[c] += word;
    }
  return sum[0] + sum[1] + sum[2] + sum[3] + sum[4] + sum[5] + sum[6] + sum[7];
}

volatile uint64_t sink;  // keeps the reads

template <class F>
double time_of(F run) {
  auto start = std::chrono::steady_clock::now();
  run();
  return std::chrono::duration<double, std::micro>(std::chrono::steady_clock::now() - start).count();
}

Case make_case(int n_head, int n_kv_head, int depth, int n_token, int dtype, bool separate_v, size_t footprint,
               int row_dim = kDim, int value_dim = kDim) {
  Case c = {n_head, n_kv_head, depth, n_token, dtype, separate_v, row_dim, value_dim, {}, {}, {}, {}, {}, {}, {}, {}, {}};
  std::mt19937 random(1);
  std::normal_distribution<float> normal;
  size_t copies = std::max<size_t>(1, footprint / c.bytes());
  size_t rows = size_t(n_kv_head) * size_t(depth + n_token);
  size_t row_bytes = size_t(row_dim) * (dtype == EDGEQKV_FP32 ? 4 : dtype == EDGEQKV_FP16 ? 2 : 1);
  std::vector<uint8_t> cache(rows * row_bytes);
  for (size_t i = 0; i < rows * size_t(row_dim); i++) {
    float x = normal(random);
    int8_t byte = int8_t(std::max(-127.0f, std::min(127.0f, 40 * x)));
    uint16_t half = uint16_t(0x3000 | (random() & 0x8fff));  // +-0.125 .. 0.5 and beyond; any finite value does
    if (dtype == EDGEQKV_FP32) std::memcpy(&cache[i * 4], &x, 4);
    if (dtype == EDGEQKV_FP16) std::memcpy(&cache[i * 2], &half, 2);
    if (dtype == EDGEQKV_INT8) cache[i] = uint8_t(byte);
  }
  c.caches.assign(copies, cache);
  if (separate_v) c.v_caches.assign(copies, cache);
  c.scales.assign(copies, std::vector<float>(rows * size_t(c.n_scale()), 1.0f / 40));
  c.q.resize(size_t(n_token) * size_t(n_head) * size_t(row_dim));
  c.k.resize(size_t(n_token) * size_t(n_kv_head) * size_t(row_dim));
  c.out.resize(size_t(n_token) * size_t(n_head) * size_t(value_dim));
  for (auto* x : {&c.q, &c.k})
    for (float& y : *x) y = normal(random);
  return c;
}

// What the machine's products of bytes reach in a loop of nothing else, in 10^9 a second; 0 where it is not known.
#if defined(__x86_64__)
__attribute__((target("avx512f,avx512vnni"))) double peak_products() {
  if (!__builtin_cpu_supports("avx512vnni")) return 0;
  constexpr int kTimes = 2000;
  const __m512i x = _mm512_set1_epi8(3);
  // Twelve sums, in registers: one instruction's latency must not be seen.
  __m512i a = x, b = x, c = x, d = x, e = x, f = x, g = x, h = x, i = x, j = x, k = x, l = x;
  const auto start = std::chrono::steady_clock::now();
  for (int n = 0; n < kTimes; n++)
    asm volatile(
        "vpdpbusd %12, %12, %0\n vpdpbusd %12, %12, %1\n vpdpbusd %12, %12, %2\n vpdpbusd %12, %12, %3\n"
        "vpdpbusd %12, %12, %4\n vpdpbusd %12, %12, %5\n vpdpbusd %12, %12, %6\n vpdpbusd %12, %12, %7\n"
        "vpdpbusd %12, %12, %8\n vpdpbusd %12, %12, %9\n vpdpbusd %12, %12, %10\n vpdpbusd %12, %12, %11\n"
        : "+v"(a), "+v"(b), "+v"(c), "+v"(d), "+v"(e), "+v"(f), "+v"(g), "+v"(h), "+v"(i), "+v"(j), "+v"(k), "+v"(l)
        : "v"(x));
  const double us = std::chrono::duration<double, std::micro>(std::chrono::steady_clock::now() - start).count();
  return kTimes * 12 * 64 / us / 1e3;
}
#else
double peak_products() { return 0; }
#endif

void round_of(Case& c, size_t round, int isa) {
  size_t i = round % c.caches.size();
  edgeqkv_attention_args a = {};
  a.size = sizeof a;
  a.n_head = c.n_head, a.n_kv_head = c.n_kv_head, a.row_dim = a.key_dim = c.row_dim, a.value_dim = c.value_dim;
  a.capacity = c.depth + c.n_token, a.position = c.depth, a.n_token = c.n_token, a.dtype = c.dtype, a.isa = isa;
  a.scale_split = c.n_scale() > 1 ? c.value_dim : 0;
  a.q = c.q.data(), a.k = c.k.data(), a.out = c.out.data();
  a.k_cache = c.caches[i].data(), a.k_scale = c.scales[i].data();
  if (c.separate_v) a.v = c.k.data(), a.v_cache = c.v_caches[i].data(), a.v_scale = c.scales[i].data();
  int error = 0;
  double t = time_of([&] { error = edgeqkv_attention(&a, nullptr, nullptr, 0); });
  if (error) std::exit(std::printf("error %d\n", error));
  c.microseconds.push_back(t);
  if (c.n_token > 1) return;
  // Another copy than the kernel just read.
  size_t j = (i + c.caches.size() / 2) % c.caches.size();
  c.read_microseconds.push_back(time_of([&] {
    sink = plain_read(c.caches[j]);
    if (c.separate_v) sink = sink + plain_read(c.v_caches[j]);
    if (c.dtype == EDGEQKV_INT8) sink = sink + plain_read(c.scales[j]);
  }));
  c.peak.push_back(peak_products());
}

double percentile(std::vector<double> x, double p) {
  std::sort(x.begin(), x.end());
  return x[size_t(p * double(x.size() - 1) + 0.5)];
}

void print(const Case& c) {
  const char* dtypes[] = {"fp32", "fp16", "int8"};
  const double least = percentile(c.microseconds, 0), median = percentile(c.microseconds, 0.5);
  std::printf("%-5s %-5s %2d/%-2d %4d %6d+%-4d %9.1f %9.1f %9.1f-%-9.1f", c.separate_v ? "k,v" : "k", dtypes[c.dtype], c.n_head,
              c.n_kv_head, c.row_dim, c.depth, c.n_token, least, median, percentile(c.microseconds, 0.1),
              percentile(c.microseconds, 0.9));
  const double rate = c.products() / median / 1e3;
  if (c.n_token == 1) {
    const double read_least = percentile(c.read_microseconds, 0), read = percentile(c.read_microseconds, 0.5);
    const double gb = double(c.bytes()) / 1e3, peak = percentile(c.peak, 0.5);
    std::printf(" %7.2f %9.1f %9.1f %7.2f %5.0f%% %5.0f%% %8.2f", gb / median, read_least, read, gb / read,
                100 * read_least / least, 100 * read / median, rate);
    if (peak > 0 && c.dtype == EDGEQKV_INT8) std::printf(" %6.1f %5.0f%%", peak, 100 * 2 * rate / peak);
  } else {
    std::printf(" %8.2f", rate);
  }
  std::printf("\n");
}

std::vector<Case> goal_cases() {
  std::vector<Case> cases;
  for (int n_kv_head : {16, 4, 1}) cases.push_back(make_case(16, n_kv_head, 8191, 1, EDGEQKV_INT8, false, kFootprint));
  cases.push_back(make_case(16, 1, 8191, 1, EDGEQKV_INT8, false, kFootprint, 576, 512));
  for (int depth : {2047, 8191}) cases.push_back(make_case(16, 16, depth, 1, EDGEQKV_FP32, true, kFootprint));
  return cases;
}

constexpr int kDtypes[] = {EDGEQKV_INT8, EDGEQKV_FP16, EDGEQKV_FP32};

std::vector<Case> decode_cases() {
  std::vector<Case> cases;
  for (int dtype : kDtypes) {
    cases.push_back(make_case(16, 16, 8191, 1, dtype, false, kFootprint));
    cases.push_back(make_case(16, 16, 2047, 1, dtype, false, kFootprint));
    for (int n_kv_head : {16, 8, 4, 2}) cases.push_back(make_case(16, n_kv_head, 2047, 1, dtype, true, kFootprint));
    for (int n_kv_head : {8, 4, 2, 1}) cases.push_back(make_case(16, n_kv_head, 8191, 1, dtype, false, kFootprint));
    cases.push_back(make_case(1, 1, 8191, 1, dtype, false, kFootprint));
    cases.push_back(make_case(16, 1, 8191, 1, dtype, false, kFootprint, 576, 512));
  }
  return cases;
}

std::vector<Case> prefill_cases() {
  std::vector<Case> cases;
  for (int dtype : kDtypes)
    for (int n_kv_head : {16, 4, 1})
      for (int depth : {0, 1536}) cases.push_back(make_case(16, n_kv_head, depth, 512, dtype, false, 0));
  return cases;
}

std::vector<Case> cached_cases() {
  std::vector<Case> cases;
  for (int dtype : kDtypes)
    for (int n_head : {1, 4, 16}) cases.push_back(make_case(n_head, 1, 1023, 1, dtype, false, 0));
  return cases;
}

struct Mode {
  const char* name;
  int rounds;
  bool cached;  // a call before brings the cache in, and is not kept
  std::vector<Case> (*cases)();
};
constexpr Mode kModes[] = {{"decode", 41, false, decode_cases},
                           {"goals", 101, false, goal_cases},
                           {"prefill", 9, false, prefill_cases},
                           {"cached", 2001, true, cached_cases}};

}  // namespace

int main(int argc, char** argv) {
  const Mode* mode = &kModes[0];
  if (argc > 1) {
    mode = nullptr;
    for (const Mode& m : kModes)
      if (!std::strcmp(argv[1], m.name)) mode = &m;
  }
  if (!mode || argc > 3) {
    std::fprintf(stderr, "usage: %s [goals|decode|prefill|cached] [path]\n", argv[0]);
    return 2;
  }
  int isa = EDGEQKV_ISA_AUTO;
  for (int i = EDGEQKV_ISA_SCALAR; argc > 2 && i < EDGEQKV_ISA_COUNT; i++)
    if (!std::strcmp(argv[2], edgeqkv_attention_isa_name(i))) isa = i;
  isa = edgeqkv_attention_isa(isa);
  if (isa < 0 || (argc > 2 && std::strcmp(argv[2], edgeqkv_attention_isa_name(isa)))) {
    std::fprintf(stderr, "no path %s here\n", argc > 2 ? argv[2] : std::getenv("EDGEQKV_ISA"));
    return 2;
  }
  std::vector<Case> cases = mode->cases();
  for (int round = 0; round < mode->rounds; round++)
    for (Case& c : cases) {
      if (mode->cached) round_of(c, size_t(round), isa), c.microseconds.pop_back(), c.read_microseconds.pop_back();
      round_of(c, size_t(round), isa);
    }
  std::printf("path %s, one thread, %d rounds; times in us, 10^9 products/s\n", edgeqkv_attention_isa_name(isa), mode->rounds);
  std::printf("cache dtype heads/kv row depth+new       min    median         p10-p90     ");
  std::printf(cases[0].n_token > 1 ? "products\n"
                                   : "   GB/s  read min    median    GB/s of:min median products   peak of it\n");
  for (const Case& c : cases) print(c);
}
