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

#define CHECK(condition, ...)                                     \
  do {                                                            \
    if (!(condition) && ++failures <= 20) {                       \
      std::printf("%s:%d: %s: ", __FILE__, __LINE__, #condition); \
      std::printf(__VA_ARGS__);                                   \
      std::printf("\n");                                          \
    }                                                             \
  } while (0)

// A row of the cache and its slices, as the header has them; of one number, where all of it is the key and the value.
struct Row {
  int row_dim, key_dim, value_start, value_dim, scale_split;
  Row(int head_dim) : Row(head_dim, head_dim, 0, head_dim) {}
  Row(int row, int key, int value, int width, int split = 0)
      : row_dim(row), key_dim(key), value_start(value), value_dim(width), scale_split(split) {}
};

// One tensor of the cache before it is rounded: rows [positions, n_kv_head, dim], and where their second scale begins (dim: none).
struct Tensor {
  const std::vector<float>& x;
  int n_kv_head, dim, split;

  int n_scale() const { return split < dim ? 2 : 1; }
  const float* row(int position, int kv_head) const {
    return x.data() + (size_t(position) * size_t(n_kv_head) + size_t(kv_head)) * size_t(dim);
  }
};

struct Problem {
  int n_head, n_kv_head;
  Row row;
  int capacity, depth, n_token, dtype;
  bool separate_v;
  float scale;                 // of the scores, as the caller gives it
  std::vector<float> q, k, v;  // [n_token, n_head, key_dim], [depth + n_token, n_kv_head, row_dim], the same of value_dim

  std::string name() const {
    const char* dtypes[] = {"fp32", "fp16", "int8"};
    char text[200];
    std::snprintf(text, sizeof text,
                  "%d/%d heads x %d, key %d, value %d + %d, split %d, capacity %d, depth %d + %d tokens, %s%s", n_head,
                  n_kv_head, row.row_dim, row.key_dim, row.value_start, row.value_dim, row.scale_split, capacity, depth,
                  n_token, dtypes[dtype], separate_v ? ", k and v" : "");
    return text;
  }
  Tensor keys() const { return {k, n_kv_head, row.row_dim, row.scale_split > 0 ? row.scale_split : row.row_dim}; }
  Tensor values() const { return separate_v ? Tensor{v, n_kv_head, row.value_dim, row.value_dim} : keys(); }
  size_t kv_index(int position, int kv_head, int d) const {  // in k; in v where both are of one width
    return (size_t(position) * size_t(n_kv_head) + size_t(kv_head)) * size_t(row.row_dim) + size_t(d);
  }
  size_t cache_index(int kv_head, int position) const { return size_t(kv_head) * size_t(capacity) + size_t(position); }
  size_t scale_index(const Tensor& t, int kv_head, int position, int d) const {
    return size_t(kv_head * t.n_scale() + (d >= t.split)) * size_t(capacity) + size_t(position);
  }
};

inline Problem random_problem(int n_head, int n_kv_head, Row row, int capacity, int depth, int n_token, int dtype,
                              bool separate_v, unsigned seed, float size = 1) {
  Problem p = {n_head, n_kv_head, row, capacity, depth, n_token, dtype, separate_v, 0, {}, {}, {}};
  std::mt19937 random(seed);
  std::normal_distribution<float> normal;
  size_t rows = size_t(depth + n_token) * size_t(n_kv_head);
  p.q.resize(size_t(n_token) * size_t(n_head) * size_t(row.key_dim));
  p.k.resize(rows * size_t(row.row_dim));
  p.v.resize(rows * size_t(row.value_dim));
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
  a.size = sizeof a, a.n_head = p.n_head, a.n_kv_head = p.n_kv_head, a.capacity = p.capacity, a.scale = p.scale;
  a.row_dim = p.row.row_dim, a.key_dim = p.row.key_dim, a.value_start = p.row.value_start, a.value_dim = p.row.value_dim;
  a.scale_split = p.row.scale_split;
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

// Value d of n channels with one scale that the cache must hold for x, by the rules of the header; *scale is set for int8.
inline double stored(int dtype, const float* x, int n, int d, float* scale) {
  if (dtype == EDGEQKV_FP32) return x[d];
  if (dtype == EDGEQKV_FP16) return round_fp16(x[d]);
  float largest = 0;
  for (int i = 0; i < n; i++) largest = std::max(largest, std::fabs(x[i]));
  *scale = largest / 127;
  return *scale > 0 ? std::min(127.0f, std::max(-127.0f, std::nearbyint(x[d] / *scale))) : 0;
}

// The same for channel d of a row.
inline double stored(const Tensor& t, int dtype, const float* row, int d, float* scale) {
  int begin = d < t.split ? 0 : t.split, end = d < t.split ? t.split : t.dim;
  return stored(dtype, row + begin, end - begin, d - begin, scale);
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
inline void fill_history(const Problem& p, const Tensor& t, std::vector<uint8_t>& cache, std::vector<float>& scales) {
  size_t bytes = element_bytes(p.dtype), n = size_t(t.dim);
  for (int g = 0; g < p.n_kv_head; g++)
    for (int j = 0; j < p.depth; j++) {
      const float* row = t.row(j, g);
      for (int d = 0; d < t.dim; d++) {
        int begin = d < t.split ? 0 : t.split, end = d < t.split ? t.split : t.dim;
        bool finite = std::all_of(row + begin, row + end, [](float x) { return std::isfinite(x); });
        float scale = -1;
        uint8_t* to = &cache[(p.cache_index(g, j) * n + size_t(d)) * bytes];
        double value = p.dtype == EDGEQKV_INT8 && !finite ? 0 : stored(t, p.dtype, row, d, &scale);
        float single = row[d];
        uint16_t half = p.dtype == EDGEQKV_FP16 ? fp16_bits(value) : uint16_t(0);
        int8_t byte = p.dtype == EDGEQKV_INT8 ? int8_t(value) : int8_t(0);
        if (p.dtype == EDGEQKV_FP32) std::memcpy(to, &single, bytes);
        if (p.dtype == EDGEQKV_FP16) std::memcpy(to, &half, bytes);
        if (p.dtype == EDGEQKV_INT8) std::memcpy(to, &byte, bytes);
        if (p.dtype == EDGEQKV_INT8) scales[p.scale_index(t, g, j, d)] = finite ? scale : NAN;
      }
    }
}

// A cache of `depth` positions, then the call under test. threads 0 is serial.
inline Result run(const Problem& p, int isa, int threads = 0) {
  Result r = {};
  const Tensor k = p.keys(), v = p.values();
  size_t rows = size_t(p.n_kv_head) * size_t(p.capacity), bytes = rows * element_bytes(p.dtype);
  r.k_cache.assign(bytes * size_t(k.dim), kUntouched);
  r.v_cache.assign(p.separate_v ? bytes * size_t(v.dim) : 0, kUntouched);
  r.k_scale.assign(rows * size_t(k.n_scale()), -1);
  r.v_scale.assign(p.separate_v ? rows : 0, -1);
  r.out.assign(size_t(p.n_token) * size_t(p.n_head) * size_t(p.row.value_dim), -1);
  fill_history(p, k, r.k_cache, r.k_scale);
  if (p.separate_v) fill_history(p, v, r.v_cache, r.v_scale);
  edgeqkv_attention_args a = args_of(p, r, isa);
  a.position = p.depth, a.n_token = p.n_token, a.q = p.q.data(), a.out = r.out.data();
  a.k = k.row(p.depth, 0);
  a.v = p.separate_v ? v.row(p.depth, 0) : nullptr;
  r.error = edgeqkv_attention(&a, threads ? threaded_for : nullptr, &threads, threads);
  return r;
}

struct Reference {
  std::vector<double> out;           // [n_token, n_head, value_dim]
  std::vector<double> absolute;      // the same with |v|: sum_j p_j |v_j|
  std::vector<double> weight_slack;  // max w_j * sum_j |i_j| of attention_test.cc; int8 only
  double score_slack = 0;            // Delta of attention_test.cc for the int8 keys, largest over all queries and keys
  double query_slack = 0;            // the same for a query of 16 bits
  double value_slack = 0;            // largest |v - stored v| that rounding to int8 allows
};

// What attention reads: each channel of each row, and the int8 scale it has (1 for other dtypes).
struct Rounded {
  std::vector<double> x, scale;  // both [positions, n_kv_head, dim]
};

inline Rounded rounded_tensor(const Problem& p, const Tensor& t, bool rounded) {
  Rounded y = {std::vector<double>(t.x.size()), std::vector<double>(t.x.size(), 1.0)};
  size_t n = size_t(t.dim);
  for (size_t row = 0; row < t.x.size() / n; row++)
    for (size_t d = 0; d < n; d++) {
      float scale = 1;
      double value = stored(t, p.dtype, &t.x[row * n], int(d), &scale);
      y.x[row * n + d] = rounded ? value * scale : t.x[row * n + d];
      y.scale[row * n + d] = scale;
    }
  return y;
}

// Attention in float64; `rounded` on what the cache holds, else on k and v themselves.
inline Reference reference(const Problem& p, bool rounded) {
  Reference ref;
  const Tensor keys = p.keys(), values = p.values();
  const Rounded k = rounded_tensor(p, keys, rounded), v = p.separate_v ? rounded_tensor(p, values, rounded) : k;
  const size_t n = size_t(p.row.value_dim), group = size_t(p.n_head / p.n_kv_head), positions = size_t(p.depth + p.n_token);
  const bool int8 = p.dtype == EDGEQKV_INT8;
  const double c = p.scale != 0 ? double(p.scale) : 1 / std::sqrt(double(p.row.key_dim));
  ref.out.resize(size_t(p.n_token) * size_t(p.n_head) * n);
  ref.weight_slack.resize(ref.out.size());
  ref.absolute.resize(ref.out.size());
  std::vector<double> weight(positions);
  for (int t = 0; t < p.n_token; t++)
    for (int h = 0; h < p.n_head; h++) {
      const size_t query = size_t(t) * size_t(p.n_head) + size_t(h);
      const float* q = &p.q[query * size_t(p.row.key_dim)];
      const int kv_head = int(size_t(h) / group), seen = p.depth + t + 1;
      auto key = [&](int j) { return size_t(keys.row(j, kv_head) - keys.x.data()); };
      auto value = [&](int j, size_t d) {
        return size_t(values.row(j, kv_head) - values.x.data()) + size_t(p.row.value_start) + d;
      };
      double q_max[2] = {};  // of the channels under each scale
      for (int d = 0; d < p.row.key_dim; d++)
        q_max[d >= keys.split] = std::max(q_max[d >= keys.split], std::fabs(double(q[d])));
      double max = -INFINITY, sum = 0;
      for (int j = 0; j < seen; j++) {
        double score = 0, moved_by_key = 0, moved_by_query = 0;
        for (int d = 0; d < p.row.key_dim; d++) {
          double x = k.x[key(j) + size_t(d)];
          score += q[d] * x;
          moved_by_key += std::fabs(double(q[d])) * k.scale[key(j) + size_t(d)] / 2;
          moved_by_query += std::fabs(x) * q_max[d >= keys.split] / 65024;
        }
        weight[size_t(j)] = score * c;
        max = std::max(max, score * c);
        ref.score_slack = std::max(ref.score_slack, c * moved_by_key);
        ref.query_slack = std::max(ref.query_slack, c * moved_by_query);
      }
      for (int j = 0; j < seen; j++) sum += weight[size_t(j)] = std::exp(weight[size_t(j)] - max);
      for (size_t d = 0; d < n; d++) {
        double x = 0, y = 0, largest = 0, integers = 0;
        for (int j = 0; j < seen; j++) {
          const double w = weight[size_t(j)] / sum, scale = v.scale[value(j, d)], at = v.x[value(j, d)];
          x += at * w;
          y += std::fabs(at * w);
          largest = std::max(largest, w * scale);
          if (scale > 0) integers += std::fabs(at / scale);
          if (int8) ref.value_slack = std::max(ref.value_slack, scale / 2);
        }
        ref.out[query * n + d] = x;
        ref.absolute[query * n + d] = y;
        ref.weight_slack[query * n + d] = largest * integers;
      }
    }
  return ref;
}

// Largest |out - ref| of a row of value_dim over the largest |ref| of the row, over all rows.
inline double relative_error(const Problem& p, const std::vector<float>& out, const std::vector<double>& ref) {
  double worst = 0;
  size_t n = size_t(p.row.value_dim);
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
  for (int isa = EDGEQKV_ISA_SCALAR; isa < EDGEQKV_ISA_COUNT; isa++)
    if (edgeqkv_attention_isa(isa) == isa) list.push_back(isa);
  return list;
}

inline int finish(const char* what) {
  std::printf("%s on", what);
  for (int isa : paths()) std::printf(" %s", edgeqkv_attention_isa_name(isa));
  std::printf(": %s\n", failures ? "FAILED" : "ok");
  return failures ? 1 : 0;
}
