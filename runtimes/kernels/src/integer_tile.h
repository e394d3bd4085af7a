// Many query rows over int8 in integers. A 32-bit integer holds a group of four bytes, and there is one operation:
// V::dot(sum, x, y) adds to each lane of `sum` the dot product of that lane's group of x with the one group at y.
//   scores  lanes are query rows, groups are channels: x the queries, y a key
//   values  lanes are channels, groups are cached rows: x the values, four rows interleaved, y a query row's weights
// A 16-bit factor (query, weight) is two digits, each a group of its own: 256 * high + low.
//
// What it asks of V beside vector.h: integers I with zero, load_integers, dot, times_256, sub_integers, to_float, and
//   kTileKeys, kTileVecs           keys and vectors of channels at once, as many as the registers hold sums of
//   kLargestWeight                 of a weight's digits
//   kKeyOffset, key_groups         where a block of keys can be read as groups, all of them plus kKeyOffset
//   split(integers, n, high, low)  the digits of a query
//   round_group(F[4], high, low)   the digits of four weights of each lane, as groups
//   interleave<B>                  B vectors of channels of cached rows, as groups
#pragma once

#include "vector.h"

namespace edgeqkv {
namespace {

constexpr int kGroup = 4, kBlockGroups = kBlockKeys / kGroup;

template <class V>
struct IntegerTile {
  using F = typename V::F;
  using I = typename V::I;
  static constexpr int W = V::W, kVecs = kBlockRows / W;

  int32_t* query;     // of each part [kVecs, 2, dim / kGroup, W]
  int32_t* weight;    // [2, kBlockGroups, kBlockRows]
  int32_t* value;     // [kTileVecs, kBlockGroups, W]
  int8_t* key;        // [kTileKeys, kMaxPart]
  int32_t* offset;    // [kMaxParts, kBlockRows] what kKeyOffset adds to a score
  float* unit;        // [kMaxParts, kBlockRows]
  float* weight_unit; // [kBlockRows]

  IntegerTile(Arena& arena, const edgeqkv_attention_args& a) {
    query = arena.take<int32_t>(size_t(2 * a.key_dim / kGroup) * kBlockRows);
    weight = arena.take<int32_t>(size_t(2 * kBlockGroups) * kBlockRows);
    value = arena.take<int32_t>(size_t(V::kTileVecs) * kBlockGroups * W);
    key = arena.take<int8_t>(size_t(V::kTileKeys) * kMaxPart);
    offset = arena.take<int32_t>(size_t(kMaxParts) * kBlockRows);
    unit = arena.take<float>(size_t(kMaxParts) * kBlockRows);
    weight_unit = arena.take<float>(kBlockRows);
  }

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
  template <int A, int B>
  static void multiply(Lanes x, Groups y, int n, I (&sum)[A][B]) {
    EDGEQKV_UNROLL
    for (int a = 0; a < A; a++)
      EDGEQKV_UNROLL
      for (int b = 0; b < B; b++) sum[a][b] = V::zero();
    for (int digit = 0; digit < 2; digit++) {
      if (digit > 0)
        EDGEQKV_UNROLL
        for (int a = 0; a < A; a++)
          EDGEQKV_UNROLL
          for (int b = 0; b < B; b++) sum[a][b] = V::times_256(sum[a][b]);
      const int32_t* xd = x.x + digit * x.digit;
      const char* yd = static_cast<const char*>(y.y) + kGroup * digit * y.digit;
      for (int i = 0; i < n; i++, xd += x.step, yd += kGroup * y.step) {
        I lanes[B];
        EDGEQKV_UNROLL
        for (int b = 0; b < B; b++) lanes[b] = V::load_integers(xd + b * x.vec);
        EDGEQKV_UNROLL
        for (int a = 0; a < A; a++)
          EDGEQKV_UNROLL
          for (int b = 0; b < B; b++) sum[a][b] = V::dot(sum[a][b], lanes[b], yd + kGroup * a * y.row);
      }
    }
  }

  // The queries of one part, vectors of rows from row c on.
  Lanes queries(const Part& part, int c) const {
    ptrdiff_t n = part.dim / kGroup;
    const int32_t* of_part = query + ptrdiff_t(2 * part.begin / kGroup) * kBlockRows;
    return {of_part + c / W * 2 * n * W, 2 * n * W, W, n * W};
  }

  void load_query(const edgeqkv_attention_args& a, const Item& item, const Slice<int8_t>& k, int r) {
    float x[kMaxRow] = {};
    if (r < item.n_row) edgeqkv::load_query(a, item, r, x, 1);
    for (int p = 0; p < k.n_part; p++) {
      const Part& part = k.part[p];
      int16_t integers[kMaxPart];
      int8_t high[kMaxPart], low[kMaxPart];
      unit[p * kBlockRows + r] = round_query<V>(x + part.begin, part.dim, integers);
      int32_t total = 0;
      for (int d = 0; d < part.dim; d++) total += integers[d];
      offset[p * kBlockRows + r] = V::kKeyOffset * total;
      V::split(integers, part.dim, high, low);
      Lanes to = queries(part, r);
      int32_t* at = const_cast<int32_t*>(to.x) + r % W;
      for (int d = 0; d < part.dim; d += kGroup, at += to.step) {
        std::memcpy(at, high + d, kGroup);
        std::memcpy(at + to.digit, low + d, kGroup);
      }
    }
  }

