// Many query rows over int8 in integers: lanes are query rows.
#pragma once

#include "integer.h"

namespace edgeqkv {
namespace {

template <class V>
struct IntegerTile {
  using F = typename V::F;
  using I = typename V::I;
  static constexpr int W = V::W, kVecs = kBlockRows / W;

  int32_t* query;      // of each part [kVecs, 2, dim / kGroup, W]
  int32_t* weight;     // [2, kBlockGroups, kBlockRows]
  int8_t* key;         // [kTileKeys, kMaxPart]
  int32_t* offset;     // [kMaxParts, kBlockRows] what kKeyOffset adds to a score
  float* unit;         // [kMaxParts, kBlockRows]
  float* weight_unit;  // [kBlockRows]
  IntegerValues<V> values;

  IntegerTile(Arena& arena, int key_dim) : values(arena) {
    query = arena.take<int32_t>(size_t(2 * key_dim / kGroup) * kBlockRows);
    weight = arena.take<int32_t>(size_t(2 * kBlockGroups) * kBlockRows);
    key = arena.take<int8_t>(size_t(V::kTileKeys) * kMaxPart);
    offset = arena.take<int32_t>(size_t(kMaxParts) * kBlockRows);
    unit = arena.take<float>(size_t(kMaxParts) * kBlockRows);
    weight_unit = arena.take<float>(kBlockRows);
  }

  // The queries of one part, vectors of rows from row c on.
  Lanes queries(const Part& part, int c) const {
    ptrdiff_t n = part.dim / kGroup;
    const int32_t* of_part = query + ptrdiff_t(2 * part.begin / kGroup) * kBlockRows;
    return {of_part + c / W * 2 * n * W, 2 * n * W, W, n * W};
  }

  void pack_query(const Slice<int8_t>& k, const float* x, int r) {
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
      for (int d = 0; d < part.dim; d += kGroup) {
        int32_t* at = const_cast<int32_t*>(to.x) + V::place(d / kGroup, r % W);
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
    multiply<V>(queries(part, c), keys, part.dim / kGroup, sum);
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
  void scores_of_keys(const Part& part, int p, const int8_t* rows, ptrdiff_t stride, int n_vec, const float* scale,
                      float* score) {
    ptrdiff_t step = stride;
    const int8_t* keys = V::key_groups(rows, A, part.dim, &step, key);
    int c = 0;
    for (; c + 2 <= n_vec; c += 2) scores_of<A, 2>(part, p, {keys, step / kGroup, 1, 0}, c * W, scale, score);
    if (c < n_vec) scores_of<A, 1>(part, p, {keys, step / kGroup, 1, 0}, c * W, scale, score);
  }

  // score[j, lane] = q[lane] . k[j] for n cached rows from `position` on and n_vec vectors of query rows. The block after them, up to
  // position `end`, is fetched meanwhile.
  void scores(const Slice<int8_t>& k, int position, int n, int end, int n_vec, float* score) {
    for (int p = 0; p < k.n_part; p++) {
      const Part& part = k.part[p];
      const int8_t* rows = k.row(position) + part.begin;
      const float* scale = part.scale + position;
      int j = 0;
      for (; j + V::kTileKeys <= n; j += V::kTileKeys) {
        if (p == 0 && position + j + kBlockKeys + V::kTileKeys <= end)
          fetch_rows(k.row(position + j + kBlockKeys), V::kTileKeys * k.stride);
        scores_of_keys<V::kTileKeys>(part, p, rows + j * k.stride, k.stride, n_vec, scale + j, score + j * kBlockRows);
      }
      for (; j < n; j++) scores_of_keys<1>(part, p, rows + j * k.stride, k.stride, n_vec, scale + j, score + j * kBlockRows);
    }
  }

  // Weights [n, kBlockRows] times scale[n] to integers: weight ~ weight_unit * integer, an error of at most half a unit, which is
  // the query row's largest weight / kLargestInteger. False if one of the n_row has a NaN or infinity, or is too small for the
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
        weight_unit[c + i] = usable ? top[i] / kLargestInteger : 0;
        steps[i] = usable ? kLargestInteger / top[i] : 0;
      }
      F step = V::load(steps);
      for (int j = 0; j < (n + V::kStep - 1) / V::kStep * V::kStep; j += kGroup) {
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

  // Those of round_tile.
  Weights weights(const float* keep) const { return {{weight, 1, kBlockRows, kBlockGroups * kBlockRows}, weight_unit, keep}; }
};

}  // namespace
}  // namespace edgeqkv
