// Few query rows over int8 in integers: lanes are cached rows.
//
// The layout. Four keys by four channels are sixteen bytes, a "quad": four groups (integer.h), one of each key, side by side. So
// four keys and a chunk of 4 W channels are four vectors of W / 4 such parts of 128 bits: part L of vector k has channels
// 16 L + 4 k .. + 3. XNNPACK ("c4") and llama.cpp (Q8_0 repacked 4 x 4) lay out constant weights so; here it is done to each block
// of cached rows as it is read, once for scores and values and for all query rows.
//
// The trick. A quad as it is has a group of channels for each key: what a score multiplies, and lanes are keys. With the 4 x 4
// bytes of each 128 bits transposed (one shuffle) it has a group of keys for each channel: what a value adds up, and lanes are
// channels. Neither needs a sum over lanes.
//
// A value in a tensor of its own shares nothing with the key. It is transposed as it is read, without quads in between.
//
// What it asks of V beside integer.h:
//   quads(rows, stride, y[4])            a chunk of four rows plus kKeyOffset
//   some_quads(rows, stride, n, width, y[4])   the same where only n rows and `width` channels exist: zeros for the others
//   channel_quads(rows, stride, y[4])    keys_to_channels of each of quads'
//   keys_to_channels(y)                  the 4 x 4 bytes of each 128 bits transposed
//   kQueryBytes, pack_chunk(digits, to)  a chunk of one digit of a query, as dot_quads reads it
//   dot_quads(sum, y[4], query)          lane 4 L + i += channels of part L of key i . those of the query
//   fold(I[W / 4])                       lane 4 m + i = sum over L of lanes 4 L + i of sum m: the scores of W keys
//   channels(I[4], F[4])                 of sums over transposed quads: the floats of 4 W channels in their order
//   round_digits(F, high, low)           the digits of W weights; returns the integers
//   store_integers, add_integers, sum_integers
//   kTwoTensorsByRow                     a single query row over two tensors is left to few_rows.h, where that is faster
#pragma once

#include "integer.h"

namespace edgeqkv {
namespace {

template <class V>
struct KeyQuads {
  using F = typename V::F;
  using I = typename V::I;
  static constexpr int W = V::W, kRows = W / 2, kParts = W / 4, kChunk = 4 * W, kMaxBlock = 128;

  // One tensor's rows of a block in quads: [keys / W, n_chunk, kParts, 4, W].
  struct Quads {
    int32_t* x;
    int n_chunk;

    ptrdiff_t step() const { return ptrdiff_t(n_chunk) * W * W; }  // from W keys to the next
    int32_t* at(int j, int chunk) const { return x + j / W * step() + chunk * W * W; }
  };

  // A block of cached rows, and what the query rows make of it.
  struct Block {
    int key, n;
    Quads quads;                   // of the rows of k_cache
    float* weight;                 // [kRows, kMaxBlock], scores at first
    float* scaled;                 // [value parts, kRows, kMaxBlock]: weights times the scales of that part
    float unit[kMaxParts][kRows];  // of the weights of a part as integers, 0: they are not rounded
    float keep[kRows];             // what the state before it is scaled by

    float* scaled_weight(int part, int r) const { return scaled + (part * kRows + r) * kMaxBlock; }
  };

  // Where a pass finds rows: in quads, as they are cached, or as they are cached and it puts them into quads for the next ones.
  enum class From { kQuads, kCache, kCacheToQuads };

  struct alignas(64) Digits {
    int8_t high[kMaxBlock], low[kMaxBlock];
  };

  static int chunks(int dim) { return (dim + kChunk - 1) / kChunk; }

  // As many rows as 8 KB hold: two blocks in quads, and the rows, stay in L1.
  static int block_keys(const edgeqkv_attention_args& a) {
    int n = 8192 / (chunks(a.row_dim) * kChunk) / W * W;
    return n < 2 * W ? 2 * W : n > kMaxBlock ? kMaxBlock : n;
  }

  struct Scratch {
    Block block[2];
    int8_t* query;   // [kRows, chunks of each part, 2 digits, kQueryBytes]
    Digits* digits;  // [2]

    Scratch(Arena& arena, const edgeqkv_attention_args& a) {
      const size_t n = size_t(block_keys(a));
      const int value_parts = cached<int8_t>(a, 0).value.n_part;
      for (Block& b : block) {
        b.quads = {arena.take<int32_t>(n * W * size_t(chunks(a.row_dim))), chunks(a.row_dim)};
        b.weight = arena.take<float>(size_t(kRows) * kMaxBlock);
        b.scaled = arena.take<float>(size_t(value_parts) * kRows * kMaxBlock);
      }
      query = arena.take<int8_t>(size_t(kRows) * query_bytes(a));
      digits = arena.take<Digits>(2);
    }
    static size_t query_bytes(const edgeqkv_attention_args& a) {
      return size_t(chunks(a.key_dim) + kMaxParts) * 2 * V::kQueryBytes;
    }
  };

