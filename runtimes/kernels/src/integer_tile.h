// Many query rows over int8 in integers. A 32-bit integer holds a group of V::kGroup products' factors, and there is one
// operation: V::dot(sum, x, y) adds to each lane of `sum` the dot product of that lane's group of x with the group at y.
//   scores  lanes are query rows, groups are channels: x the queries, y a key
//   values  lanes are channels, groups are cached rows: x the values, rows interleaved, y a query row's weights
// A 16-bit factor (query, weight) has V::kDigits integers: 2 where products are of bytes, high before low.
#pragma once

#include "vector.h"

namespace edgeqkv {
namespace {

template <class V>
struct IntegerTile {
  using F = typename V::F;
  using I = typename V::I;
  static constexpr int W = V::W, kGroup = V::kGroup, kDigits = V::kDigits;

  int32_t *query, *weight;    // a part's [kDigits, dim / kGroup, kBlockRows] after the other; [kDigits, kBlockKeys / kGroup, kBlockRows]
  int32_t *key, *value;       // [kBlockKeys, dim / kGroup], [kBlockKeys / kGroup, dim] of one part
  float *unit, *weight_unit;  // [kMaxParts, kBlockRows], [kBlockRows]

  IntegerTile(Arena& arena, const edgeqkv_attention_args& a) {
    query = arena.take<int32_t>(size_t(kDigits * a.key_dim / kGroup) * kBlockRows);
    weight = arena.take<int32_t>(size_t(kDigits * kBlockKeys / kGroup) * kBlockRows);
    key = arena.take<int32_t>(size_t(kBlockKeys) * kMaxPart / kGroup);
    value = arena.take<int32_t>(size_t(kBlockKeys / kGroup) * kMaxPart);
    unit = arena.take<float>(size_t(kMaxParts) * kBlockRows);
    weight_unit = arena.take<float>(kBlockRows);
  }

  // One factor's groups in memory: where they begin, and how many groups it is from one vector or row, step or digit to the next.
  struct Lanes {
    const int32_t* x;
    ptrdiff_t step, digit;
  };
  struct Groups {
    const char* y;  // needs no alignment
    ptrdiff_t row, step, digit;
  };

  // sum[a][b] = sum over n groups of x[b] . y[a], for A rows of y and B vectors of x.
  template <int A, int B>
  static void multiply(Lanes x, Groups y, int n, I (&sum)[A][B]) {
    EDGEQKV_UNROLL
    for (int a = 0; a < A; a++)
      EDGEQKV_UNROLL
      for (int b = 0; b < B; b++) sum[a][b] = V::zero();
    for (int digit = 0; digit < kDigits; digit++) {
      const int32_t* xd = x.x + digit * x.digit;
      const char* yd = y.y + 4 * digit * y.digit;
      for (int i = 0; i < n; i++, xd += x.step, yd += 4 * y.step) {
        I lanes[B];
        EDGEQKV_UNROLL
        for (int b = 0; b < B; b++) lanes[b] = V::load_integers(xd + b * W);
        EDGEQKV_UNROLL
        for (int a = 0; a < A; a++)
          EDGEQKV_UNROLL
          for (int b = 0; b < B; b++) sum[a][b] = V::dot(sum[a][b], lanes[b], yd + 4 * a * y.row);
      }
      if (digit + 1 < kDigits)
        EDGEQKV_UNROLL
        for (int a = 0; a < A; a++)
          EDGEQKV_UNROLL
          for (int b = 0; b < B; b++) sum[a][b] = V::times_256(sum[a][b]);
    }
  }

  int32_t* query_of(const Part& part) const { return query + ptrdiff_t(kDigits * part.begin / kGroup) * kBlockRows; }

  void load_query(const edgeqkv_attention_args& a, const Item& item, const Slice<int8_t>& k, int r) {
    alignas(64) float x[kMaxRow] = {};
    if (r < item.n_row) edgeqkv::load_query(a, item, r, x, 1);
    for (int p = 0; p < k.n_part; p++) {
      const Part& part = k.part[p];
      int16_t integers[kMaxPart];
      unit[p * kBlockRows + r] = round_query<V>(x + part.begin, part.dim, integers);
      for (int d = 0; d < part.dim; d += kGroup)
        V::pack_group(integers + d, query_of(part) + d / kGroup * kBlockRows + r, ptrdiff_t(part.dim / kGroup) * kBlockRows);
    }
  }

  // Scores of rows j .. j + A - 1 and B vectors of query rows from lane c on, added to those of the parts before.
  template <int A, int B>
  void scores_of(const Slice<int8_t>& k, int p, Groups keys, int j, int c, const float* scale, float* score) {
    const Part& part = k.part[p];
    I sum[A][B];
    ptrdiff_t n = part.dim / kGroup;
    keys.y += 4 * j * keys.row;
    multiply<A, B>({query_of(part) + c, kBlockRows, n * kBlockRows}, keys, int(n), sum);
    EDGEQKV_UNROLL
    for (int a = 0; a < A; a++)
      EDGEQKV_UNROLL
      for (int b = 0; b < B; b++) {
        float* to = score + (j + a) * kBlockRows + c + b * W;
        F x = V::mul(V::to_float(sum[a][b]), V::mul(V::load(unit + p * kBlockRows + c + b * W), V::set1(scale[j + a])));
        V::store(to, p == 0 ? x : V::add(V::load(to), x));
      }
  }