  // Scores of A keys, the first of them the block's j-th, and B vectors of query rows from row c on, added to those of the parts
  // before.
  template <int A, int B>
  void scores_of(const Part& part, int p, Groups keys, int c, const float* scale, float* score) {
    I sum[A][B];
    multiply<A, B>(queries(part, c), keys, part.dim / kGroup, sum);
    EDGEQKV_UNROLL
    for (int b = 0; b < B; b++) {
      const int at = p * kBlockRows + c + b * W;
      I added = V::load_integers(offset + at);
      F units = V::load(unit + at);
      EDGEQKV_UNROLL
      for (int a = 0; a < A; a++) {
        float* to = score + a * kBlockRows + c + b * W;
        F x = V::mul(V::to_float(V::sub_integers(sum[a][b], added)), V::mul(units, V::set1(scale[a])));
        V::store(to, p == 0 ? x : V::add(V::load(to), x));
      }
    }
  }

  template <int A>
  void scores_of_keys(const Part& part, int p, const int8_t* rows, ptrdiff_t stride, int n_vec, const float* scale, float* score) {
    ptrdiff_t step = stride;
    const int8_t* keys = V::key_groups(rows, A, part.dim, &step, key);
    int c = 0;
    for (; c + 2 <= n_vec; c += 2) scores_of<A, 2>(part, p, {keys, step / kGroup, 1, 0}, c * W, scale, score);
    if (c < n_vec) scores_of<A, 1>(part, p, {keys, step / kGroup, 1, 0}, c * W, scale, score);
  }

  // score[j, lane] = q[lane] . k[j] for n cached rows from `position` on and n_vec vectors of query rows.
  void scores(const Slice<int8_t>& k, int position, int n, int n_vec, float* score) {
    for (int p = 0; p < k.n_part; p++) {
      const Part& part = k.part[p];
      const int8_t* rows = k.row(position) + part.begin;
      const float* scale = part.scale + position;
      int j = 0;
      for (; j + V::kTileKeys <= n; j += V::kTileKeys)
        scores_of_keys<V::kTileKeys>(part, p, rows + j * k.stride, k.stride, n_vec, scale + j, score + j * kBlockRows);
      for (; j < n; j++) scores_of_keys<1>(part, p, rows + j * k.stride, k.stride, n_vec, scale + j, score + j * kBlockRows);
    }
  }

  // Weights [n, kBlockRows] times scale[n] to integers: weight ~ weight_unit * integer, an error of at most half a unit, which is
  // the query row's largest weight / kLargestWeight. False if one of the n_row has a NaN or infinity, or is too small for the
  // division; a row of zeros, which sees nothing here, has unit 0.
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
        if (!usable && sum[i] != 0 && c + i < n_row) return false;
        weight_unit[c + i] = usable ? top[i] / V::kLargestWeight : 0;
        steps[i] = usable ? V::kLargestWeight / top[i] : 0;
      }
      F step = V::load(steps);
      for (int j = 0; j < n; j += kGroup) {
        F x[kGroup];
        EDGEQKV_UNROLL
        for (int i = 0; i < kGroup; i++)
          x[i] = j + i < n ? V::mul(V::load(w + (j + i) * kBlockRows + c), V::mul(V::set1(scale[j + i]), step)) : V::set1(0);
        int32_t* to = weight + j / kGroup * kBlockRows + c;
        V::round_group(x, to, to + kBlockGroups * kBlockRows);
      }
    }
    return true;
  }

  // acc[a, 0 .. B * W) = keep[a] * acc[a] + weight[a] . the interleaved values, for A query rows from row r on.
  template <int A, int B>
  void values_of(int r, int n_group, const float* keep, float* acc, ptrdiff_t acc_row) {
    I sum[A][B];
    multiply<A, B>({value, kBlockGroups * W, W, 0}, {weight + r, 1, kBlockRows, kBlockGroups * kBlockRows}, n_group, sum);
    EDGEQKV_UNROLL
    for (int a = 0; a < A; a++) {
      F units = V::set1(weight_unit[r + a]), factor = V::set1(keep[r + a]);
      EDGEQKV_UNROLL
      for (int b = 0; b < B; b++) {
        float* to = acc + a * acc_row + b * W;
        V::store(to, V::fma(units, V::to_float(sum[a][b]), V::mul(V::load(to), factor)));
      }
    }
  }

  // B vectors of channels for all query rows: their values are interleaved once.
  template <int B>
  void values_of_channels(const int8_t* v, ptrdiff_t stride, int n, int n_row, const float* keep, float* acc, ptrdiff_t acc_row) {
    V::template interleave<B>(v, stride, n, value);
    int r = 0, n_group = (n + kGroup - 1) / kGroup;
    for (; r + 4 <= n_row; r += 4) values_of<4, B>(r, n_group, keep, acc + r * acc_row, acc_row);
    for (; r < n_row; r++) values_of<1, B>(r, n_group, keep, acc + r * acc_row, acc_row);
  }

  // acc[r] = keep[r] * acc[r] + sum_j weight[j, r] * v[j] in the channels of one part, with the weights of round_tile.
  void values(const Slice<int8_t>& v, const Part& part, int position, int n, int n_row, const float* keep, float* acc) {
    constexpr int B = V::kTileVecs;
    const int8_t* rows = v.row(position);
    int d = part.begin, end = part.begin + part.dim;
    for (; d + B * W <= end; d += B * W) values_of_channels<B>(rows + d, v.stride, n, n_row, keep, acc + d, v.dim);
    for (; d < end; d += W) values_of_channels<1>(rows + d, v.stride, n, n_row, keep, acc + d, v.dim);
  }
};

}  // namespace
}  // namespace edgeqkv
