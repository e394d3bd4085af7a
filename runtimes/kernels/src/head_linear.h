// One matrix for each head: its rows are keys to the dot products of few_rows.h, and a token's x is their query.
#pragma once

#include "edgeqkv_head_linear.h"
#include "vector.h"

namespace edgeqkv {
namespace {

template <class V>
struct HeadLinear {
  using F = typename V::F;
  static constexpr int W = V::W;
  static constexpr int kTokens = 16;  // the weights of W outputs stay in L1 for so many

  struct Scratch {
    int8_t* padded;      // [W, n_in]
    float* x;            // [kTokens, token_floats]: each part's unit, then its integers as V lays them out
    size_t part_floats;  // of one part

    Scratch(Arena& arena, const edgeqkv_head_linear_args& a) {
      padded = arena.take<int8_t>(size_t(W) * size_t(a.n_in));
      part_floats = packed_floats(part_of(a));
      x = arena.take<float>(kTokens * token_floats(a));
    }
    size_t token_floats(const edgeqkv_head_linear_args& a) const {
      return part_floats * size_t(a.n_in / a.block) * size_t((a.block + kMaxPart - 1) / kMaxPart);
    }
  };

  static int part_of(const edgeqkv_head_linear_args& a) { return a.block < kMaxPart ? a.block : kMaxPart; }

  // Calls body(first input, inputs, index of the scale, index of the part) for each part of a block.
  template <class Body>
  static void for_parts(const edgeqkv_head_linear_args& a, Body body) {
    int index = 0;
    for (int b = 0; b < a.n_in / a.block; b++)
      for (int i = 0; i < a.block; i += kMaxPart) body(b * a.block + i, a.block - i < kMaxPart ? a.block - i : kMaxPart, b, index++);
  }

  // lane i = x . row i of the W that begin with output o; `n` of them are outputs.
  static F outputs(const edgeqkv_head_linear_args& a, const Scratch& s, const float* x, const int8_t* rows, const float* scale, int n) {
    int n_scale = a.n_in / a.block;
    F sum = V::set1(0);
    for_parts(a, [&](int first, int dim, int b, int part) {
      const float* packed = x + size_t(part) * s.part_floats;
      float scales[W] = {};
      for (int i = 0; i < n; i++) scales[i] = scale[ptrdiff_t(i) * n_scale + b];
      F y = V::mul(V::set1(packed[0]), V::dot_rows(packed + 16, rows + first, a.n_in, dim));
      sum = V::fma(y, V::load(scales), sum);
    });
    return sum;
  }

  // Outputs [begin, end) of one head, for all tokens.
  static void run(const edgeqkv_head_linear_args& a, int head, int begin, int end, float* scratch) {
    Arena arena(scratch);
    Scratch s(arena, a);
    const size_t token_floats = s.token_floats(a), n_scale = size_t(a.n_in / a.block);
    for (int t0 = 0; t0 < a.n_token; t0 += kTokens) {
      const int tokens = a.n_token - t0 < kTokens ? a.n_token - t0 : kTokens;
      for (int t = 0; t < tokens; t++) {
        const float* x = a.x + (size_t(t0 + t) * size_t(a.n_head) + size_t(head)) * size_t(a.n_in);
        for_parts(a, [&](int first, int dim, int, int part) {
          int16_t integers[kMaxPart];
          float* packed = s.x + size_t(t) * token_floats + size_t(part) * s.part_floats;
          packed[0] = round_query<V>(x + first, dim, integers);
          V::pack(integers, dim, packed + 16);
        });
      }
      for (int o = begin; o < end; o += W) {
        const int n = end - o < W ? end - o : W;
        const size_t row = size_t(head) * size_t(a.n_out) + size_t(o);
        const int8_t* rows = whole_rows<W>(a.weight + row * size_t(a.n_in), a.n_in, n, s.padded);
        for (int t = 0; t < tokens; t++) {
          F y = outputs(a, s, s.x + size_t(t) * token_floats, rows, a.scale + row * n_scale, n);
          float* to = a.y + (size_t(t0 + t) * size_t(a.n_head) + size_t(head)) * size_t(a.n_out) + o;
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
};

}  // namespace
}  // namespace edgeqkv
