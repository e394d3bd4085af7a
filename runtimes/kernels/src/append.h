// Appending: new rows are rounded to the cache's dtype.
#pragma once

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
        largest = V::max(largest, V::abs(y));
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

  static void append_tensor(const edgeqkv_attention_args& a, int kv_head, const float* x, void* cache, float* scales) {
    size_t n = size_t(a.head_dim), row = size_t(kv_head) * size_t(a.capacity) + size_t(a.position);
    for (int t = 0; t < a.n_token; t++, row++)
      write_row(x + (size_t(t) * size_t(a.n_kv_head) + size_t(kv_head)) * n, a.head_dim, static_cast<T*>(cache) + row * n,
                kInt8 ? scales + row : nullptr);
  }

  static void append(const edgeqkv_attention_args& a, int kv_head) {
    append_tensor(a, kv_head, a.k, a.k_cache, a.k_scale);
    if (a.v) append_tensor(a, kv_head, a.v, a.v_cache, a.v_scale);
  }
};

}  // namespace
}  // namespace edgeqkv