  // A part of a slice that begins at channel `first` of its tensor: channels of the tensor, and the chunks that they lie in.
  struct Range {
    int begin, end, chunk0, chunk1;

    Range(const Part& part, int first)
        : begin(first + part.begin), end(begin + part.dim), chunk0(begin / kChunk), chunk1((end + kChunk - 1) / kChunk) {}
  };

  const edgeqkv_attention_args& a;
  const Item& item;
  const Cached<int8_t>& cache;
  Scratch s;
  float unit[kRows][kMaxParts];      // of the query's integers
  int32_t offset[kRows][kMaxParts];  // what kKeyOffset adds to a score
  F sum[kRows];                      // item.sum, a part in each lane

  int8_t* query(int r) const { return s.query + size_t(r) * Scratch::query_bytes(a); }

  void pack_query(int r) {
    float x[kMaxRow];
    load_query<V>(a, item, r, x);
    int8_t* to = query(r);
    for (int p = 0; p < cache.key.n_part; p++) {
      const Part& part = cache.key.part[p];
      const Range range(part, 0);
      int16_t integers[kMaxPart];
      unit[r][p] = round_query<V>(x + part.begin, part.dim, integers);
      int32_t total = 0;
      for (int d = 0; d < part.dim; d++) total += integers[d];
      offset[r][p] = V::kKeyOffset * total;
      int8_t digits[2][kMaxPart + 2 * kChunk];
      const int at = part.begin - range.chunk0 * kChunk, n_chunk = range.chunk1 - range.chunk0;
      for (int8_t* digit : digits) std::memset(digit, 0, size_t(n_chunk) * kChunk);  // for the other channels of its chunks
      V::split(integers, part.dim, digits[0] + at, digits[1] + at);
      for (int c = 0; c < n_chunk; c++)
        for (const int8_t* digit : digits) V::pack_chunk(digit + c * kChunk, to), to += V::kQueryBytes;
    }
  }

  // Rows of a block as they are cached: n of them, `width` channels.
  struct Rows {
    const int8_t* x;
    ptrdiff_t stride;
    int n, width;
  };
  static Rows rows_of(const Slice<int8_t>& s, const Block& b) { return {s.row(b.key), s.stride, b.n, s.dim}; }

  // A chunk of rows j .. j + 3 in quads. kWhole: all of its rows and channels are there.
  template <bool kWhole>
  EDGEQKV_INLINE static void quads_of(const Rows& rows, int j, int chunk, I (&y)[4]) {
    const int8_t* from = rows.x + j * rows.stride + chunk * kChunk;
    if constexpr (kWhole)
      V::quads(from, rows.stride, y);
    else
      V::some_quads(from, rows.stride, rows.n - j, rows.width - chunk * kChunk, y);
  }
  static bool whole(const Rows& rows, int j, int chunk) { return j + W <= rows.n && (chunk + 1) * kChunk <= rows.width; }

  EDGEQKV_INLINE static void store(const I (&y)[4], int32_t* to) {
    EDGEQKV_UNROLL
    for (int k = 0; k < 4; k++) V::store_integers(to + k * W, y[k]);
  }
  EDGEQKV_INLINE static void load(const int32_t* from, I (&y)[4]) {
    EDGEQKV_UNROLL
    for (int k = 0; k < 4; k++) y[k] = V::load_integers(from + k * W);
  }

  static void put_all(const Rows& rows, const Quads& to) {
    I y[4];
    for (int j = 0; j < rows.n; j += W)
      for (int c = 0; c < to.n_chunk; c++)
        for (int m = 0; m < kParts; m++) {
          if (whole(rows, j, c))
            quads_of<true>(rows, j + 4 * m, c, y);
          else
            quads_of<false>(rows, j + 4 * m, c, y);
          store(y, to.at(j, c) + m * 4 * W);
        }
  }

  // The chunks of a part of the keys, in quads and as they are cached, and the queries for them.
  struct Keys {
    int chunk0, chunk1;
    Rows rows;
    const int8_t* queries;
    ptrdiff_t query_row;
  };