  template <int A>
  void scores_of_rows(const Slice<int8_t>& k, int p, Groups keys, int j, int n_vec, const float* scale, float* score) {
    int c = 0;
    for (; c + 2 <= n_vec; c += 2) scores_of<A, 2>(k, p, keys, j, c * W, scale, score);
    if (c < n_vec) scores_of<A, 1>(k, p, keys, j, c * W, scale, score);
  }

  // score[j, lane] = q[lane] . k[j] for n cached rows from `position` on and n_vec vectors of query rows.
  void scores(const Slice<int8_t>& k, int position, int n, int n_vec, float* score) {
    for (int p = 0; p < k.n_part; p++) {
      Groups keys = {reinterpret_cast<const char*>(k.row(position) + k.part[p].begin), k.stride / 4, 1, 0};
      const float* scale = k.part[p].scale + position;
      int j = 0;
      for (; j + 4 <= n; j += 4) scores_of_rows<4>(k, p, keys, j, n_vec, scale, score);
      for (; j < n; j++) scores_of_rows<1>(k, p, keys, j, n_vec, scale, score);
    }
  }

  // Weights [n, kBlockRows] times scale[n] to integers, as round_weights does for one query row. False if one of the n_row
  // cannot be.
  bool round_tile(const float* w, const float* scale, int n, int n_row) {
    for (int c = 0; c < n_row; c += W) {
      F largest = V::set1(0), total = V::set1(0);
      for (int j = 0; j < n; j++) {
        F x = V::mul(V::load(w + j * kBlockRows + c), V::set1(scale[j]));
        largest = V::max(x, largest);
        total = V::add(total, x);
      }
      float top[W], sum[W], steps[W];
      V::store(top, largest);
      V::store(sum, total);
      for (int i = 0; i < W; i++) {
        bool usable = top[i] > 1e-30f && sum[i] < 1e30f;
        if (!usable && c + i < n_row) return false;
        weight_unit[c + i] = top[i] / kLargestInteger;
        steps[i] = usable ? kLargestInteger / top[i] : 0;
      }
      F step = V::load(steps);
      for (int j = 0; j < n; j += kGroup) {
        F x[kGroup];
        EDGEQKV_UNROLL
        for (int i = 0; i < kGroup; i++)
          x[i] = j + i < n ? V::mul(V::load(w + (j + i) * kBlockRows + c), V::mul(V::set1(scale[j + i]), step)) : V::set1(0);
        V::round_group(x, weight + j / kGroup * kBlockRows + c, kBlockKeys / kGroup * kBlockRows);
      }
    }
    return true;
  }

  template <int A, int B>
  void values_of(int r, int d, int n_group, int dim, const float* keep, float* acc, ptrdiff_t acc_row) {
    I sum[A][B];
    multiply<A, B>({value + d, dim, 0}, {reinterpret_cast<const char*>(weight + r), 1, kBlockRows, kBlockKeys / kGroup * kBlockRows},
                   n_group, sum);
    EDGEQKV_UNROLL
    for (int a = 0; a < A; a++) {
      float* to = acc + (r + a) * acc_row + d;
      EDGEQKV_UNROLL
      for (int b = 0; b < B; b++)
        V::store(to + b * W, V::fma(V::set1(weight_unit[r + a]), V::to_float(sum[a][b]),
                                    V::mul(V::load(to + b * W), V::set1(keep[r + a]))));
    }
  }

  template <int A>
  void values_of_rows(int r, int n_group, int dim, const float* keep, float* acc, ptrdiff_t acc_row) {
    int d = 0;
    for (; d + 2 * W <= dim; d += 2 * W) values_of<A, 2>(r, d, n_group, dim, keep, acc, acc_row);
    for (; d < dim; d += W) values_of<A, 1>(r, d, n_group, dim, keep, acc, acc_row);
  }

  // acc[r] = keep[r] * acc[r] + sum_j weight[j, r] * v[j] in the channels of one part, with the weights of round_tile.
  void values(const Slice<int8_t>& v, const Part& part, int position, int n, int n_row, const float* keep, float* acc) {
    V::interleave(v.row(position) + part.begin, v.stride, n, part.dim, value);
    acc += part.begin;
    int r = 0, n_group = (n + kGroup - 1) / kGroup;
    for (; r + 4 <= n_row; r += 4) values_of_rows<4>(r, n_group, part.dim, keep, acc, v.dim);
    for (; r < n_row; r++) values_of_rows<1>(r, n_group, part.dim, keep, acc, v.dim);
  }
};

}  // namespace
}  // namespace edgeqkv
