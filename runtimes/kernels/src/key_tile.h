// Several query rows, but fewer than half a vector, over int8 in integers: lanes are cached rows. A block is read once for all query
// rows, its keys are transposed into lanes, and no score needs a sum across lanes.
//
// What it asks of V beside integer.h: transpose_keys(rows, stride, n, dim, to), which writes groups [dim / kGroup, W] of W cached
// rows plus kKeyOffset, of which n are there.
#pragma once

#include "integer.h"

namespace edgeqkv {
namespace {

template <class V>
struct KeyTile {
  using F = typename V::F;
  using I = typename V::I;
  using PackedWeights = typename V::PackedWeights;
  static constexpr int W = V::W, kRows = W / 2, kVecs = kBlockKeys / W;

  struct Scratch {
    IntegerValues<V> values;
    int32_t* key;          // [kVecs, dim / kGroup, W] of one part
    int8_t* query;         // [kRows, key_dim / part, 2, dim of the part]
    float* score;          // [kRows, kBlockKeys], then the softmax weights
    PackedWeights* weight;  // [kRows] of one part

    Scratch(Arena& arena, const edgeqkv_attention_args& a)
        : values(arena),
          key(arena.take<int32_t>(size_t(kBlockKeys) * kMaxPart / kGroup)),
          query(arena.take<int8_t>(size_t(kRows) * 2 * size_t(a.key_dim))),
          score(arena.take<float>(size_t(kRows) * kBlockKeys)),
          weight(arena.take<PackedWeights>(kRows)) {}
  };

  Scratch s;
  float unit[kMaxParts][kRows];
  int32_t offset[kMaxParts][kRows];  // what kKeyOffset adds to a score

  void pack_query(const Slice<int8_t>& k, const float* x, int r) {
    for (int p = 0; p < k.n_part; p++) {
      const Part& part = k.part[p];
      int16_t integers[kMaxPart];
      unit[p][r] = round_query<V>(x + part.begin, part.dim, integers);
      int32_t total = 0;
      for (int d = 0; d < part.dim; d++) total += integers[d];
      offset[p][r] = V::kKeyOffset * total;
      int8_t* digits = s.query + ptrdiff_t(r) * 2 * k.dim + 2 * part.begin;
      V::split(integers, part.dim, digits, digits + part.dim);
    }
  }

  // Scores of A query rows from row r on and B vectors of cached rows from the block's j-th on, added to those of the parts before.
  template <int A, int B>
  void scores_of(const Slice<int8_t>& k, int p, int key, int n, int r, int j) {
    const Part& part = k.part[p];
    const ptrdiff_t groups = part.dim / kGroup;
    const int8_t* query = s.query + ptrdiff_t(r) * 2 * k.dim + 2 * part.begin;
    I sum[A][B];
    multiply<V, KeysAre::kLanes>({s.key + j / W * groups * W, groups * W, W, 0}, {query, 2 * k.dim / kGroup, 1, groups}, int(groups), sum);
    EDGEQKV_UNROLL
    for (int a = 0; a < A; a++)
      EDGEQKV_UNROLL
      for (int b = 0; b < B; b++) {
        float* to = s.score + (r + a) * kBlockKeys + j + b * W;
        F x = V::mul(V::to_float(V::sub_integers(sum[a][b], V::set1_integer(offset[p][r + a]))), V::set1(unit[p][r + a]));
        x = scaled<V>(x, part.scale + key, j + b * W, n);
        V::store(to, p == 0 ? x : V::add(V::load(to), x));
      }
  }

  template <int A>
  void scores_of_rows(const Slice<int8_t>& k, int p, int key, int n, int r) {
    int j = 0;
    for (; j + W < n; j += 2 * W) scores_of<A, 2>(k, p, key, n, r, j);
    if (j < n) scores_of<A, 1>(k, p, key, n, r, j);
  }