  // Scores of R query rows and the block's rows j .. j + W - 1, in integers.
  template <int R, From kFrom, bool kWhole>
  EDGEQKV_INLINE static void integer_scores(const Keys& keys, int j, int32_t* quads, I (&score)[R]) {
    const int8_t* queries = keys.queries;
    I high[R][kParts], low[R][kParts];
    EDGEQKV_UNROLL
    for (int i = 0; i < R; i++) EDGEQKV_UNROLL
    for (int m = 0; m < kParts; m++) high[i][m] = low[i][m] = V::zero();
    for (int c = keys.chunk0; c < keys.chunk1; c++, quads += W * W, queries += 2 * V::kQueryBytes) EDGEQKV_UNROLL
    for (int m = 0; m < kParts; m++) {
      I y[4];
      if constexpr (kFrom == From::kQuads)
        load(quads + m * 4 * W, y);
      else
        quads_of<kWhole>(keys.rows, j + 4 * m, c, y);
      if constexpr (kFrom == From::kCacheToQuads) store(y, quads + m * 4 * W);
      EDGEQKV_UNROLL
      for (int i = 0; i < R; i++) {
        high[i][m] = V::dot_quads(high[i][m], y, queries + i * keys.query_row);
        low[i][m] = V::dot_quads(low[i][m], y, queries + i * keys.query_row + V::kQueryBytes);
      }
    }
    EDGEQKV_UNROLL
    for (int i = 0; i < R; i++) {
      EDGEQKV_UNROLL
      for (int m = 0; m < kParts; m++) high[i][m] = V::add_integers(V::times_256(high[i][m]), low[i][m]);
      score[i] = V::fold(high[i]);
    }
  }

  // Scores of R query rows from row r on, then their weights.
  template <int R, From kFrom>
  EDGEQKV_NOINLINE void scores(Block& b, int r, int ahead, int fetch) {
    const ptrdiff_t query_row = ptrdiff_t(Scratch::query_bytes(a));
    const int n = b.n;
    F top[R];
    for (F& x : top) x = V::set1(kNoScore);
    const int8_t* queries = query(r);
    for (int p = 0; p < cache.key.n_part; p++) {
      const Part& part = cache.key.part[p];
      const Range range(part, 0);
      const Keys keys = {range.chunk0, range.chunk1, rows_of(cache.row, b), queries, query_row};
      const float* scale = part.scale + b.key;
      const int8_t* coming = cache.row.row(b.key + ahead);
      const ptrdiff_t step = b.quads.step();
      const bool whole = range.end == range.chunk1 * kChunk;
      int32_t* quads = b.quads.at(0, range.chunk0);
      float* to = b.weight + r * kMaxBlock;
      F units[R];
      I offsets[R];
      EDGEQKV_UNROLL
      for (int i = 0; i < R; i++) {
        top[i] = V::set1(item.max[r + i]);
        units[i] = V::set1(unit[r + i][p]), offsets[i] = V::set1_integer(offset[r + i][p]);
      }
      for (int j = 0; j < n; j += W, quads += step) {
        I score[R];
        // Of one row over two tensors the hardware fetches both in time by itself.
        if (R > 1 && kFrom != From::kQuads && a.v) fetch_rows(cache.value.row(b.key + j), W * cache.value.stride);
        if (kFrom != From::kQuads && j < fetch) fetch_rows(coming + j * keys.rows.stride, W * keys.rows.stride);
        if (kFrom == From::kQuads || (whole && j + W <= n))
          integer_scores<R, kFrom, true>(keys, j, quads, score);
        else
          integer_scores<R, kFrom, false>(keys, j, quads, score);
        EDGEQKV_UNROLL
        for (int i = 0; i < R; i++) {
          float* at = to + i * kMaxBlock + j;
          F x = scaled<V>(V::mul(V::to_float(V::sub_integers(score[i], offsets[i])), units[i]), scale, j, n);
          if (p > 0) x = V::add(V::load(at), x);
          V::store(at, x);
          top[i] = V::max(x, top[i]);
        }
      }
      queries += ptrdiff_t(range.chunk1 - range.chunk0) * 2 * V::kQueryBytes;
    }
    for (int i = 0; i < R; i++) softmax(b, r + i, top[i]);
  }

  int visible(int r, const Block& b) const {
    const int before = seen(a, item, r) - b.key;
    return before < 0 ? 0 : before < b.n ? before : b.n;
  }

