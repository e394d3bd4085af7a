// The path of one vector type: which way to attend, for each dtype of the cache.
#pragma once

#include "append.h"
#include "few_rows.h"
#include "tile.h"

namespace edgeqkv {
namespace {

template <class V, class T>
void attend_typed(const edgeqkv_attention_args& a, const Item& item) {
  constexpr bool kInt8 = sizeof(T) == 1;
  size_t first = size_t(item.kv_head) * size_t(a.capacity), dim = size_t(a.head_dim);
  Rows<T> k = {static_cast<const T*>(a.k_cache) + first * dim, kInt8 ? a.k_scale + first : nullptr}, v = k;
  if (a.v) v = {static_cast<const T*>(a.v_cache) + first * dim, kInt8 ? a.v_scale + first : nullptr};
  for (int r = 0; r < item.n_row; r++) {
    item.max[r] = kNoScore;
    item.sum[r] = 0;
  }
  std::memset(item.acc, 0, size_t(item.n_row) * dim * 4);
  if (item.n_row * 2 <= V::W)
    FewRows<V, T>::attend(a, item, k, v);
  else
    Tiles<V, T>::attend(a, item, k, v);
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

// Both ways to attend, whichever needs more: queries, scores, two widened blocks, and weights as integers.
template <class V>
size_t scratch_floats(int head_dim) {
  size_t dim = size_t(head_dim), tile = aligned(dim * kBlockRows) + 2 * aligned(dim * kBlockKeys);
  return tile + size_t(kBlockKeys + V::kRows) * kBlockRows + kBlockKeys * kBlockRows / 2;
}

}  // namespace
}  // namespace edgeqkv
