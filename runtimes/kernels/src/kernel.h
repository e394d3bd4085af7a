// The algorithm, written once over a vector type V that each instruction set's source file defines.
//
// V holds V::W floats and offers: load(const float* | const uint16_t* fp16 | const int8_t*) -> F, store, store_fp16, set1,
// add, sub, mul, div, fma(a, b, c) = a * b + c, max, abs, round (half to even), pow2 (2^n of an integral n >= -127, with
// 2^-127 taken as 0), sums(F[W]) -> F whose lane i is the sum of its i-th argument, and the block shapes kRows, kAccRows,
// kAccVecs that fit its registers. max(a, b) is b when either is NaN. V::kIntegerDot says that it also has the dot products
// of one query with int8 rows in integers (pack, dot_rows), kIntegerWeights that
// it sums int8 values with integer weights (pack_weights, add_values).
//
// Everything is in an unnamed namespace and uses no inline library function: each source file is compiled with its own
// flags, and a function shared between them would be linked in one version, perhaps not one that the CPU can run.
#pragma once

#include <cstring>

#include "path.h"

// Before a loop over an array of registers: left as a loop, the array would live in memory.
#if defined(__clang__)
#define EDGEQKV_UNROLL _Pragma("unroll")
#else
#define EDGEQKV_UNROLL _Pragma("GCC unroll 32")
#endif

namespace edgeqkv {
namespace {

using fp16 = uint16_t;

constexpr int kBlockKeys = 64;  // cached rows of one block: they stay in L1 between the score and the value

// Weights of a block as V::pack_weights leaves them for V::add_values. unit 0: not packed, the floats are to be used.
struct PackedWeights {
  float unit;
  alignas(64) uint8_t high[kBlockKeys], low[kBlockKeys];
};

constexpr size_t aligned(size_t n_float) { return (n_float + 15) & ~size_t(15); }

// One tensor of the cache, as one KV head sees it. `scale` is null but for int8.
template <class T>
struct Rows {
  const T* x;
  const float* scale;
};

template <class V, class T>
struct Kernel {
  using F = typename V::F;
  static constexpr int W = V::W;
  static constexpr bool kInt8 = sizeof(T) == 1;

  // 2^x for x <= 0. Polynomial of Cephes' exp2f on [-0.5, 0.5], relative error below 2e-7; below 2^-126.5 it is 0.
  static F exp2(F x) {
    x = V::max(V::set1(-127.0f), x);
    F n = V::round(x), f = V::sub(x, n);
    F p = V::set1(1.535336188319500e-4f);
    p = V::fma(p, f, V::set1(1.339887440266574e-3f));
    p = V::fma(p, f, V::set1(9.618437357674640e-3f));
    p = V::fma(p, f, V::set1(5.550332471162809e-2f));
    p = V::fma(p, f, V::set1(2.402264791363012e-1f));
    p = V::fma(p, f, V::set1(6.931472028550421e-1f));
    p = V::fma(p, f, V::set1(1.0f));
    return V::mul(p, V::pow2(n));
  }

  static float exp2_one(float x) {
    float lanes[W];
    V::store(lanes, exp2(V::set1(x)));
    return lanes[0];
  }

  // Pairwise, so that the latencies are log W additions and not W.
  static float sum_lanes(F x) {
    float lanes[W];
    V::store(lanes, x);
    EDGEQKV_UNROLL
    for (int half = W / 2; half > 0; half /= 2)
      for (int i = 0; i < half; i++) lanes[i] += lanes[i + half];
    return lanes[0];
  }

  static float max_lanes(F x) {
    float lanes[W];
    V::store(lanes, x);
    EDGEQKV_UNROLL
    for (int half = W / 2; half > 0; half /= 2)
      for (int i = 0; i < half; i++) lanes[i] = lanes[i] > lanes[i + half] ? lanes[i] : lanes[i + half];
    return lanes[0];
  }

  // score[j ..] * scale[j ..] for a vector of which the first n - j lanes count.
  static F scaled(F x, const float* scale, int j, int n) {
    if (j + W <= n) return V::mul(x, V::load(scale + j));
    float lanes[W] = {};
    std::memcpy(lanes, scale + j, sizeof(float) * size_t(n - j));
    return V::mul(x, V::load(lanes));
  }

  // ---- append ----