  // Scores of one query row become weights, in place.
  void softmax(Block& b, int r, F top) {
    float* score = b.weight + r * kMaxBlock;
    const int sees = visible(r, b);
    if (sees < b.n || b.n % W) {
      for (int j = sees; j < b.n || j % W; j++) score[j] = -__builtin_inff();
      top = V::set1(item.max[r]);
      for (int j = 0; j < b.n; j += W) top = V::max(V::load(score + j), top);
    }
    const float new_max = max_lanes<V>(top);
    b.keep[r] = 1;
    if (new_max > item.max[r]) {
      b.keep[r] = exp2_one<V>(item.max[r] - new_max);
      sum[r] = V::mul(sum[r], V::set1(b.keep[r]));
      item.max[r] = new_max;
    }
    const F subtract = V::set1(item.max[r]);
    F total = V::set1(0);
    for (int j = 0; j < b.n; j += W) {
      F x = exp2<V>(V::sub(V::load(score + j), subtract));
      total = V::add(total, x);
      V::store(score + j, x);
    }
    sum[r] = V::add(sum[r], total);
    for (int p = 0; p < cache.value.n_part; p++) scale_weights(b, r, p);
  }

  void scale_weights(Block& b, int r, int p) const {
    const float *weight = b.weight + r * kMaxBlock, *scale = cache.value.part[p].scale + b.key;
    float* to = b.scaled_weight(p, r);
    F largest = V::set1(0), total = V::set1(0);
    for (int j = 0; j < b.n; j += W) {
      F x = scaled<V>(V::load(weight + j), scale, j, b.n);
      largest = V::max(x, largest);
      total = V::add(total, x);
      V::store(to + j, x);
    }
    const float top = max_lanes<V>(largest);
    const float all = sum_lanes<V>(total);
    if (all == 0)
      b.unit[p][r] = 1;  // nothing but zeros, as in a cache that was not filled
    else
      b.unit[p][r] = top > 1e-30f && all < 1e30f ? top / kLargestInteger : 0;
  }

  // A part's weights of one query row as digits. Returns their sum as integers.
  int32_t round(const Block& b, int r, int p, Digits& to) const {
    const float* weight = b.scaled_weight(p, r);
    const bool usable = b.unit[p][r] != 0;
    const F steps = V::set1(usable ? 1 / b.unit[p][r] : 0);
    I total = V::zero();
    for (int j = 0; j < b.n; j += W) {
      const F x = usable ? V::mul(V::load(weight + j), steps) : V::set1(0);
      total = V::add_integers(total, V::round_digits(x, to.high + j, to.low + j));
    }
    return V::sum_integers(total);
  }

  // Sums over a chunk's values, of each digit of R query rows.
  template <int R>
  struct Sums {
    I high[R][4], low[R][4];
  };

  // Adds the products of rows j .. j + W - 1, whose quads, if they are there, are at `quads`.
  template <int R, From kFrom, bool kWhole>
  EDGEQKV_INLINE void add_products(const int32_t* quads, const Rows& rows, int j, int chunk, Sums<R>& sums) const {
    EDGEQKV_UNROLL
    for (int m = 0; m < kParts; m++) {
      I y[4];
      if constexpr (kFrom == From::kCache && kWhole)
        V::channel_quads(rows.x + (j + 4 * m) * rows.stride + chunk * kChunk, rows.stride, y);
      else if constexpr (kFrom == From::kCache)
        quads_of<false>(rows, j + 4 * m, chunk, y);
      EDGEQKV_UNROLL
      for (int k = 0; k < 4; k++) {
        I x;
        if constexpr (kFrom == From::kQuads)
          x = V::keys_to_channels(V::load_integers(quads + m * 4 * W + k * W));
        else
          x = kWhole ? y[k] : V::keys_to_channels(y[k]);
        EDGEQKV_UNROLL
        for (int i = 0; i < R; i++) {
          sums.high[i][k] = V::dot_keys(sums.high[i][k], x, reinterpret_cast<const char*>(s.digits[i].high + j + 4 * m));
          sums.low[i][k] = V::dot_keys(sums.low[i][k], x, reinterpret_cast<const char*>(s.digits[i].low + j + 4 * m));
        }
      }
    }
  }

