// Small matrix products over int8 in integers. A 32-bit integer holds a group of four bytes, and there is one operation: to each lane
// of a sum is added the dot product of that lane's group of x with the one group at y.
//   scores of many query rows  lanes are query rows, groups are channels: x the queries, y a key          (integer_tile.h)
//   scores of few query rows   lanes are cached rows, groups are channels: x the keys, y a query          (key_quads.h)
//   values                     lanes are channels, groups are cached rows: x the values, four rows interleaved, y weights
// A 16-bit factor (query, weight) is two digits, each a group of its own: 256 * high + low.
//
// What it asks of V beside vector.h: integers I with zero, set1_integer, load_integers, times_256, sub_integers, to_float, and
//   dot(sum, x, y)                 the operation; signed lanes x by groups y
//   dot_keys(sum, x, y)            the same where x are cached bytes plus kKeyOffset (key_quads.h)
//   kTileKeys, kTileVecs           keys and vectors of channels at once, as many as the registers hold sums of
//   kKeyOffset, key_groups         where a block of keys can be read as groups, all of them plus kKeyOffset
//   split(integers, n, high, low)  the digits of a query
//   round_group(F[4], high, low)   the digits of four weights of each lane, as groups
//   kStep, place(group, row)       bytes that it multiplies at once, 4 or 8, and where it wants a lane's group in x: with 8, its own
//                                  multiply<A, B> takes the place of the operation
//   interleave<B>                  B vectors of channels of cached rows, as groups
#pragma once

#include "vector.h"

namespace edgeqkv {
namespace {

constexpr int kGroup = 4, kBlockGroups = kBlockKeys / kGroup;

// The factors of a product in memory, and how many groups it is from one vector or row, step or digit to the next.
struct Lanes {
  const int32_t* x;
  ptrdiff_t vec, step, digit;
};
struct Groups {
  const void* y;  // needs no alignment
  ptrdiff_t row, step, digit;
};

// sum[a][b] = sum over n groups of x[b] . y[a], for A rows of y and B vectors of x.
template <class V, int A, int B>
void multiply(Lanes x, Groups y, int n, typename V::I (&sum)[A][B]) {
  if constexpr (V::kStep > kGroup) return V::template multiply<A, B>(x, y, n, sum);
  EDGEQKV_UNROLL
  for (int a = 0; a < A; a++) EDGEQKV_UNROLL
  for (int b = 0; b < B; b++) sum[a][b] = V::zero();
  for (int digit = 0; digit < 2; digit++) {
    if (digit > 0) EDGEQKV_UNROLL
    for (int a = 0; a < A; a++) EDGEQKV_UNROLL
    for (int b = 0; b < B; b++) sum[a][b] = V::times_256(sum[a][b]);
    const int32_t* xd = x.x + digit * x.digit;
    const char* yd = static_cast<const char*>(y.y) + kGroup * digit * y.digit;
    for (int i = 0; i < n; i++, xd += x.step, yd += kGroup * y.step) {
      typename V::I lanes[B];
      EDGEQKV_UNROLL
      for (int b = 0; b < B; b++) lanes[b] = V::load_integers(xd + b * x.vec);
      EDGEQKV_UNROLL
      for (int a = 0; a < A; a++) EDGEQKV_UNROLL
      for (int b = 0; b < B; b++) {
        const char* group = yd + kGroup * a * y.row;
        sum[a][b] = V::dot(sum[a][b], lanes[b], group);
      }
    }
  }
}

// A block's softmax weights of some query rows: weight ~ unit[row] * integer. What their states so far are scaled by is keep[row].
struct Weights {
  Groups groups;
  const float *unit, *keep;

  Weights from(int row) const {
    Groups g = groups;
    g.y = static_cast<const char*>(g.y) + kGroup * row * g.row;
    return {g, unit + row, keep + row};
  }
};

// Values, for all query rows of an item.
template <class V>
struct IntegerValues {
  using F = typename V::F;
  using I = typename V::I;
  static constexpr int W = V::W;

  int32_t* value;  // [kTileVecs, kBlockGroups, W]

  explicit IntegerValues(Arena& arena) : value(arena.take<int32_t>(size_t(V::kTileVecs) * kBlockGroups * W)) {}

  // acc[a, 0 .. B * W) = keep[a] * acc[a] + weight[a] . the interleaved values, for A query rows whose states are acc_row apart.
  template <int A, int B>
  void add_rows(Weights weights, int n_group, float* acc, ptrdiff_t acc_row) {
    I sum[A][B];
    multiply<V>({value, kBlockGroups * W, W, 0}, weights.groups, n_group, sum);
    EDGEQKV_UNROLL
    for (int a = 0; a < A; a++) {
      F units = V::set1(weights.unit[a]), factor = V::set1(weights.keep[a]);
      EDGEQKV_UNROLL
      for (int b = 0; b < B; b++) {
        float* to = acc + a * acc_row + b * W;
        V::store(to, V::fma(units, V::to_float(sum[a][b]), V::mul(V::load(to), factor)));
      }
    }
  }

  // B vectors of channels for all query rows: their values are interleaved once.
  template <int B>
  void add_channels(const int8_t* v, ptrdiff_t stride, int n, int n_row, Weights weights, float* acc, ptrdiff_t acc_row) {
    V::template interleave<B>(v, stride, n, value);
    int r = 0, n_group = (n + kGroup - 1) / kGroup;
    for (; r + 4 <= n_row; r += 4) add_rows<4, B>(weights.from(r), n_group, acc + r * acc_row, acc_row);
    for (; r < n_row; r++) add_rows<1, B>(weights.from(r), n_group, acc + r * acc_row, acc_row);
  }

  // acc[r] = keep[r] * acc[r] + sum_j weight[r, j] * v[j] in the channels of one part, over n cached rows from `position` on.
  void add(const Slice<int8_t>& v, const Part& part, int position, int n, int n_row, Weights weights, float* acc) {
    constexpr int B = V::kTileVecs;
    const int8_t* rows = v.row(position);
    int d = part.begin, end = part.begin + part.dim;
    for (; d + B * W <= end; d += B * W) add_channels<B>(rows + d, v.stride, n, n_row, weights, acc + d, v.dim);
    for (; d < end; d += W) add_channels<1>(rows + d, v.stride, n, n_row, weights, acc + d, v.dim);
  }
};

}  // namespace
}  // namespace edgeqkv