  static void write_row(const float* x, int n, T* stored, float* scale) {
    if constexpr (sizeof(T) == 4) {
      std::memcpy(stored, x, size_t(n) * 4);
    } else if constexpr (sizeof(T) == 2) {
      for (int d = 0; d < n; d += W) V::store_fp16(stored + d, V::load(x + d));
    } else {
      F largest = V::set1(0), poison = V::set1(0);
      for (int d = 0; d < n; d += W) {
        F y = V::load(x + d);
        largest = V::max(largest, V::abs(y));
        poison = V::add(poison, V::sub(y, y));  // 0 while all is finite, then NaN
      }
      float lanes[W];
      *scale = max_lanes(largest) / 127 + sum_lanes(poison);
      F divisor = V::set1(*scale);
      bool usable = *scale > 0;
      for (int d = 0; d < n; d += W) {
        V::store(lanes, V::round(V::div(V::load(x + d), divisor)));
        for (int i = 0; i < W; i++) {
          float y = usable ? lanes[i] : 0.0f;
          stored[d + i] = T(y > 127 ? 127 : y < -127 ? -127 : y);
        }
      }
    }
  }

  static void append_tensor(const edgeqkv_attention_args& a, int kv_head, const float* x, void* cache, float* scales) {
    size_t n = size_t(a.head_dim), row = size_t(kv_head) * size_t(a.capacity) + size_t(a.position);
    for (int t = 0; t < a.n_token; t++, row++)
      write_row(x + (size_t(t) * size_t(a.n_kv_head) + size_t(kv_head)) * n, a.head_dim, static_cast<T*>(cache) + row * n,
                kInt8 ? scales + row : nullptr);
  }

  static void append(const edgeqkv_attention_args& a, int kv_head) {
    append_tensor(a, kv_head, a.k, a.k_cache, a.k_scale);
    if (a.v) append_tensor(a, kv_head, a.v, a.v_cache, a.v_scale);
  }

  // ---- attend, few query rows: one at a time over a block of cached rows ----

  // W rows from row j of n on: in place, or where fewer are left, copied to `padded` with zeros after them.
  static const T* whole_rows(const T* k, int j, int n, int dim, T* padded) {
    k += ptrdiff_t(j) * dim;
    if (j + W <= n) return k;
    std::memset(static_cast<void*>(padded), 0, sizeof(T) * size_t(W) * size_t(dim));
    std::memcpy(static_cast<void*>(padded), k, sizeof(T) * size_t(n - j) * size_t(dim));
    return padded;
  }

  // lane i = q . k[i] for W rows. Four rows at a time need one pointer and one stride.
  static F row_scores(const float* q, const T* k, int dim) {
    F acc[W];
    EDGEQKV_UNROLL
    for (int i = 0; i < W; i += 4) {
      const T* row = k + ptrdiff_t(i) * dim;
      F a = V::set1(0), b = a, c = a, e = a;
      for (int d = 0; d < dim; d += W) {
        F x = V::load(q + d);
        a = V::fma(x, V::load(row + d), a);
        b = V::fma(x, V::load(row + dim + d), b);
        c = V::fma(x, V::load(row + 2 * dim + d), c);
        e = V::fma(x, V::load(row + 3 * dim + d), e);
      }
      acc[i] = a, acc[i + 1] = b, acc[i + 2] = c, acc[i + 3] = e;
    }
    return V::sums(acc);
  }

  // acc[0 .. C*W) += sum_j weight[j] * v[j]; two chains for each register hide the latency of the multiply-add.
  template <int C>
  static void add_values(const T* v, const float* weight, int n, int dim, float* acc) {
    F a[C], b[C];
    EDGEQKV_UNROLL
    for (int c = 0; c < C; c++) {
      a[c] = V::load(acc + c * W);
      b[c] = V::set1(0);
    }
    int j = 0;
    for (; j + 2 <= n; j += 2, v += 2 * dim) {
      F wa = V::set1(weight[j]), wb = V::set1(weight[j + 1]);
      EDGEQKV_UNROLL
      for (int c = 0; c < C; c++) {
        a[c] = V::fma(wa, V::load(v + c * W), a[c]);
        b[c] = V::fma(wb, V::load(v + dim + c * W), b[c]);
      }
    }
    if (j < n)
      EDGEQKV_UNROLL
      for (int c = 0; c < C; c++) a[c] = V::fma(V::set1(weight[j]), V::load(v + c * W), a[c]);
    EDGEQKV_UNROLL
    for (int c = 0; c < C; c++) V::store(acc + c * W, V::add(a[c], b[c]));
  }

