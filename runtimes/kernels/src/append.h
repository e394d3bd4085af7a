// Appending: new rows are rounded to the cache's dtype.
#pragma once

#include "rows.h"
#include "vector.h"

namespace edgeqkv {
namespace {

template <class V, class T>
struct Append {
  using F = typename V::F;
  static constexpr int W = V::W;
  static constexpr bool kInt8 = sizeof(T) == 1;

  static void write_row(const float* x, int n, T* stored, float* scale) {
    if constexpr (sizeof(T) == 4) {
      std::memcpy(stored, x, size_t(n) * 4);
    } else if constexpr (sizeof(T) == 2) {
      for (int d = 0; d < n; d += W) V::store_fp16(stored + d, V::load(x + d));
    } else {
      F largest = V::set1(0), poison = V::set1(0);
      for (int d = 0; d < n; d += W) {
        F y = V::load(x + d);
        largest = V::max(V::abs(y), largest);
        poison = V::add(poison, V::sub(y, y));  // 0 while all is finite, then NaN
      }
      float lanes[W];
      *scale = max_lanes<V>(largest) / 127 + sum_lanes<V>(poison);
      F divisor = V::set1(*scale);
      bool usable = *scale > 0;
      for (int d = 0; d < n; d += W) {
        V::store(lanes, V::round(V::div(V::load(x + d), divisor)));
        for (int i = 0; i < W; i++) {
          float y = usable ? lanes[i] : 0.0f;
          stored[d + i] = T(y > 127 ? 127 : y < -127 ? -127 : y);
        }
      }
    }
  }

  // Channels [first, end) of rows of n channels, which have one scale each.
  static void append_slice(const edgeqkv_attention_args& a, int kv_head, const float* x, int n, int first, int end, void* cache,
                           float* scales) {
    size_t row = size_t(kv_head) * size_t(a.capacity) + size_t(a.position);
    for (int t = 0; t < a.n_token; t++, row++)
      write_row(x + (size_t(t) * size_t(a.n_kv_head) + size_t(kv_head)) * size_t(n) + first, end - first,
                static_cast<T*>(cache) + row * size_t(n) + first, kInt8 ? scales + a.position + t : nullptr);
  }

  static void append(const edgeqkv_attention_args& a, int kv_head) {
    size_t scales = size_t(kv_head) * size_t(a.capacity);
    float* k_scale = kInt8 ? a.k_scale + scales * size_t(n_scale(a)) : nullptr;
    int split = a.scale_split > 0 ? a.scale_split : a.row_dim;
    append_slice(a, kv_head, a.k, a.row_dim, 0, split, a.k_cache, k_scale);
    if (split < a.row_dim)
      append_slice(a, kv_head, a.k, a.row_dim, split, a.row_dim, a.k_cache, kInt8 ? k_scale + a.capacity : nullptr);
    if (a.v) append_slice(a, kv_head, a.v, a.value_dim, 0, a.value_dim, a.v_cache, kInt8 ? a.v_scale + scales : nullptr);
  }
};

}  // namespace
}  // namespace edgeqkv
