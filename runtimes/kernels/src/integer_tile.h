// Many query rows over int8 in integers. A 32-bit integer holds a group of V::kGroup products' factors, and there is one
// operation: V::dot(sum, x, y) adds to each lane of `sum` the dot product of that lane's group of x with the group at y.
//   scores  lanes are query rows, groups are dimensions: x the queries, y a key
//   values  lanes are dimensions, groups are cached rows: x the values, rows interleaved, y a query row's weights
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
  static constexpr int kMaxDim = 512;  // 512 * 32512 * 127 < 2^31, the sum of one lane

  int32_t *query, *weight;  // [kDigits, head_dim / kGroup, kBlockRows], [kDigits, kBlockKeys / kGroup, kBlockRows]
  int32_t *key, *value;     // [kBlockKeys, head_dim / kGroup], [kBlockKeys / kGroup, head_dim]
  float unit[kBlockRows], weight_unit[kBlockRows];

  // Each at the place of what it stands for in a tile of floats; the weights come apart, kBlockKeys * kBlockRows / 2 floats.
  void place(float* queries, float* block, float* weights, int dim) {
    query = reinterpret_cast<int32_t*>(queries);
    key = reinterpret_cast<int32_t*>(block);
    value = key + kBlockKeys / 2 * dim;
    weight = reinterpret_cast<int32_t*>(weights);
  }

  // sum[a][b] = sum over n groups of x[b] . y[a], for A rows of y and B vectors of x, steps in groups. y needs no alignment.
  template <int A, int B>
  static void multiply(const int32_t* x, ptrdiff_t x_step, ptrdiff_t x_digit, const char* y, ptrdiff_t y_row, ptrdiff_t y_step,
                       ptrdiff_t y_digit, int n, I (&sum)[A][B]) {
    EDGEQKV_UNROLL
    for (int a = 0; a < A; a++)
      EDGEQKV_UNROLL
      for (int b = 0; b < B; b++) sum[a][b] = V::zero();
    for (int digit = 0; digit < kDigits; digit++) {
      const int32_t* xd = x + digit * x_digit;
      const char* yd = y + 4 * digit * y_digit;
      for (int i = 0; i < n; i++, xd += x_step, yd += 4 * y_step) {
        I lanes[B];
        EDGEQKV_UNROLL
        for (int b = 0; b < B; b++) lanes[b] = V::load_integers(xd + b * W);
        EDGEQKV_UNROLL
        for (int a = 0; a < A; a++)
          EDGEQKV_UNROLL
          for (int b = 0; b < B; b++) sum[a][b] = V::dot(sum[a][b], lanes[b], yd + 4 * a * y_row);
      }
      if (digit + 1 < kDigits)
        EDGEQKV_UNROLL
        for (int a = 0; a < A; a++)
          EDGEQKV_UNROLL
          for (int b = 0; b < B; b++) sum[a][b] = V::times_256(sum[a][b]);
    }
  }

  void load_query(const edgeqkv_attention_args& a, const Item& item, int r) {
    int16_t integers[kMaxDim] = {};
    float x[kMaxDim];
    unit[r] = 0;
    if (r < item.n_row) {
      edgeqkv::load_query(a, item, r, x, 1);
      unit[r] = round_query(x, a.head_dim, integers);
    }
    for (int d = 0; d < a.head_dim; d += kGroup)
      V::pack_group(integers + d, query + d / kGroup * kBlockRows + r, ptrdiff_t(a.head_dim / kGroup) * kBlockRows);
  }

  // Scores of rows j .. j + A - 1 and B vectors of query rows from lane c on.
  template <int A, int B>
  void scores_of(const char* k, const float* scale, int j, int c, int dim, float* score) {
    I sum[A][B];
    ptrdiff_t n = dim / kGroup;
    multiply<A, B>(query + c, kBlockRows, n * kBlockRows, k + 4 * j * n, n, 1, 0, int(n), sum);
    EDGEQKV_UNROLL
    for (int a = 0; a < A; a++)
      EDGEQKV_UNROLL
      for (int b = 0; b < B; b++)
        V::store(score + (j + a) * kBlockRows + c + b * W,
                 V::mul(V::to_float(sum[a][b]), V::mul(V::load(unit + c + b * W), V::set1(scale[j + a]))));
  }

  template <int A>
  void scores_of_rows(const char* k, const float* scale, int j, int n_vec, int dim, float* score) {
    int c = 0;
    for (; c + 2 <= n_vec; c += 2) scores_of<A, 2>(k, scale, j, c * W, dim, score);
    if (c < n_vec) scores_of<A, 1>(k, scale, j, c * W, dim, score);
  }

  // score[j, lane] = scale[j] * (q[lane] . k[j]) for n cached rows and n_vec vectors of query rows.
  void scores(const int8_t* k, const float* scale, int n, int n_vec, int dim, float* score) {
    const char* groups = V::key_groups(k, n * dim, key);
    int j = 0;
    for (; j + 4 <= n; j += 4) scores_of_rows<4>(groups, scale, j, n_vec, dim, score);
    for (; j < n; j++) scores_of_rows<1>(groups, scale, j, n_vec, dim, score);
  }

  // Weights [n, kBlockRows] to integers, as round_weights does for one query row. False if one of the n_row cannot be.
  bool round_tile(const float* w, int n, int n_row) {
    for (int c = 0; c < n_row; c += W) {
      F largest = V::set1(0), total = V::set1(0);
      for (int j = 0; j < n; j++) {
        F x = V::load(w + j * kBlockRows + c);
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
        for (int i = 0; i < kGroup; i++) x[i] = j + i < n ? V::mul(V::load(w + (j + i) * kBlockRows + c), step) : V::set1(0);
        V::round_group(x, weight + j / kGroup * kBlockRows + c, kBlockKeys / kGroup * kBlockRows);
      }
    }
    return true;
  }

  template <int A, int B>
  void values_of(int r, int d, int n_group, int dim, const float* keep, float* acc) {
    I sum[A][B];
    multiply<A, B>(value + d, dim, 0, reinterpret_cast<const char*>(weight + r), 1, kBlockRows,
                   kBlockKeys / kGroup * kBlockRows, n_group, sum);
    EDGEQKV_UNROLL
    for (int a = 0; a < A; a++) {
      float* to = acc + ptrdiff_t(r + a) * dim + d;
      EDGEQKV_UNROLL
      for (int b = 0; b < B; b++)
        V::store(to + b * W, V::fma(V::set1(weight_unit[r + a]), V::to_float(sum[a][b]),
                                    V::mul(V::load(to + b * W), V::set1(keep[r + a]))));
    }
  }

  template <int A>
  void values_of_rows(int r, int n_group, int dim, const float* keep, float* acc) {
    int d = 0;
    for (; d + 2 * W <= dim; d += 2 * W) values_of<A, 2>(r, d, n_group, dim, keep, acc);
    if (d < dim) values_of<A, 1>(r, d, n_group, dim, keep, acc);
  }

  // acc[r] = keep[r] * acc[r] + sum_j weight[j, r] * v[j], with the weights of round_tile.
  void values(const int8_t* v, int n, int n_row, int dim, const float* keep, float* acc) {
    V::interleave(v, n, dim, value);
    int r = 0, n_group = (n + kGroup - 1) / kGroup;
    for (; r + 4 <= n_row; r += 4) values_of_rows<4>(r, n_group, dim, keep, acc);
    for (; r < n_row; r++) values_of_rows<1>(r, n_group, dim, keep, acc);
  }
};

}  // namespace
}  // namespace edgeqkv