  static void add_row_values(const T* v, const float* weight, int n, int dim, float* acc) {
    int d = 0;
    for (; d + 4 * W <= dim; d += 4 * W) add_values<4>(v + d, weight, n, dim, acc + d);
    for (; d < dim; d += W) add_values<1>(v + d, weight, n, dim, acc + d);
  }

  // One query row against one block of cached rows.
  struct Step {
    const float* q;
    Rows<T> k, v;
    int n, ahead, fetch, dim; // rows of the block; rows from its first to what is fetched meanwhile, and how many those are
    float *max, *sum, *acc;   // the query row's state
    F top;                    // largest scores
    float weight[kBlockKeys]; // scores at first
    PackedWeights packed;
  };

  // A later block is fetched meanwhile: else memory would idle from this block's last row to the next one's first.
  static void scores(Step& s, T* padded) {
    s.top = V::set1(kNoScore);
    for (int j = 0; j < s.n; j += W) {
      const T* rows = whole_rows(s.k.x, j, s.n, s.dim, padded);
      if (j < s.fetch) {
        int rows_ahead = s.fetch - j < W ? s.fetch - j : W;
        prefetch(s.k.x + ptrdiff_t(s.ahead + j) * s.dim, rows_ahead * s.dim);
        if (s.v.x != s.k.x) prefetch(s.v.x + ptrdiff_t(s.ahead + j) * s.dim, rows_ahead * s.dim);
      }
      F x;
      if constexpr (kInt8 && V::kIntegerDot)
        x = V::mul(V::set1(s.q[0]), V::dot_rows(s.q + 16, rows, s.dim));
      else
        x = row_scores(s.q, rows, s.dim);
      if constexpr (kInt8) x = scaled(x, s.k.scale, j, s.n);
      V::store(s.weight + j, x);
      if (j + W > s.n) {
        for (int i = s.n; i < j + W; i++) s.weight[i] = -__builtin_inff();
        x = V::load(s.weight + j);
      }
      s.top = V::max(x, s.top);
    }
  }

  static void weights(Step& s) {
    float new_max = max_lanes(V::max(s.top, V::set1(*s.max)));
    if (new_max > *s.max) {
      float keep = exp2_one(*s.max - new_max);
      for (int d = 0; d < s.dim; d += W) V::store(s.acc + d, V::mul(V::load(s.acc + d), V::set1(keep)));
      *s.sum *= keep;
      *s.max = new_max;
    }
    F total = V::set1(0);
    for (int j = 0; j < s.n; j += W) {
      F p = exp2(V::sub(V::load(s.weight + j), V::set1(new_max)));
      total = V::add(total, p);
      if constexpr (kInt8) p = scaled(p, s.v.scale, j, s.n);
      V::store(s.weight + j, p);
    }
    *s.sum += sum_lanes(total);
    if constexpr (kInt8 && V::kIntegerWeights) V::pack_weights(s.weight, s.n, s.packed);
  }

  static void values(const Step& s) {
    if constexpr (kInt8 && V::kIntegerWeights)
      if (s.packed.unit != 0) return V::add_values(s.v.x, s.packed, s.n, s.dim, s.acc);
    add_row_values(s.v.x, s.weight, s.n, s.dim, s.acc);
  }

  // The query of the integer dot product is rounded to 16 bits, q ~ packed[0] * q16 with |q16| <= 127 * 256: an error below
  // max|q| / 65024, a 256th of the error that the int8 key already carries.
  // [0]: the unit, [16 ..]: V's layout of the integers. A query with NaN or infinity gets a NaN unit and zeros.
  static void pack_query(const float* x, int dim, float* packed) {
    float largest = 0, poison = 0;
    for (int d = 0; d < dim; d++) {
      float m = x[d] < 0 ? -x[d] : x[d];
      largest = m > largest ? m : largest;
      poison += x[d] - x[d];
    }
    float unit = largest / (127 * 256) + poison;
    packed[0] = unit;
    for (int d = 0; d < dim; d++) {
      float y = unit > 0 ? x[d] / unit : 0.0f;
      y = y > 127 * 256 ? 127 * 256 : y < -127 * 256 ? -127 * 256 : y;
      V::pack(packed + 16, dim, d, int(y < 0 ? y - 0.5f : y + 0.5f));
    }
  }

