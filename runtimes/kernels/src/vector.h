// What the algorithm asks of a vector type V, which each instruction set's source file defines, and what all of it shares.
//
// V holds V::W floats and offers: load(const float* | const uint16_t* fp16 | const int8_t*) -> F, store, store_fp16, set1,
// add, sub, mul, div, fma(a, b, c) = a * b + c, max, abs, round (half to even), pow2 (2^n of an integral n >= -127, with
// 2^-127 taken as 0), sums(F[W]) -> F whose lane i is the sum of its i-th argument, and the block shapes kRows, kAccRows,
// kAccVecs that fit its registers. max(a, b) is b when a is NaN, and not asked for when b is; at_least(x, low) is the larger one,
// and NaN when x is. V also has the sums over int8 rows in integers:
//   store_words(int16_t*, F)                rounds to 16-bit integers
//   pack(integers, dim, packed)             lays out a query of 16-bit integers
//   dot_rows(packed, k, stride, dim) -> F   lane i = query . k[i] for W rows
//   PackedWeights, pack_weights, add_values acc[d] += sum_j weight[j] * v[j, d], weights of 16 bits unless unit is 0
//                                           (only with kTwoTensorsByRow)
//   kIntegerTile, kKeyQuads                 whether it has what integer.h and key_quads.h ask for
//   kTwoTensorsByRow                        whether few_rows.h takes a single query row over int8 in two tensors
//   kFloatProduct                           Path::float_product
//
// Everything is in an unnamed namespace and uses no inline library function: each source file is compiled with its own
// flags, and a function shared between them would be linked in one version, perhaps not one that the CPU can run.
#pragma once

#include <cstring>

#include "arena.h"
#include "path.h"
#include "rows.h"

// Before a loop over an array of registers: left as a loop, the array would live in memory.
#if defined(__clang__)
#define EDGEQKV_UNROLL _Pragma("unroll")
#else
#define EDGEQKV_UNROLL _Pragma("GCC unroll 32")
#endif

// Keeps two loops over registers in functions of their own: in one, GCC 12 spilled the sums of both (25 % slower, measured).
#define EDGEQKV_NOINLINE __attribute__((noinline))
#define EDGEQKV_INLINE inline __attribute__((always_inline))