  // Scores of all query rows and n cached rows from position `key` on; the block after them, up to `end`, is fetched meanwhile.
  EDGEQKV_NOINLINE void scores(const Slice<int8_t>& k, int key, int n, int end, int n_row) {
    for (int p = 0; p < k.n_part; p++) {
      const Part& part = k.part[p];
      for (int j = 0; j < n; j += W) {
        if (p == 0 && key + j + kBlockKeys + W <= end) fetch_rows(k.row(key + j + kBlockKeys), W * k.stride);
        V::transpose_keys(k.row(key + j) + part.begin, k.stride, n - j, part.dim, s.key + ptrdiff_t(j) * part.dim / kGroup);
      }
      int r = 0;
      for (; r + 4 <= n_row; r += 4) scores_of_rows<4>(k, p, key, n, r);
      for (; r < n_row; r++) scores_of_rows<1>(k, p, key, n, r);
    }
  }

  // Scores of one query row become weights, in place. Returns what its state so far is scaled by. Of n rows it sees `visible`.
  static float softmax(float* score, int n, int visible, float* max, float* sum) {
    F top = V::set1(*max), total = V::set1(0);
    const int padded = (n + W - 1) / W * W;
    for (int j = visible; j < padded; j++) score[j] = -__builtin_inff();
    for (int j = 0; j < n; j += W) top = V::max(V::load(score + j), top);
    const float new_max = max_lanes<V>(top);
    for (int j = 0; j < n; j += W) {
      F p = exp2<V>(V::sub(V::load(score + j), V::set1(new_max)));
      total = V::add(total, p);
      V::store(score + j, p);
    }
    const float keep = exp2_one<V>(*max - new_max);
    *sum = *sum * keep + sum_lanes<V>(total);
    *max = new_max;
    return keep;
  }

  // How many of the n cached rows from position `key` on query row r sees.
  static int visible(const edgeqkv_attention_args& a, const Item& item, int r, int key, int n) {
    const int before = seen(a, item, r) - key;
    return before < 0 ? 0 : before < n ? before : n;
  }

  static void attend(const edgeqkv_attention_args& a, const Item& item, const Cached<int8_t>& cache) {
    Arena arena(item.scratch);
    KeyTile t = {Scratch(arena, a), {}, {}};
    for (int r = 0; r < item.n_row; r++) {
      float x[kMaxRow];
      load_query<V>(a, item, r, x);
      t.pack_query(cache.key, x, r);
    }
    for (int key = item.key0; key < item.key1; key += kBlockKeys) {
      const int n = item.key1 - key < kBlockKeys ? item.key1 - key : kBlockKeys;
      float keep[kRows];
      t.scores(cache.key, key, n, item.key1, item.n_row);
      for (int r = 0; r < item.n_row; r++)
        keep[r] = softmax(t.s.score + r * kBlockKeys, n, visible(a, item, r, key, n), item.max + r, item.sum + r);
      for (int p = 0; p < cache.value.n_part; p++) t.values(a, item, cache.value, p, key, n, keep);
    }
  }

  // One part of the values. A hidden row has weight 0, which is exact in integers; a NaN of its scale is left to the floats.
  EDGEQKV_NOINLINE void values(const edgeqkv_attention_args& a, const Item& item, const Slice<int8_t>& v, int p, int key, int n,
                               const float* keep) {
    const Part& part = v.part[p];
    float weight_unit[kRows], weight[kBlockKeys];
    for (int r = 0; r < item.n_row; r++) {
      for (int j = 0; j < n; j += W) V::store(weight + j, scaled<V>(V::load(s.score + r * kBlockKeys + j), part.scale + key, j, n));
      V::pack_weights(weight, n, s.weight[r]);
      weight_unit[r] = s.weight[r].unit;
    }
    constexpr ptrdiff_t kRowStep = sizeof(PackedWeights) / kGroup, kDigitStep = sizeof s.weight->high / kGroup;
    s.values.add(v, part, key, n, item.n_row, {{s.weight->high, kRowStep, 1, kDigitStep}, weight_unit, keep}, item.acc);
    for (int r = 0; r < item.n_row; r++) {
      if (weight_unit[r] != 0) continue;  // else its integers are zeros
      for (int j = 0; j < visible(a, item, r, key, n); j++) {
        const float w = s.score[r * kBlockKeys + j] * part.scale[key + j];
        const int8_t* row = v.row(key + j) + part.begin;
        float* acc = item.acc + ptrdiff_t(r) * a.value_dim + part.begin;
        for (int d = 0; d < part.dim; d += W) V::store(acc + d, V::fma(V::set1(w), V::load(row + d), V::load(acc + d)));
      }
    }
  }
};

}  // namespace
}  // namespace edgeqkv