  static void prefetch(const T* x, int n_element) {
    const char* p = reinterpret_cast<const char*>(x);
    for (ptrdiff_t i = 0; i < ptrdiff_t(n_element) * ptrdiff_t(sizeof(T)); i += 64) __builtin_prefetch(p + i);
  }

  static void attend_rows(const edgeqkv_attention_args& a, const Item& item, Rows<T> k, Rows<T> v) {
    int dim = a.head_dim, group = a.n_head / a.n_kv_head;
    T* padded = reinterpret_cast<T*>(item.scratch);
    float* queries = item.scratch + aligned(size_t(W) * size_t(dim));
    size_t stride = aligned(size_t(dim)) + 16;
    for (int r = 0; r < item.n_row; r++) {
      float x[1024];
      load_query(a, item, r, x, 1);
      if constexpr (kInt8 && V::kIntegerDot)
        pack_query(x, dim, queries + size_t(r) * stride);
      else
        std::memcpy(queries + size_t(r) * stride, x, size_t(dim) * 4);
    }
    // The weights of a step are a chain of dependent instructions: the scores of the step after it, which do not depend on
    // them, come between them and the values that wait for them.
    Step step[2];
    int count = 0;
    // Of whole blocks, 8 KB or the next: nearer comes too late, farther pushes this block out of L1 (both measured).
    int block_bytes = kBlockKeys * dim * int(sizeof(T)), ahead = kBlockKeys * (block_bytes < 8192 ? 8192 / block_bytes : 1);
    for (int key = item.key0; key < item.key1; key += kBlockKeys) {
      int n = item.key1 - key < kBlockKeys ? item.key1 - key : kBlockKeys;
      int left = item.key1 - key - ahead, fetch = left < kBlockKeys ? left : kBlockKeys;
      for (int r = 0; r < item.n_row; r++) {
        int visible = a.position + (item.row0 + r) / group + 1 - key;
        if (visible <= 0) continue;
        Step &s = step[count % 2], &before = step[(count + 1) % 2];
        s.q = queries + size_t(r) * stride;
        s.k = {k.x + ptrdiff_t(key) * dim, kInt8 ? k.scale + key : nullptr};
        s.v = {v.x + ptrdiff_t(key) * dim, kInt8 ? v.scale + key : nullptr};
        s.n = visible < n ? visible : n, s.ahead = ahead, s.fetch = r == 0 ? fetch : 0, s.dim = dim;
        s.max = item.max + r, s.sum = item.sum + r, s.acc = item.acc + ptrdiff_t(r) * dim;
        if (count > 0) weights(before);
        scores(s, padded);
        if (count > 0) values(before);
        count++;
      }
    }
    if (count > 0) {
      weights(step[(count + 1) % 2]);
      values(step[(count + 1) % 2]);
    }
  }

  // ---- attend, many query rows: lanes are query rows, and a block of cached rows is widened to float once for all ----

  struct Tile {
    float *query, *score, *k, *v;  // [dim, kBlockRows], [kBlockKeys + kRows, kBlockRows], [kBlockKeys, dim] twice
  };

  static const float* widen(const T* x, int n_element, float* to) {
    if constexpr (sizeof(T) == 4) {
      return x;
    } else {
      for (int i = 0; i < n_element; i += W) V::store(to + i, V::load(x + i));
      return to;
    }
  }

  // score[j, lane] = scale[j] * (q[lane] . k[j]) for C vectors of lanes.
  template <int C>
  static void tile_scores(const float* query, const float* k, const float* scale, int n, int dim, float* score) {
    constexpr int J = V::kRows / C;
    for (int j = 0; j < n; j += J) {
      const float* row[J];
      F acc[J][C];
      EDGEQKV_UNROLL
      for (int i = 0; i < J; i++) {
        row[i] = k + ptrdiff_t(j + i < n ? j + i : n - 1) * dim;
        EDGEQKV_UNROLL
        for (int c = 0; c < C; c++) acc[i][c] = V::set1(0);
      }
      for (int d = 0; d < dim; d++) {
        F q[C];
        EDGEQKV_UNROLL
        for (int c = 0; c < C; c++) q[c] = V::load(query + d * kBlockRows + c * W);
        EDGEQKV_UNROLL
        for (int i = 0; i < J; i++) {
          F x = V::set1(row[i][d]);
          EDGEQKV_UNROLL
          for (int c = 0; c < C; c++) acc[i][c] = V::fma(x, q[c], acc[i][c]);
        }
      }
      EDGEQKV_UNROLL
      for (int i = 0; i < J; i++)
        EDGEQKV_UNROLL
        for (int c = 0; c < C; c++) {
          F s = kInt8 ? V::mul(acc[i][c], V::set1(scale[j + i < n ? j + i : n - 1])) : acc[i][c];
          V::store(score + (j + i) * kBlockRows + c * W, s);
        }
    }
  }

