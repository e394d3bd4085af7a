// What a work item reads of the cache: the rows of one KV head, and which of their channels are key and value.
#pragma once

#include <cstddef>

#include "path.h"

namespace edgeqkv {
namespace {

// Wider parts are cut, so that products with 16-bit integers add up to 32 bits: 512 * 32512 * 127 < 2^31.
constexpr int kMaxPart = 512;
constexpr int kMaxParts = kMaxRow / kMaxPart + 1;  // one more where the scales change

// Channels [begin, begin + dim) of a slice, with scale[j] for position j; null but for int8.
struct Part {
  int begin, dim;
  const float* scale;
};

template <class T>
struct Slice {
  const T* x;        // its first channel at position 0
  ptrdiff_t stride;  // elements from one position to the next
  int dim, n_part;
  Part part[kMaxParts];

  const T* row(int position) const { return x + position * stride; }
};

template <class T>
struct Cached {
  Slice<T> row, key, value;  // row: of k_cache, whole
  bool one_tensor;           // value is a slice of row
};

// Channels [first, first + dim) of `rows`. Those from channel `split` on have the second of two scales.
template <class T>
Slice<T> slice_of(const T* rows, int stride, int first, int dim, const float* scale, int split, int capacity) {
  Slice<T> s = {rows + first, stride, dim, 0, {}};
  for (int at = first, end; at < first + dim; at = end) {
    end = at < split && split < first + dim ? split : first + dim;
    if (end - at > kMaxPart) end = at + kMaxPart;
    s.part[s.n_part++] = {at - first, end - at, scale && at >= split ? scale + capacity : scale};
  }
  return s;
}

// Scales of k_cache: one or two for each row.
inline int n_scale(const edgeqkv_attention_args& a) { return a.scale_split > 0 ? 2 : 1; }

template <class T>
Cached<T> cached(const edgeqkv_attention_args& a, int kv_head) {
  constexpr bool kInt8 = sizeof(T) == 1;
  size_t first = size_t(kv_head) * size_t(a.capacity);
  const T* rows = static_cast<const T*>(a.k_cache) + first * size_t(a.row_dim);
  const float* scale = kInt8 ? a.k_scale + first * size_t(n_scale(a)) : nullptr;
  int split = a.scale_split > 0 ? a.scale_split : a.row_dim;
  auto of_row = [&](int begin, int dim) { return slice_of(rows, a.row_dim, begin, dim, scale, split, a.capacity); };
  Cached<T> c = {of_row(0, a.row_dim), of_row(0, a.key_dim), {}, !a.v};
  if (!a.v) {
    c.value = of_row(a.value_start, a.value_dim);
  } else {
    const T* values = static_cast<const T*>(a.v_cache) + first * size_t(a.value_dim);
    c.value = slice_of(values, a.value_dim, 0, a.value_dim, kInt8 ? a.v_scale + first : nullptr, a.value_dim, a.capacity);
  }
  return c;
}

}  // namespace
}  // namespace edgeqkv
