// A random attention problem, its run through the library, and the same in float64 from the definition.
#pragma once

#include <algorithm>
#include <array>
#include <atomic>
#include <cmath>
#include <cstddef>
#include <cstdint>
#include <cstdio>
#include <cstring>
#include <random>
#include <string>
#include <thread>
#include <vector>

#include "edgeqkv_attention.h"

inline int failures = 0;

#define CHECK(condition, ...)                                    \
  do {                                                           \
    if (!(condition) && ++failures <= 20) {                      \
      std::printf("%s:%d: %s: ", __FILE__, __LINE__, #condition); \
      std::printf(__VA_ARGS__);                                  \
      std::printf("\n");                                         \
    }                                                            \
  } while (0)

struct Problem {
  int n_head, n_kv_head, head_dim, capacity, depth, n_token, dtype;
  bool separate_v;
  std::vector<float> q, k, v;  // [n_token, n_head, head_dim], [depth + n_token, n_kv_head, head_dim] twice

  std::string name() const {
    const char* dtypes[] = {"fp32", "fp16", "int8"};
    char text[160];
    std::snprintf(text, sizeof text, "%d/%d heads x %d, capacity %d, depth %d + %d tokens, %s%s", n_head, n_kv_head, head_dim,
                  capacity, depth, n_token, dtypes[dtype], separate_v ? ", k and v" : "");
    return text;
  }
  size_t kv_index(int position, int kv_head, int d) const {
    return (size_t(position) * size_t(n_kv_head) + size_t(kv_head)) * size_t(head_dim) + size_t(d);
  }
  size_t cache_index(int kv_head, int position) const { return size_t(kv_head) * size_t(capacity) + size_t(position); }
};

inline Problem random_problem(int n_head, int n_kv_head, int head_dim, int capacity, int depth, int n_token, int dtype,
                              bool separate_v, unsigned seed, float size = 1) {
  Problem p = {n_head, n_kv_head, head_dim, capacity, depth, n_token, dtype, separate_v, {}, {}, {}};
  std::mt19937 random(seed);
  std::normal_distribution<float> normal;
  p.q.resize(size_t(n_token) * size_t(n_head) * size_t(head_dim));
  p.k.resize(size_t(depth + n_token) * size_t(n_kv_head) * size_t(head_dim));
  p.v.resize(p.k.size());
  for (auto* x : {&p.q, &p.k, &p.v})
    for (float& y : *x) y = size * normal(random);
  return p;
}

struct Result {
  int error;
  std::vector<float> out, k_scale, v_scale;
  std::vector<uint8_t> k_cache, v_cache;
};

constexpr uint8_t kUntouched = 0x7f;  // NaN as fp32 and fp16: reading a row that was never written shows

inline size_t element_bytes(int dtype) { return dtype == EDGEQKV_FP32 ? 4 : dtype == EDGEQKV_FP16 ? 2 : 1; }

inline void threaded_for(void* context, int32_t n, void (*task)(void*, int32_t), void* arg) {
  std::atomic<int32_t> next{0};
  std::vector<std::thread> threads;
  for (int t = 0; t < *static_cast<int*>(context); t++)
    threads.emplace_back([&] {
      for (int32_t i; (i = next++) < n;) task(arg, i);
    });
  for (std::thread& t : threads) t.join();
}

inline edgeqkv_attention_args args_of(const Problem& p, Result& r, int isa) {
  edgeqkv_attention_args a = {};
  a.n_head = p.n_head, a.n_kv_head = p.n_kv_head, a.head_dim = p.head_dim, a.capacity = p.capacity;
  a.dtype = p.dtype, a.isa = isa;
  a.k_cache = r.k_cache.data(), a.v_cache = r.v_cache.data();
  a.k_scale = r.k_scale.data(), a.v_scale = r.v_scale.data();
  return a;
}

// IEEE binary16 by its definition: the multiple of the spacing that is nearest.
inline double round_fp16(double x) {
  int exponent;
  std::frexp(x, &exponent);
  double spacing = std::ldexp(1.0, std::max(exponent, -13) - 11);
  double y = std::nearbyint(x / spacing) * spacing;
  return std::fabs(y) > 65504 ? std::copysign(INFINITY, x) : y;
}

// Value d of the row that the cache must hold for x, by the rules of the header; *scale is set for int8.
inline double stored(int dtype, const float* x, int n, int d, float* scale) {
  if (dtype == EDGEQKV_FP32) return x[d];
  if (dtype == EDGEQKV_FP16) return round_fp16(x[d]);
  float largest = 0;
  for (int i = 0; i < n; i++) largest = std::max(largest, std::fabs(x[i]));
  *scale = largest / 127;
  return *scale > 0 ? std::min(127.0f, std::max(-127.0f, std::nearbyint(x[d] / *scale))) : 0;
}

// The bits of a value that fp16 holds exactly.
inline uint16_t fp16_bits(double x) {
  if (std::isnan(x)) return 0x7e00;
  if (std::isinf(x)) return x > 0 ? 0x7c00 : 0xfc00;
  int exponent;
  double mantissa = std::fabs(std::frexp(x, &exponent));  // in 0.5 .. 1
  unsigned magnitude = exponent < -13 || x == 0 ? unsigned(std::ldexp(std::fabs(x), 24))
                                      : unsigned(exponent + 14) << 10 | (unsigned(std::ldexp(mantissa, 11)) & 1023u);
  return uint16_t((std::signbit(x) ? 0x8000u : 0u) | magnitude);
}

// Writes the `depth` positions before the call under test, by the rules of the header and not through the library.
inline void fill_history(const Problem& p, const std::vector<float>& x, std::vector<uint8_t>& cache, std::vector<float>& scales) {
  size_t bytes = element_bytes(p.dtype), n = size_t(p.head_dim);
  for (int g = 0; g < p.n_kv_head; g++)
    for (int j = 0; j < p.depth; j++) {
      const float* row = &x[p.kv_index(j, g, 0)];
      float scale = -1;
      bool finite = true;
      for (size_t d = 0; d < n; d++) finite = finite && std::isfinite(row[d]);
      for (size_t d = 0; d < n; d++) {
        uint8_t* to = &cache[(p.cache_index(g, j) * n + d) * bytes];
        double value = p.dtype == EDGEQKV_INT8 && !finite ? 0 : stored(p.dtype, row, p.head_dim, int(d), &scale);
        float single = row[d];
        uint16_t half = p.dtype == EDGEQKV_FP16 ? fp16_bits(value) : uint16_t(0);
        int8_t byte = p.dtype == EDGEQKV_INT8 ? int8_t(value) : int8_t(0);
        if (p.dtype == EDGEQKV_FP32) std::memcpy(to, &single, bytes);
        if (p.dtype == EDGEQKV_FP16) std::memcpy(to, &half, bytes);
        if (p.dtype == EDGEQKV_INT8) std::memcpy(to, &byte, bytes);
      }
      if (p.dtype == EDGEQKV_INT8) scales[p.cache_index(g, j)] = finite ? scale : NAN;
    }
}

// A cache of `depth` positions, then the call under test. threads 0 is serial.
inline Result run(const Problem& p, int isa, int threads = 0) {
  Result r = {};
  size_t rows = size_t(p.n_kv_head) * size_t(p.capacity), bytes = rows * size_t(p.head_dim) * element_bytes(p.dtype);
  r.k_cache.assign(bytes, kUntouched);
  r.v_cache.assign(p.separate_v ? bytes : 0, kUntouched);
  r.k_scale.assign(rows, -1);
  r.v_scale.assign(p.separate_v ? rows : 0, -1);
  r.out.assign(p.q.size(), -1);
  fill_history(p, p.k, r.k_cache, r.k_scale);
  if (p.separate_v) fill_history(p, p.v, r.v_cache, r.v_scale);
  edgeqkv_attention_args a = args_of(p, r, isa);
  a.position = p.depth, a.n_token = p.n_token, a.q = p.q.data(), a.out = r.out.data();
  a.k = p.k.data() + p.kv_index(p.depth, 0, 0);
  a.v = p.separate_v ? p.v.data() + p.kv_index(p.depth, 0, 0) : nullptr;
  r.error = edgeqkv_attention(&a, threads ? threaded_for : nullptr, &threads, threads);
  return r;
}

struct Reference {
  std::vector<double> out;       // [n_token, n_head, head_dim]
  std::vector<double> absolute;  // the same with |v|: sum_j p_j |v_j|
  std::vector<double> weight_slack;  // max w_j * sum_j |i_j| of attention_test.cc; int8 only
  double score_slack = 0;        // Delta of attention_test.cc for the int8 keys, largest over all queries and keys
  double query_slack = 0;        // the same for a query of 16 bits
  double value_slack = 0;        // largest |v - stored v| that rounding to int8 allows
};

// Attention in float64; `rounded` on what the cache holds, else on k and v themselves.
inline Reference reference(const Problem& p, bool rounded) {
  Reference ref;
  size_t n = size_t(p.head_dim), group = size_t(p.n_head / p.n_kv_head);
  int positions = p.depth + p.n_token;
  auto tensor = [&](const std::vector<float>& x, std::vector<double>& y, std::vector<double>& scales) {
    y.resize(x.size());
    scales.resize(x.size() / n);
    for (size_t row = 0; row < x.size() / n; row++)
      for (size_t d = 0; d < n; d++) {
        float scale = 1;
        double s = rounded ? stored(p.dtype, &x[row * n], p.head_dim, int(d), &scale) : x[row * n + d];
        y[row * n + d] = s * scale;
        if (p.dtype == EDGEQKV_INT8) {
          stored(p.dtype, &x[row * n], p.head_dim, int(d), &scale);
          ref.value_slack = std::max(ref.value_slack, double(scale) / 2);
          scales[row] = scale;
        }
      }
  };
  std::vector<double> k, v, k_scales, v_scales;
  tensor(p.k, k, k_scales);
  tensor(p.separate_v ? p.v : p.k, v, v_scales);
  ref.out.resize(p.q.size());
  ref.weight_slack.resize(p.q.size());
  ref.absolute.resize(p.q.size());
  std::vector<double> weight(static_cast<size_t>(positions));
  for (int t = 0; t < p.n_token; t++)
    for (int h = 0; h < p.n_head; h++) {
      size_t at = (size_t(t) * size_t(p.n_head) + size_t(h)) * n;
      int kv_head = int(size_t(h) / group), seen = p.depth + t + 1;
      double max = -INFINITY, sum = 0, q_sum = 0, q_max = 0, c = 1 / std::sqrt(double(n));
      for (size_t d = 0; d < n; d++) {
        q_sum += std::fabs(p.q[at + d]);
        q_max = std::max(q_max, std::fabs(double(p.q[at + d])));
      }
      for (int j = 0; j < seen; j++) {
        double score = 0, k_sum = 0, k_max = 0;
        for (size_t d = 0; d < n; d++) {
          double x = k[p.kv_index(j, kv_head, int(d))];
          score += p.q[at + d] * x;
          k_sum += std::fabs(x);
          k_max = std::max(k_max, std::fabs(x));
        }
        weight[size_t(j)] = score * c;
        max = std::max(max, score * c);
        ref.score_slack = std::max(ref.score_slack, c * q_sum * k_max / 254);
        ref.query_slack = std::max(ref.query_slack, c * k_sum * q_max / 65024);
      }
      for (int j = 0; j < seen; j++) sum += weight[size_t(j)] = std::exp(weight[size_t(j)] - max);
      auto scale_of = [&](int j) { return v_scales[p.kv_index(j, kv_head, 0) / n]; };
      double largest = 0;
      for (int j = 0; j < seen; j++) largest = std::max(largest, weight[size_t(j)] / sum * scale_of(j));
      for (size_t d = 0; d < n; d++) {
        double x = 0, y = 0;
        for (int j = 0; j < seen; j++) {
          double value = v[p.kv_index(j, kv_head, int(d))];
          x += value * weight[size_t(j)] / sum;
          y += std::fabs(value * weight[size_t(j)] / sum);
          if (scale_of(j) > 0) ref.weight_slack[at + d] += std::fabs(value / scale_of(j)) * largest;
        }
        ref.out[at + d] = x;
        ref.absolute[at + d] = y;
      }
    }
  return ref;
}

// Largest |out - ref| of a row of head_dim over the largest |ref| of the row, over all rows.
inline double relative_error(const Problem& p, const std::vector<float>& out, const std::vector<double>& ref) {
  double worst = 0;
  size_t n = size_t(p.head_dim);
  for (size_t row = 0; row < out.size() / n; row++) {
    double error = 0, size = 0;
    for (size_t i = row * n; i < (row + 1) * n; i++) {
      error = std::isnan(out[i]) ? INFINITY : std::max(error, std::fabs(out[i] - ref[i]));
      size = std::max(size, std::fabs(ref[i]));
    }
    worst = std::max(worst, error == 0 ? 0 : error / size);
  }
  return worst;
}

// Every path that this CPU can run.
inline std::vector<int> paths() {
  std::vector<int> list;
  for (int isa = EDGEQKV_ISA_SCALAR; isa <= EDGEQKV_ISA_NEON_DOT; isa++)
    if (edgeqkv_attention_isa(isa) == isa) list.push_back(isa);
  return list;
}

inline int finish(const char* what) {
  std::printf("%s on", what);
  for (int isa : paths()) std::printf(" %s", edgeqkv_attention_isa_name(isa));
  std::printf(": %s\n", failures ? "FAILED" : "ok");
  return failures ? 1 : 0;
}