  // acc[r, 0 .. C*W) += sum_j weight[j, r] * v[j] for R query rows.
  template <int R, int C>
  static void tile_values(const float* v, const float* weight, int n, int dim, float* acc) {
    F a[R][C];
    EDGEQKV_UNROLL
    for (int r = 0; r < R; r++)
      EDGEQKV_UNROLL
      for (int c = 0; c < C; c++) a[r][c] = V::load(acc + ptrdiff_t(r) * dim + c * W);
    for (int j = 0; j < n; j++) {
      F x[C];
      EDGEQKV_UNROLL
      for (int c = 0; c < C; c++) x[c] = V::load(v + ptrdiff_t(j) * dim + c * W);
      EDGEQKV_UNROLL
      for (int r = 0; r < R; r++) {
        F w = V::set1(weight[j * kBlockRows + r]);
        EDGEQKV_UNROLL
        for (int c = 0; c < C; c++) a[r][c] = V::fma(w, x[c], a[r][c]);
      }
    }
    EDGEQKV_UNROLL
    for (int r = 0; r < R; r++)
      EDGEQKV_UNROLL
      for (int c = 0; c < C; c++) V::store(acc + ptrdiff_t(r) * dim + c * W, a[r][c]);
  }

  template <int R>
  static void tile_values_rows(const float* v, const float* weight, int n, int dim, float* acc) {
    constexpr int C = V::kAccVecs;
    int d = 0;
    for (; d + C * W <= dim; d += C * W) tile_values<R, C>(v + d, weight, n, dim, acc + d);
    for (; d < dim; d += W) tile_values<R, 1>(v + d, weight, n, dim, acc + d);
  }

  static void attend_tiles(const edgeqkv_attention_args& a, const Item& item, Rows<T> k, Rows<T> v) {
    int dim = a.head_dim, group = a.n_head / a.n_kv_head, n_vec = (item.n_row + W - 1) / W;
    Tile tile;
    tile.query = item.scratch;
    tile.score = tile.query + aligned(size_t(dim) * kBlockRows);
    tile.k = tile.score + size_t(kBlockKeys + V::kRows) * kBlockRows;
    tile.v = tile.k + aligned(size_t(kBlockKeys) * size_t(dim));
    float keep[kBlockRows], max[kBlockRows], sum[kBlockRows];
    for (int r = 0; r < kBlockRows; r++) {
      max[r] = kNoScore;
      sum[r] = 0;
      if (r < item.n_row) load_query(a, item, r, tile.query + r, kBlockRows);
      for (int d = 0; r >= item.n_row && d < dim; d++) tile.query[d * kBlockRows + r] = 0;
    }
    for (int key = item.key0; key < item.key1; key += kBlockKeys) {
      int n = item.key1 - key < kBlockKeys ? item.key1 - key : kBlockKeys;
      const float* k_scale = kInt8 ? k.scale + key : nullptr;
      const float* kf = widen(k.x + ptrdiff_t(key) * dim, n * dim, tile.k);
      const float* vf = v.x == k.x ? kf : widen(v.x + ptrdiff_t(key) * dim, n * dim, tile.v);

      int c = 0;
      for (; c + 2 <= n_vec; c += 2) tile_scores<2>(tile.query + c * W, kf, k_scale, n, dim, tile.score + c * W);
      for (; c < n_vec; c++) tile_scores<1>(tile.query + c * W, kf, k_scale, n, dim, tile.score + c * W);
      // Causal mask: the rows whose token comes before this key. Rows are ordered by token, so they are the first ones.
      for (int j = 0; j < n; j++) {
        int hidden = (key + j - a.position) * group - item.row0;
        for (int r = 0; r < hidden && r < item.n_row; r++) tile.score[j * kBlockRows + r] = -__builtin_inff();
      }
      const float* v_scale = kInt8 ? v.scale + key : nullptr;
      for (c = 0; c < n_vec; c++) softmax(tile.score + c * W, v_scale, n, max + c * W, sum + c * W, keep + c * W);

      int r = 0;
      while (r < item.n_row) {
        float* acc = item.acc + ptrdiff_t(r) * dim;
        // A hidden row is not read, not even with weight 0: 0 * NaN would be NaN.
        int visible = a.position + (item.row0 + r) / group + 1 - key;
        bool whole = r + V::kAccRows <= item.n_row && visible >= n;
        int rows = whole ? V::kAccRows : 1;
        for (int i = 0; i < rows; i++)
          for (int d = 0; keep[r + i] != 1 && d < dim; d += W)
            V::store(acc + ptrdiff_t(i) * dim + d, V::mul(V::load(acc + ptrdiff_t(i) * dim + d), V::set1(keep[r + i])));
        if (whole)
          tile_values_rows<V::kAccRows>(vf, tile.score + r, n, dim, acc);
        else
          tile_values_rows<1>(vf, tile.score + r, visible < n ? visible : n, dim, acc);
        r += rows;
      }
    }
    for (int r = 0; r < item.n_row; r++) {
      item.max[r] = max[r];
      item.sum[r] = sum[r];
    }
  }

