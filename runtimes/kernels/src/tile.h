// Many query rows: lanes are query rows, and a block of cached rows is widened to float once for all of them, unless it is int8
// and the path has integer tiles. Those need every query row to see the whole block; the others are summed in floats.
#pragma once

#include <type_traits>

#include "integer_tile.h"
#include "vector.h"

namespace edgeqkv {
namespace {

template <class V, class T>
struct Tiles {
  using F = typename V::F;
  static constexpr int W = V::W;
  static constexpr bool kInt8 = sizeof(T) == 1;
  struct None {};
  using Integers = std::conditional_t<kInt8 && V::kIntegerTile, IntegerTile<V>, None>;

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

  // acc[r] = keep[r] * acc[r] + sum_j weight[j, r] * v[j] over the rows that query row r sees, of a block from position `key`.
  static void values(const edgeqkv_attention_args& a, const Item& item, const float* v, const float* weight, const float* keep,
                     int key, int n) {
    int dim = a.head_dim, r = 0;
    while (r < item.n_row) {
      float* acc = item.acc + ptrdiff_t(r) * dim;
      // A hidden row is not read, not even with weight 0: 0 * NaN would be NaN.
      int visible = seen(a, item, r) - key;
      bool whole = r + V::kAccRows <= item.n_row && visible >= n;
      int rows = whole ? V::kAccRows : 1;
      for (int i = 0; i < rows; i++)
        for (int d = 0; keep[r + i] != 1 && d < dim; d += W)
          V::store(acc + ptrdiff_t(i) * dim + d, V::mul(V::load(acc + ptrdiff_t(i) * dim + d), V::set1(keep[r + i])));
      if (whole)
        tile_values_rows<V::kAccRows>(v, weight + r, n, dim, acc);
      else
        tile_values_rows<1>(v, weight + r, visible < n ? visible : n, dim, acc);
      r += rows;
    }
  }

  // Positions that query row r sees.
  static int seen(const edgeqkv_attention_args& a, const Item& item, int r) {
    return a.position + (item.row0 + r) / (a.n_head / a.n_kv_head) + 1;
  }

  static void attend(const edgeqkv_attention_args& a, const Item& item, Rows<T> k, Rows<T> v) {
    if constexpr (kInt8 && V::kIntegerTile)
      if (a.head_dim <= IntegerTile<V>::kMaxDim) return attend_as<true>(a, item, k, v);
    attend_as<false>(a, item, k, v);
  }

  template <bool kIntegers>
  static void attend_as(const edgeqkv_attention_args& a, const Item& item, Rows<T> k, Rows<T> v) {
    int dim = a.head_dim, group = a.n_head / a.n_kv_head, n_vec = (item.n_row + W - 1) / W;
    Tile tile;
    tile.query = item.scratch;
    tile.score = tile.query + aligned(size_t(dim) * kBlockRows);
    tile.k = tile.score + size_t(kBlockKeys + V::kRows) * kBlockRows;
    tile.v = tile.k + aligned(size_t(kBlockKeys) * size_t(dim));
    [[maybe_unused]] Integers integers;
    if constexpr (kIntegers) integers.place(tile.query, tile.k, tile.v + aligned(size_t(kBlockKeys) * size_t(dim)), dim);
    float keep[kBlockRows], max[kBlockRows], sum[kBlockRows];
    for (int r = 0; r < kBlockRows; r++) {
      max[r] = kNoScore;
      sum[r] = 0;
      if constexpr (kIntegers) {
        integers.load_query(a, item, r);
      } else {
        if (r < item.n_row) load_query(a, item, r, tile.query + r, kBlockRows);
        for (int d = 0; r >= item.n_row && d < dim; d++) tile.query[d * kBlockRows + r] = 0;
      }
    }
    for (int key = item.key0; key < item.key1; key += kBlockKeys) {
      int n = item.key1 - key < kBlockKeys ? item.key1 - key : kBlockKeys;
      const float* k_scale = kInt8 ? k.scale + key : nullptr;
      const float* v_scale = kInt8 ? v.scale + key : nullptr;
      const T *k_rows = k.x + ptrdiff_t(key) * dim, *v_rows = v.x + ptrdiff_t(key) * dim;
      const float* widened = nullptr;
      if constexpr (kIntegers) {
        integers.scores(k_rows, k_scale, n, n_vec, dim, tile.score);
      } else {
        widened = widen(k_rows, n * dim, tile.k);
        int c = 0;
        for (; c + 2 <= n_vec; c += 2) tile_scores<2>(tile.query + c * W, widened, k_scale, n, dim, tile.score + c * W);
        for (; c < n_vec; c++) tile_scores<1>(tile.query + c * W, widened, k_scale, n, dim, tile.score + c * W);
      }
      // Causal mask: the rows whose token comes before this key. Rows are ordered by token, so they are the first ones.
      for (int j = 0; j < n; j++) {
        int hidden = (key + j - a.position) * group - item.row0;
        for (int r = 0; r < hidden && r < item.n_row; r++) tile.score[j * kBlockRows + r] = -__builtin_inff();
      }
      for (int c = 0; c < n_vec; c++) softmax(tile.score + c * W, v_scale, n, max + c * W, sum + c * W, keep + c * W);

      if constexpr (kIntegers)
        if (seen(a, item, 0) >= key + n && integers.round_tile(tile.score, n, item.n_row)) {
          integers.values(v_rows, n, item.n_row, dim, keep, item.acc);
          continue;
        }
      if (kIntegers || v.x != k.x) widened = widen(v_rows, n * dim, tile.v);
      values(a, item, widened, tile.score, keep, key, n);
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
      F p = exp2<V>(V::sub(V::load(score + j * kBlockRows), new_max));
      total = V::add(total, p);
      V::store(score + j * kBlockRows, v_scale ? V::mul(p, V::set1(v_scale[j])) : p);
    }
    F factor = exp2<V>(V::sub(old_max, new_max));
    V::store(keep, factor);
    V::store(sum, V::fma(V::load(sum), factor, total));
    V::store(max, new_max);
  }
};

}  // namespace
}  // namespace edgeqkv
