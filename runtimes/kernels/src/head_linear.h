// One matrix for each head: its rows are cached rows to the dot products of attention, and a token's x is their query.
#pragma once

#include <type_traits>

#include "edgeqkv_head_linear.h"
#include "integer_tile.h"

namespace edgeqkv {
namespace {

template <class V>
struct HeadLinear {
  using F = typename V::F;
  static constexpr int W = V::W;
  static constexpr int kTokens = 16;  // one at a time, the weights of W outputs stay in L1 for so many
  // Rows of up to so many bytes the hardware fetches in time by itself; of longer ones a block is fetched ahead. Measured on Zen 4.
  static constexpr int kShortRow = 256;

  struct None {
    None(Arena&, int) {}
  };
  using Tile = std::conditional_t<V::kIntegerTile, IntegerTile<V>, None>;

  struct Scratch {
    int8_t* padded;  // [W, n_in]
    size_t token_floats;
    float* x;      // [kTokens, token_floats]: each part's unit, then its integers as V lays them out
    float* score;  // [kBlockKeys, kBlockRows]
    Tile tile;

    Scratch(Arena& arena, const edgeqkv_head_linear_args& a)
        : padded(arena.take<int8_t>(size_t(W) * size_t(a.n_in))),
          token_floats(packed_query_floats(a.n_in)),
          x(arena.take<float>(kTokens * token_floats)),
          score(V::kIntegerTile ? arena.take<float>(size_t(kBlockKeys) * kBlockRows) : nullptr),
          tile(arena, a.n_in) {}
  };

  static const float* x_of(const edgeqkv_head_linear_args& a, int token, int head) {
    return a.x + (size_t(token) * size_t(a.n_head) + size_t(head)) * size_t(a.n_in);
  }
  static float* y_of(const edgeqkv_head_linear_args& a, int token, int head) {
    return a.y + (size_t(token) * size_t(a.n_head) + size_t(head)) * size_t(a.y_stride);
  }

  // Outputs [begin, end) of one head, for all tokens.
  static void run(const edgeqkv_head_linear_args& a, int head, int begin, int end, float* scratch) {
    Arena arena(scratch);
    Scratch s(arena, a);
    const size_t first = size_t(head) * size_t(a.n_out);
    const int8_t* rows = a.weight + first * size_t(a.n_in);
    const Slice<int8_t> weight = slice_of(rows, a.n_in, 0, a.n_in, a.scale + first, a.n_in, 0);
    if constexpr (V::kIntegerTile)
      if (a.n_token * 2 > W) return many_tokens(a, weight, head, begin, end, s);
    few_tokens(a, weight, head, begin, end, s);
  }

  static void few_tokens(const edgeqkv_head_linear_args& a, const Slice<int8_t>& weight, int head, int begin, int end,
                         Scratch& s) {
    const bool fetch = a.n_in > kShortRow;
    for (int t0 = 0; t0 < a.n_token; t0 += kTokens) {
      const int tokens = a.n_token - t0 < kTokens ? a.n_token - t0 : kTokens;
      for (int t = 0; t < tokens; t++) pack_query<V>(weight, x_of(a, t0 + t, head), s.x + size_t(t) * s.token_floats);
      for (int o = begin; o < end; o += W) {
        const int n = end - o < W ? end - o : W;
        const int8_t* rows = whole_rows<W>(weight.row(o), weight.stride, n, s.padded);
        if (fetch && t0 == 0 && o + W < end) fetch_rows(weight.row(o + W), (end - o - W < W ? end - o - W : W) * weight.stride);
        for (int t = 0; t < tokens; t++) {
          F y = packed_scores<V>(weight, s.x + size_t(t) * s.token_floats, rows, o, 0, n);
          float* to = y_of(a, t0 + t, head) + o;
          if (n == W) {
            V::store(to, y);
          } else {
            float lanes[W];
            V::store(lanes, y);
            std::memcpy(to, lanes, sizeof(float) * size_t(n));
          }
        }
      }
    }
  }

  static void many_tokens(const edgeqkv_head_linear_args& a, const Slice<int8_t>& weight, int head, int begin, int end,
                          Scratch& s) {
    for (int t0 = 0; t0 < a.n_token; t0 += kBlockRows) {
      const int tokens = a.n_token - t0 < kBlockRows ? a.n_token - t0 : kBlockRows, n_vec = (tokens + W - 1) / W;
      for (int t = 0; t < n_vec * W; t++) s.tile.pack_query(weight, x_of(a, t0 + (t < tokens ? t : 0), head), t);
      for (int o = begin; o < end; o += kBlockKeys) {
        const int n = end - o < kBlockKeys ? end - o : kBlockKeys;
        s.tile.scores(weight, o, n, end, n_vec, s.score);
        for (int t = 0; t < tokens; t++) {
          float* to = y_of(a, t0 + t, head) + o;
          for (int j = 0; j < n; j++) to[j] = s.score[j * kBlockRows + t];
        }
      }
    }
  }
};

}  // namespace
}  // namespace edgeqkv
