// The path of one vector type: which way to attend, for each dtype of the cache.
#pragma once

#include "append.h"
#include "few_rows.h"
#include "head_linear.h"
#include "key_quads.h"
#include "tile.h"

namespace edgeqkv {
namespace {

// Which ways few query rows take: quads of keys, or one row at a time, or each in its case.
template <class V, class T>
struct FewQueries {
  static constexpr bool kQuads = sizeof(T) == 1 && V::kKeyQuads;
  static constexpr bool kRows = !kQuads || V::kTwoTensorsByRow;

  static void attend(const edgeqkv_attention_args& a, const Item& item, const Cached<T>& cache) {
    if constexpr (kQuads)
      if (!kRows || !a.v || item.n_row > 1) return KeyQuads<V>::attend(a, item, cache);
    if constexpr (kRows) FewRows<V, T>::attend(a, item, cache);
  }
};

template <class V, class T>
void attend_typed(const edgeqkv_attention_args& a, const Item& item) {
  for (int r = 0; r < item.n_row; r++) {
    item.max[r] = kNoScore;
    item.sum[r] = 0;
  }
  std::memset(item.acc, 0, size_t(item.n_row) * size_t(a.value_dim) * 4);
  Cached<T> cache = cached<T>(a, item.kv_head);
  if (item.n_row * 2 <= V::W)
    FewQueries<V, T>::attend(a, item, cache);
  else
    Tiles<V, T>::attend(a, item, cache);
}

template <class V>
void append(const edgeqkv_attention_args& a, int kv_head) {
  if (a.dtype == EDGEQKV_FP32) return Append<V, float>::append(a, kv_head);
  if (a.dtype == EDGEQKV_FP16) return Append<V, fp16>::append(a, kv_head);
  Append<V, int8_t>::append(a, kv_head);
}

template <class V>
void attend(const edgeqkv_attention_args& a, const Item& item) {
  if (a.dtype == EDGEQKV_FP32) return attend_typed<V, float>(a, item);
  if (a.dtype == EDGEQKV_FP16) return attend_typed<V, fp16>(a, item);
  attend_typed<V, int8_t>(a, item);
}

template <class Way>
size_t scratch_of(const edgeqkv_attention_args& a, size_t least) {
  Arena arena(nullptr);
  typename Way::Scratch scratch(arena, a);
  return arena.n_float() > least ? arena.n_float() : least;
}

// Whichever way needs most.
template <class V, class T>
size_t scratch_typed(const edgeqkv_attention_args& a) {
  size_t n = scratch_of<Tiles<V, T>>(a, 0);
  if constexpr (FewQueries<V, T>::kQuads) n = scratch_of<KeyQuads<V>>(a, n);
  if constexpr (FewQueries<V, T>::kRows) n = scratch_of<FewRows<V, T>>(a, n);
  return n;
}

template <class V>
size_t scratch_floats(const edgeqkv_attention_args& a) {
  if (a.dtype == EDGEQKV_FP32) return scratch_typed<V, float>(a);
  if (a.dtype == EDGEQKV_FP16) return scratch_typed<V, fp16>(a);
  return scratch_typed<V, int8_t>(a);
}

template <class V>
size_t head_linear_floats(const edgeqkv_head_linear_args& a) {
  Arena arena(nullptr);
  typename HeadLinear<V>::Scratch scratch(arena, a);
  return arena.n_float();
}

template <class V>
constexpr Path path_over() {
  return {append<V>, attend<V>, scratch_floats<V>, HeadLinear<V>::run, head_linear_floats<V>, V::kFloatProduct};
}

}  // namespace
}  // namespace edgeqkv
