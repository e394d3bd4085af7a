// Few query rows: one at a time over a block of cached rows.
#pragma once

#include "vector.h"

namespace edgeqkv {
namespace {

template <class V, class T>
struct FewRows {
  using F = typename V::F;
  static constexpr int W = V::W;
  static constexpr bool kInt8 = sizeof(T) == 1;

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
    typename V::PackedWeights packed;
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
      if constexpr (kInt8)
        x = V::mul(V::set1(s.q[0]), V::dot_rows(s.q + 16, rows, s.dim));
      else
        x = row_scores(s.q, rows, s.dim);
      if constexpr (kInt8) x = scaled<V>(x, s.k.scale, j, s.n);
      V::store(s.weight + j, x);
      if (j + W > s.n) {
        for (int i = s.n; i < j + W; i++) s.weight[i] = -__builtin_inff();
        x = V::load(s.weight + j);
      }
      s.top = V::max(x, s.top);
    }
  }

  static void weights(Step& s) {
    float new_max = max_lanes<V>(V::max(s.top, V::set1(*s.max)));
    if (new_max > *s.max) {
      float keep = exp2_one<V>(*s.max - new_max);
      for (int d = 0; d < s.dim; d += W) V::store(s.acc + d, V::mul(V::load(s.acc + d), V::set1(keep)));
      *s.sum *= keep;
      *s.max = new_max;
    }
    F total = V::set1(0);
    for (int j = 0; j < s.n; j += W) {
      F p = exp2<V>(V::sub(V::load(s.weight + j), V::set1(new_max)));
      total = V::add(total, p);
      if constexpr (kInt8) p = scaled<V>(p, s.v.scale, j, s.n);
      V::store(s.weight + j, p);
    }
    *s.sum += sum_lanes<V>(total);
    if constexpr (kInt8) V::pack_weights(s.weight, s.n, s.packed);
  }

  static void values(const Step& s) {
    if constexpr (kInt8)
      if (s.packed.unit != 0) return V::add_values(s.v.x, s.packed, s.n, s.dim, s.acc);
    add_row_values(s.v.x, s.weight, s.n, s.dim, s.acc);
  }

  // The query of the integer dot product is rounded to 16 bits, q ~ packed[0] * q16 with |q16| <= 127 * 256: an error below
  // max|q| / 65024, a 256th of the error that the int8 key already carries.
  // [0]: the unit, [16 ..]: V's layout of the integers. A query with NaN or infinity gets a NaN unit and zeros.
  static void pack_query(const float* x, int dim, float* packed) {
    int16_t integers[1024];
    packed[0] = round_query(x, dim, integers);
    V::pack(integers, dim, packed + 16);
  }

  static void prefetch(const T* x, int n_element) {
    const char* p = reinterpret_cast<const char*>(x);
    for (ptrdiff_t i = 0; i < ptrdiff_t(n_element) * ptrdiff_t(sizeof(T)); i += 64) __builtin_prefetch(p + i);
  }

  static void attend(const edgeqkv_attention_args& a, const Item& item, Rows<T> k, Rows<T> v) {
    int dim = a.head_dim, group = a.n_head / a.n_kv_head;
    T* padded = reinterpret_cast<T*>(item.scratch);
    float* queries = item.scratch + aligned(size_t(W) * size_t(dim));
    size_t stride = aligned(size_t(dim)) + 16;
    for (int r = 0; r < item.n_row; r++) {
      float x[1024];
      load_query(a, item, r, x, 1);
      if constexpr (kInt8)
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
};

}  // namespace
}  // namespace edgeqkv