  // acc = keep acc + the values of one part, for R query rows from row r on.
  template <int R, From kFrom>
  EDGEQKV_NOINLINE void values(const Block& b, int r, int p) const {
    const Part& part = cache.value.part[p];
    const int first = a.v ? 0 : a.value_start;
    const Range range(part, first);
    const Rows rows = rows_of(cache.value, b);
    I added[R];
    EDGEQKV_UNROLL
    for (int i = 0; i < R; i++) added[i] = V::set1_integer(V::kKeyOffset * round(b, r + i, p, s.digits[i]));
    for (int c = range.chunk0; c < range.chunk1; c++) {
      Sums<R> sums;
      EDGEQKV_UNROLL
      for (int i = 0; i < R; i++) EDGEQKV_UNROLL
      for (int k = 0; k < 4; k++) sums.high[i][k] = sums.low[i][k] = V::zero();
      const int32_t* quads = b.quads.at(0, c);
      for (int j = 0; j < b.n; j += W, quads += b.quads.step()) {
        if (kFrom == From::kQuads || whole(rows, j, c))
          add_products<R, kFrom, true>(quads, rows, j, c, sums);
        else
          add_products<R, kFrom, false>(quads, rows, j, c, sums);
      }
      EDGEQKV_UNROLL
      for (int i = 0; i < R; i++) {
        I sum[4];
        F x[4];
        EDGEQKV_UNROLL
        for (int k = 0; k < 4; k++)
          sum[k] = V::sub_integers(V::add_integers(V::times_256(sums.high[i][k]), sums.low[i][k]), added[i]);
        V::channels(sum, x);
        const F units = V::set1(b.unit[p][r + i]), factor = V::set1(b.keep[r + i]);
        for (int v = 0; v < 4; v++) {
          const int d = c * kChunk + v * W;
          if (d < range.begin || d >= range.end) continue;
          float* to = item.acc + ptrdiff_t(r + i) * a.value_dim + d - first;
          V::store(to, V::fma(units, x[v], V::mul(V::load(to), factor)));
        }
      }
    }
    for (int i = 0; i < R; i++)
      if (b.unit[p][r + i] == 0) float_values(b, r + i, p);
  }

  // A hidden row has weight 0, which is exact in integers; a NaN of its scale is left to the floats.
  void float_values(const Block& b, int r, int p) const {
    const Part& part = cache.value.part[p];
    float* acc = item.acc + ptrdiff_t(r) * a.value_dim + part.begin;
    for (int j = 0; j < visible(r, b); j++) {
      const F w = V::set1(b.scaled_weight(p, r)[j]);
      const int8_t* row = cache.value.row(b.key + j) + part.begin;
      for (int d = 0; d < part.dim; d += W) V::store(acc + d, V::fma(w, V::load(row + d), V::load(acc + d)));
    }
  }

  void all_scores(Block& b, int ahead, int fetch) {
    const bool put_on_the_way = cache.key.n_part == 1 && chunks(a.key_dim) == b.quads.n_chunk;
    if (!put_on_the_way) put_all(rows_of(cache.row, b), b.quads);
    int r = 0;
    if (put_on_the_way) {
      if (a.v && item.n_row == 1) return scores<1, From::kCache>(b, 0, 0, 0);
      if (a.v && item.n_row == 2) return scores<2, From::kCache>(b, 0, ahead, fetch);
      if (item.n_row > 1)
        scores<2, From::kCacheToQuads>(b, 0, ahead, fetch), r = 2;
      else
        scores<1, From::kCacheToQuads>(b, 0, ahead, fetch), r = 1;
    }
    for (; r + 2 <= item.n_row; r += 2) scores<2, From::kQuads>(b, r, 0, 0);
    if (r < item.n_row) scores<1, From::kQuads>(b, r, 0, 0);
  }

  template <From kFrom>
  void all_values(const Block& b) const {
    for (int p = 0; p < cache.value.n_part; p++) {
      int r = 0;
      for (; r + 2 <= item.n_row; r += 2) values<2, kFrom>(b, r, p);
      if (r < item.n_row) values<1, kFrom>(b, r, p);
    }
  }
  void all_values(const Block& b) const { a.v ? all_values<From::kCache>(b) : all_values<From::kQuads>(b); }

  static void attend(const edgeqkv_attention_args& a, const Item& item, const Cached<int8_t>& cache) {
    Arena arena(item.scratch);
    KeyQuads t = {a, item, cache, Scratch(arena, a), {}, {}, {}};
    for (int r = 0; r < item.n_row; r++) t.pack_query(r), t.sum[r] = V::set1(0);
    // A block's weights are a chain of dependent instructions: the values of the block before come between them and its own.
    Block *now = &t.s.block[0], *before = nullptr;
    const int block = block_keys(a);
    for (int key = item.key0; key < item.key1; key += block) {
      const int left = item.key1 - key;
      now->key = key, now->n = left < block ? left : block;
      t.all_scores(*now, block, left - block < block ? left - block : block);
      if (before) t.all_values(*before);
      before = now, now = now == &t.s.block[0] ? &t.s.block[1] : &t.s.block[0];
    }
    if (before) t.all_values(*before);
    for (int r = 0; r < item.n_row; r++) item.sum[r] = sum_lanes<V>(t.sum[r]);
  }
};

}  // namespace
}  // namespace edgeqkv