namespace edgeqkv {
namespace {

using fp16 = uint16_t;

constexpr int kBlockKeys = 64;  // cached rows of one block: they stay in L1 between the score and the value

// 2^x for x <= 0. Polynomial of Cephes' exp2f on [-0.5, 0.5], relative error below 2e-7; below 2^-126.5 it is 0.
template <class V>
typename V::F exp2(typename V::F x) {
  x = V::at_least(x, V::set1(-127.0f));
  typename V::F n = V::round(x), f = V::sub(x, n);
  typename V::F p = V::set1(1.535336188319500e-4f);
  p = V::fma(p, f, V::set1(1.339887440266574e-3f));
  p = V::fma(p, f, V::set1(9.618437357674640e-3f));
  p = V::fma(p, f, V::set1(5.550332471162809e-2f));
  p = V::fma(p, f, V::set1(2.402264791363012e-1f));
  p = V::fma(p, f, V::set1(6.931472028550421e-1f));
  p = V::fma(p, f, V::set1(1.0f));
  return V::mul(p, V::pow2(n));
}

template <class V>
float exp2_one(float x) {
  float lanes[V::W];
  V::store(lanes, exp2<V>(V::set1(x)));
  return lanes[0];
}

// Pairwise, so that the latencies are log W additions and not W.
template <class V>
float sum_lanes(typename V::F x) {
  constexpr int W = V::W;
  float lanes[W];
  V::store(lanes, x);
  EDGEQKV_UNROLL
  for (int half = W / 2; half > 0; half /= 2)
    for (int i = 0; i < half; i++) lanes[i] += lanes[i + half];
  return lanes[0];
}

template <class V>
float max_lanes(typename V::F x) {
  constexpr int W = V::W;
  float lanes[W];
  V::store(lanes, x);
  EDGEQKV_UNROLL
  for (int half = W / 2; half > 0; half /= 2)
    for (int i = 0; i < half; i++) lanes[i] = lanes[i] > lanes[i + half] ? lanes[i] : lanes[i + half];
  return lanes[0];
}

// score[j ..] * scale[j ..] for a vector of which the first n - j lanes count.
template <class V>
typename V::F scaled(typename V::F x, const float* scale, int j, int n) {
  constexpr int W = V::W;
  if (j + W <= n) return V::mul(x, V::load(scale + j));
  float lanes[W] = {};
  std::memcpy(lanes, scale + j, sizeof(float) * size_t(n - j));
  return V::mul(x, V::load(lanes));
}

// Positions that query row r of the item sees.
int seen(const edgeqkv_attention_args& a, const Item& item, int r) {
  return a.position + (item.row0 + r) / (a.n_head / a.n_kv_head) + 1;
}

// Query row r of the item, times the score scale and log2(e); zeros for a row that it does not have.
template <class V>
void load_query(const edgeqkv_attention_args& a, const Item& item, int r, float* x) {
  int group = a.n_head / a.n_kv_head, row = item.row0 + r, head = item.kv_head * group + row % group;
  const float* q = a.q + (size_t(row / group) * size_t(a.n_head) + size_t(head)) * size_t(a.key_dim);
  typename V::F factor = V::set1(a.scale * 1.44269504f);
  for (int d = 0; d < a.key_dim; d += V::W) V::store(x + d, r < item.n_row ? V::mul(V::load(q + d), factor) : V::set1(0));
}

// Asks for rows that come later, into L2: in L1 they would push out what is at work there.
template <class T>
void fetch_rows(const T* rows, ptrdiff_t n_element) {
  const char* p = reinterpret_cast<const char*>(rows);
  for (ptrdiff_t i = 0; i < n_element * ptrdiff_t(sizeof(T)); i += 64) __builtin_prefetch(p + i, 0, 2);
}

// The largest of 16-bit integers that stand for floats. As two bytes, 256 * high + low, it fits -127 .. 127 twice.
constexpr int kLargestInteger = 127 * 256;

// x ~ unit * integers with |integers| <= kLargestInteger: an error below max|x| / 65024 each, a 256th of the error that int8
// carries. Returns the unit. With a NaN or an infinity in x the unit is NaN and the integers are zeros.
template <class V>
float round_query(const float* x, int dim, int16_t* integers) {
  using F = typename V::F;
  F largest = V::set1(0), poison = V::set1(0), zero = V::set1(0), low = V::set1(-kLargestInteger);
  for (int d = 0; d < dim; d += V::W) {
    F y = V::load(x + d);
    largest = V::max(V::abs(y), largest);
    poison = V::add(poison, V::sub(y, y));  // 0 while all is finite, then NaN
  }
  float unit = max_lanes<V>(largest) / kLargestInteger + sum_lanes<V>(poison);
  for (int d = 0; d < dim; d += V::W) {
    F y = unit > 0 ? V::div(V::load(x + d), V::set1(unit)) : zero;
    y = V::max(y, low);
    V::store_words(integers + d, V::sub(zero, V::max(V::sub(zero, y), low)));  // a denormal unit is a coarse one
  }
  return unit;
}

// Floats of V's layout of a packed query: [0] its unit, [16 ..] the integers, which take no more than its floats did.
constexpr size_t packed_floats(int dim) { return 16 + (size_t(dim) + 15) / 16 * 16; }

// The same with a unit, and what is left of a vector, for each part.
constexpr size_t packed_query_floats(int dim) { return packed_floats(dim) + 32 * kMaxParts; }

// The parts of a query one after the other: the unit, then from float 16 on V's layout of the integers. A part with NaN or infinity
// gets a NaN unit and zeros.
template <class V>
void pack_query(const Slice<int8_t>& k, const float* x, float* packed) {
  for (int p = 0; p < k.n_part; p++) {
    int16_t integers[kMaxPart];
    packed[0] = round_query<V>(x + k.part[p].begin, k.part[p].dim, integers);
    V::pack(integers, k.part[p].dim, packed + 16);
    packed += packed_floats(k.part[p].dim);
  }
}

// lane i = query . k[i] for the W `rows` that begin with position key + j; of n from `key` on the others do not count.
template <class V>
typename V::F packed_scores(const Slice<int8_t>& k, const float* query, const int8_t* rows, int key, int j, int n) {
  typename V::F sum = V::set1(0);
  for (int p = 0; p < k.n_part; p++) {
    const Part& part = k.part[p];
    typename V::F x = V::mul(V::set1(query[0]), V::dot_rows(query + 16, rows + part.begin, k.stride, part.dim));
    x = scaled<V>(x, part.scale + key, j, n);
    sum = p == 0 ? x : V::add(sum, x);
    query += packed_floats(part.dim);
  }
  return sum;
}

// W rows from `rows` on: in place, or where only n are left, copied to `padded` with zeros after them.
template <int W, class T>
const T* whole_rows(const T* rows, ptrdiff_t stride, int n, T* padded) {
  if (n >= W) return rows;
  std::memset(static_cast<void*>(padded), 0, sizeof(T) * size_t(W) * size_t(stride));
  std::memcpy(static_cast<void*>(padded), rows, sizeof(T) * size_t(n) * size_t(stride));
  return padded;
}

// The softmax weights of a block as integers: weight ~ unit * word, an error of at most max weight / 65024 each. unit 0: not
// rounded, for they have a NaN or infinity or are too small for the division.
struct WordWeights {
  float unit;
  alignas(32) int16_t word[kBlockKeys];  // zeros from n on, up to a whole vector
};

// weight[n ..] are zeros up to a whole vector.
template <class V>
void round_weights(const float* weight, int n, WordWeights& rounded) {
  typename V::F largest = V::set1(0), total = V::set1(0);
  for (int j = 0; j < n; j += V::W) {
    largest = V::max(V::load(weight + j), largest);
    total = V::add(total, V::load(weight + j));
  }
  float top = max_lanes<V>(largest), sum = sum_lanes<V>(total);
  rounded.unit = top > 1e-30f && sum < 1e30f ? top / kLargestInteger : 0;
  if (rounded.unit == 0) return;
  typename V::F steps = V::set1(kLargestInteger / top);
  for (int j = 0; j < n; j += V::W) V::store_words(rounded.word + j, V::mul(V::load(weight + j), steps));
}

}  // namespace
}  // namespace edgeqkv