  // One vector of query rows: scores of n positions become weights, in place; `keep` is what the state so far is scaled by.
  static void softmax(float* score, const float* v_scale, int n, float* max, float* sum, float* keep) {
    F old_max = V::load(max), new_max = old_max, total = V::set1(0);
    for (int j = 0; j < n; j++) new_max = V::max(V::load(score + j * kBlockRows), new_max);
    for (int j = 0; j < n; j++) {
      F p = exp2(V::sub(V::load(score + j * kBlockRows), new_max));
      total = V::add(total, p);
      V::store(score + j * kBlockRows, v_scale ? V::mul(p, V::set1(v_scale[j])) : p);
    }
    F factor = exp2(V::sub(old_max, new_max));
    V::store(keep, factor);
    V::store(sum, V::fma(V::load(sum), factor, total));
    V::store(max, new_max);
  }

  // Query row r of the item, times the score scale and log2(e), to x[0], x[stride], ...
  static void load_query(const edgeqkv_attention_args& a, const Item& item, int r, float* x, int stride) {
    int group = a.n_head / a.n_kv_head, row = item.row0 + r, head = item.kv_head * group + row % group;
    const float* q = a.q + (size_t(row / group) * size_t(a.n_head) + size_t(head)) * size_t(a.head_dim);
    float factor = a.scale * 1.44269504f;
    for (int d = 0; d < a.head_dim; d++) x[d * stride] = q[d] * factor;
  }

  static void attend(const edgeqkv_attention_args& a, const Item& item) {
    size_t first = size_t(item.kv_head) * size_t(a.capacity), dim = size_t(a.head_dim);
    Rows<T> k = {static_cast<const T*>(a.k_cache) + first * dim, kInt8 ? a.k_scale + first : nullptr}, v = k;
    if (a.v) v = {static_cast<const T*>(a.v_cache) + first * dim, kInt8 ? a.v_scale + first : nullptr};
    for (int r = 0; r < item.n_row; r++) {
      item.max[r] = kNoScore;
      item.sum[r] = 0;
    }
    std::memset(item.acc, 0, size_t(item.n_row) * dim * 4);
    if (item.n_row * 2 <= W)
      attend_rows(a, item, k, v);
    else
      attend_tiles(a, item, k, v);
  }
};

template <class V>
void append(const edgeqkv_attention_args& a, int kv_head) {
  if (a.dtype == EDGEQKV_FP32) return Kernel<V, float>::append(a, kv_head);
  if (a.dtype == EDGEQKV_FP16) return Kernel<V, fp16>::append(a, kv_head);
  Kernel<V, int8_t>::append(a, kv_head);
}

template <class V>
void attend(const edgeqkv_attention_args& a, const Item& item) {
  if (a.dtype == EDGEQKV_FP32) return Kernel<V, float>::attend(a, item);
  if (a.dtype == EDGEQKV_FP16) return Kernel<V, fp16>::attend(a, item);
  Kernel<V, int8_t>::attend(a, item);
}

// Both ways to attend, whichever needs more: queries, scores, and two widened blocks.
template <class V>
size_t scratch_floats(int head_dim) {
  size_t dim = size_t(head_dim), tile = aligned(dim * kBlockRows) + 2 * aligned(dim * kBlockKeys);
  return tile + size_t(kBlockKeys + V::kRows) * kBlockRows;
}

}  // namespace
}  // namespace edgeqkv
