// Many query rows: lanes are query rows, and a block of cached rows is widened to float once for all of them, unless it is int8
// and the path has integer tiles.
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

  struct None {
    None(Arena&, int) {}
  };
  static constexpr bool kIntegers = kInt8 && V::kIntegerTile;
  using Integers = std::conditional_t<kIntegers, IntegerTile<V>, None>;

  struct Scratch {
    float *query, *score, *k,
        *v;             // [key_dim, kBlockRows], [kBlockKeys + kRows, kBlockRows], [kBlockKeys, row_dim or value_dim]
    Integers integers;  // in place of the query; the widened rows are there for blocks that it cannot take

    Scratch(Arena& arena, const edgeqkv_attention_args& a)
        : query(kIntegers ? nullptr : arena.take<float>(size_t(a.key_dim) * kBlockRows)),
          score(arena.take<float>(size_t(kBlockKeys + V::kRows) * kBlockRows)),
          k(sizeof(T) == 4 || kIntegers ? nullptr : arena.take<float>(size_t(kBlockKeys) * size_t(a.row_dim))),
          v(sizeof(T) == 4 ? nullptr : arena.take<float>(size_t(kBlockKeys) * size_t(a.value_dim))),
          integers(arena, a.key_dim) {}
  };

  // Rows of floats.
  struct Floats {
    const float* x;
    ptrdiff_t stride;
  };

  // n rows of a slice as floats, times their scales: in place, or at `to`.
  static Floats widen(const Slice<T>& s, int position, int n, float* to) {
    if constexpr (sizeof(T) == 4) {
      return {s.row(position), s.stride};
    } else {
      for (int j = 0; j < n; j++) {
        const T* row = s.row(position + j);
        float* at = to + ptrdiff_t(j) * s.dim;
        if constexpr (kInt8) {
          for (int p = 0; p < s.n_part; p++) {
            const Part& part = s.part[p];
            F scale = V::set1(part.scale[position + j]);
            for (int d = part.begin; d < part.begin + part.dim; d += W) V::store(at + d, V::mul(V::load(row + d), scale));
          }
        } else {
          for (int d = 0; d < s.dim; d += W) V::store(at + d, V::load(row + d));
        }
      }
      return {to, s.dim};
    }
  }

  // score[j, lane] = q[lane] . k[j] for C vectors of lanes.
  template <int C>
  static void tile_scores(const float* query, Floats k, int n, int dim, float* score) {
    constexpr int J = V::kRows / C;
    for (int j = 0; j < n; j += J) {
      const float* row[J];
      F acc[J][C];
      EDGEQKV_UNROLL
      for (int i = 0; i < J; i++) {
        row[i] = k.x + (j + i < n ? j + i : n - 1) * k.stride;
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
      for (int i = 0; i < J; i++) EDGEQKV_UNROLL
      for (int c = 0; c < C; c++) V::store(score + (j + i) * kBlockRows + c * W, acc[i][c]);
    }
  }

  // acc[r, 0 .. C*W) += sum_j weight[j, r] * v[j] for R query rows, whose states are acc_row apart.
  template <int R, int C>
  static void tile_values(Floats v, const float* weight, int n, float* acc, ptrdiff_t acc_row) {
    F a[R][C];
    EDGEQKV_UNROLL
    for (int r = 0; r < R; r++) EDGEQKV_UNROLL
    for (int c = 0; c < C; c++) a[r][c] = V::load(acc + r * acc_row + c * W);
    for (int j = 0; j < n; j++) {
      F x[C];
      EDGEQKV_UNROLL
      for (int c = 0; c < C; c++) x[c] = V::load(v.x + j * v.stride + c * W);
      EDGEQKV_UNROLL
      for (int r = 0; r < R; r++) {
        F w = V::set1(weight[j * kBlockRows + r]);
        EDGEQKV_UNROLL
        for (int c = 0; c < C; c++) a[r][c] = V::fma(w, x[c], a[r][c]);
      }
    }
    EDGEQKV_UNROLL
    for (int r = 0; r < R; r++) EDGEQKV_UNROLL
    for (int c = 0; c < C; c++) V::store(acc + r * acc_row + c * W, a[r][c]);
  }

  template <int R>
  static void tile_values_rows(Floats v, const float* weight, int n, int dim, float* acc, ptrdiff_t acc_row) {
    constexpr int C = V::kAccVecs;
    int d = 0;
    for (; d + C * W <= dim; d += C * W) tile_values<R, C>({v.x + d, v.stride}, weight, n, acc + d, acc_row);
    for (; d < dim; d += W) tile_values<R, 1>({v.x + d, v.stride}, weight, n, acc + d, acc_row);
  }

  // acc[r] = keep[r] * acc[r] + sum_j weight[j, r] * v[j] in `dim` channels, over the rows that query row r sees of a block of n
  // from position `key`. The states are acc_row apart.
  static void values(const edgeqkv_attention_args& a, const Item& item, Floats v, const float* weight, const float* keep,
                     int key, int n, int dim, float* acc, ptrdiff_t acc_row) {
    for (int r = 0, rows; r < item.n_row; r += rows, acc += rows * acc_row) {
      // A hidden row is not read, not even with weight 0: 0 * NaN would be NaN.
      int visible = seen(a, item, r) - key;
      bool whole = r + V::kAccRows <= item.n_row && visible >= n;
      rows = whole ? V::kAccRows : 1;
      for (int i = 0; i < rows; i++)
        for (int d = 0; keep[r + i] != 1 && d < dim; d += W)
          V::store(acc + i * acc_row + d, V::mul(V::load(acc + i * acc_row + d), V::set1(keep[r + i])));
      if (whole)
        tile_values_rows<V::kAccRows>(v, weight + r, n, dim, acc, acc_row);
      else
        tile_values_rows<1>(v, weight + r, visible < n ? visible : n, dim, acc, acc_row);
    }
  }

  static void attend(const edgeqkv_attention_args& a, const Item& item, const Cached<T>& cache) {
    int n_vec = (item.n_row + W - 1) / W;
    Arena arena(item.scratch);
    Scratch s(arena, a);
    float keep[kBlockRows], max[kBlockRows], sum[kBlockRows];
    for (int r = 0; r < n_vec * W; r++) {
      max[r] = kNoScore;
      sum[r] = 0;
      float x[kMaxRow];
      load_query<V>(a, item, r, x);
      if constexpr (kIntegers)
        s.integers.pack_query(cache.key, x, r);
      else
        for (int d = 0; d < a.key_dim; d++) s.query[d * kBlockRows + r] = x[d];
    }
    for (int key = item.key0; key < item.key1; key += kBlockKeys) {
      int n = item.key1 - key < kBlockKeys ? item.key1 - key : kBlockKeys;
      [[maybe_unused]] Floats rows = {};
      if constexpr (kIntegers) {
        s.integers.scores(cache.key, key, n, item.key1, n_vec, s.score);
      } else {
        rows = widen(cache.row, key, n, s.k);
        int c = 0;
        for (; c + 2 <= n_vec; c += 2) tile_scores<2>(s.query + c * W, rows, n, a.key_dim, s.score + c * W);
        for (; c < n_vec; c++) tile_scores<1>(s.query + c * W, rows, n, a.key_dim, s.score + c * W);
      }
      // Causal mask: the rows whose token comes before this key. Rows are ordered by token, so they are the first ones.
      const bool whole = seen(a, item, 0) >= key + n;
      for (int j = 0; !whole && j < n; j++)
        for (int r = 0; r < item.n_row && seen(a, item, r) <= key + j; r++) s.score[j * kBlockRows + r] = -__builtin_inff();
      for (int c = 0; c < n_vec; c++) softmax(s.score + c * W, n, max + c * W, sum + c * W, keep + c * W);

      if constexpr (kIntegers) {
        for (int p = 0; p < cache.value.n_part; p++) integer_values(a, item, cache.value, p, s, keep, key, n);
      } else {
        Floats v = cache.one_tensor ? Floats{rows.x + a.value_start, rows.stride} : widen(cache.value, key, n, s.v);
        values(a, item, v, s.score, keep, key, n, a.value_dim, item.acc, a.value_dim);
      }
    }
    for (int r = 0; r < item.n_row; r++) {
      item.max[r] = max[r];
      item.sum[r] = sum[r];
    }
  }

  // One part of the values. A hidden row has weight 0, which is exact in integers; a NaN of its scale is left to the floats.
  static void integer_values(const edgeqkv_attention_args& a, const Item& item, const Slice<T>& value, int p, Scratch& s,
                             const float* keep, int key, int n) {
    const Part& part = value.part[p];
    if (s.integers.round_tile(s.score, part.scale + key, n, item.n_row))
      return s.integers.values.add(value, part, key, n, item.n_row, s.integers.weights(keep), item.acc);
    Slice<T> only = value;
    only.x += part.begin, only.dim = part.dim, only.n_part = 1;
    only.part[0] = {0, part.dim, part.scale};
    values(a, item, widen(only, key, n, s.v), s.score, keep, key, n, part.dim, item.acc + part.begin, a.value_dim);
  }

  // One vector of query rows: scores of n positions become weights, in place; `keep` is what the state so far is scaled by.
  static void softmax(float* score, int n, float* max, float* sum, float* keep) {
    F old_max = V::load(max), new_max = old_max, total = V::set1(0);
    for (int j = 0; j < n; j++) new_max = V::max(V::load(score + j * kBlockRows), new_max);
    for (int j = 0; j < n; j++) {
      F p = exp2<V>(V::sub(V::load(score + j * kBlockRows), new_max));
      total = V::add(total, p);
      V::store(score + j * kBlockRows, p);
    }
    F factor = exp2<V>(V::sub(old_max, new_max));
    V::store(keep, factor);
    V::store(sum, V::fma(V::load(sum), factor, total));
    V::store(max, new_max);
  }
};

}  // namespace
}  // namespace edgeqkv
