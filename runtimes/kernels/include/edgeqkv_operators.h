// What the operators of every runtime share: from a node's attributes and tensor shapes to the kernels' arguments. C++17.
//
// CachedAttention's tensors, beside `position` (and ExecuTorch's `count`), which each runtime reads itself:
//   q [T, n_head * key_dim], k [T, n_kv_head * row_dim], v [T, n_kv_head * value_dim] or none
//   k_cache [1, n_kv_head, capacity, row_dim], k_scale [1, n_kv_head, capacity] or with scale_split [1, n_kv_head, 2, capacity]
//   v_cache [1, n_kv_head, capacity, value_dim], v_scale [1, n_kv_head, capacity]   (v_* with v, *_scale with an int8 cache)
//   out [T, n_head * value_dim]
// HeadLinear's: x [T, n_head * n_in], weight [n_head, n_out, n_in], scale [n_head, n_out, 1], out [T, n_head * n_out].
// LatentAttention's: q_nope [T, n_head * nope_dim], q_rope [T, n_head * rope_dim], row [T, latent_dim + rope_dim],
//   w_k [n_head, latent_dim, nope_dim], w_k_scale [n_head, latent_dim, 1], w_v [n_head, value_dim, latent_dim], w_v_scale
//   [n_head, value_dim, 1], cache [1, 1, capacity, latent_dim + rope_dim], cache_scale [1, 1, capacity] or with scale_split
//   [1, 1, 2, capacity], out [T, n_head * value_dim]
// A runtime that has a batch of 1 before T leaves it out here.
#pragma once

#include <cstddef>
#include <initializer_list>

#include "edgeqkv_attention.h"
#include "edgeqkv_head_linear.h"
#include "edgeqkv_latent_attention.h"

namespace edgeqkv {

struct Shape {
  const int64_t* dims = nullptr;  // null: the tensor is not there
  size_t n_dim = 0;

  bool is(std::initializer_list<int64_t> wanted) const {
    if (!dims || n_dim != wanted.size()) return false;
    const int64_t* dim = dims;
    for (int64_t size : wanted)
      if (*dim++ != size) return false;
    return true;
  }
};

// 0 where the node does not say: key_dim and value_dim are then the width of their row, scale 1 / sqrt(key_dim).
struct CachedAttentionAttributes {
  int64_t n_head, n_kv_head, key_dim, value_start, value_dim, scale_split;
  float softmax_scale;
};

struct CachedAttentionShapes {
  Shape q, k, v;
  Shape caches[4];  // k_cache, k_scale, v_cache, v_scale
};

// Sets the numbers of `args` but `position`. Returns null, or why these shapes are refused. What it accepts the kernel may still
// refuse: it checks multiples and limits.
inline const char* set_shape(const CachedAttentionAttributes& node, const CachedAttentionShapes& shapes, int32_t dtype,
                             edgeqkv_attention_args& args) {
  constexpr const char* kRefused = "the kernel does not take these shapes";
  const Shape &q = shapes.q, &k_cache = shapes.caches[0];
  if (q.n_dim != 2 || k_cache.n_dim != 4) return "q or k_cache has a wrong shape";
  const bool scaled = dtype == EDGEQKV_INT8, with_v = shapes.v.dims != nullptr;
  const int64_t n_token = q.dims[0], n_kv = node.n_kv_head, capacity = k_cache.dims[2], row_dim = k_cache.dims[3];
  const int64_t v_dim = with_v && shapes.v.n_dim == 2 && n_kv > 0 ? shapes.v.dims[1] / n_kv : row_dim;
  const int64_t key_dim = node.key_dim != 0 ? node.key_dim : row_dim;
  const int64_t value_dim = node.value_dim != 0 ? node.value_dim : v_dim;
  for (int64_t x : {node.n_head, n_kv, n_token, capacity, row_dim, key_dim, node.value_start, value_dim, node.scale_split})
    if (x < 0 || x > INT32_MAX) return kRefused;
  if (!q.is({n_token, node.n_head * key_dim})) return "q or k_cache has a wrong shape";
  if (!shapes.k.is({n_token, n_kv * row_dim}) || (with_v && !shapes.v.is({n_token, n_kv * value_dim})))
    return "k or v has a wrong shape";
  for (int i = 0; i < 4; i++) {
    const Shape& cache = shapes.caches[i];
    const bool scale = i % 2, wanted = (!scale || scaled) && (i < 2 || with_v);
    if (wanted != (cache.dims != nullptr)) return "the caches do not fit the dtype and v";
    if (!wanted) continue;
    const bool fits = !scale                      ? cache.is({1, n_kv, capacity, i < 2 ? row_dim : value_dim})
                      : i < 2 && node.scale_split ? cache.is({1, n_kv, 2, capacity})
                                                  : cache.is({1, n_kv, capacity});
    if (!fits) return "a cache has a wrong shape";
  }
  args.size = sizeof args;
  args.n_head = int32_t(node.n_head), args.n_kv_head = int32_t(n_kv);
  args.row_dim = int32_t(row_dim), args.key_dim = int32_t(key_dim);
  args.value_start = int32_t(node.value_start), args.value_dim = int32_t(value_dim);
  args.scale_split = int32_t(node.scale_split);
  args.capacity = int32_t(capacity), args.n_token = int32_t(n_token);
  args.dtype = dtype;
  args.scale = node.softmax_scale;
  return nullptr;
}

// Null but where they are there: cache_scale with int8.
struct LatentAttentionShapes {
  Shape q_nope, q_rope, row, w_k, w_k_scale, w_v, w_v_scale, cache, cache_scale;
};

// The same for LatentAttention; widths are those of the matrices.
inline const char* set_shape(int64_t scale_split, const LatentAttentionShapes& shapes, int32_t dtype,
                             edgeqkv_latent_attention_args& args) {
  const Shape &w_k = shapes.w_k, &w_v = shapes.w_v, &cache = shapes.cache;
  if (shapes.q_nope.n_dim != 2 || shapes.q_rope.n_dim != 2 || w_k.n_dim != 3 || w_v.n_dim != 3 || cache.n_dim != 4)
    return "q_nope, q_rope, w_k, w_v or cache has a wrong shape";
  const int64_t n_token = shapes.q_nope.dims[0], n_head = w_k.dims[0], latent = w_k.dims[1], nope = w_k.dims[2],
                value = w_v.dims[1];
  const int64_t capacity = cache.dims[2], row_dim = cache.dims[3], rope = row_dim - latent;
  for (int64_t size : {n_token, n_head, latent, nope, value, capacity, rope, scale_split})
    if (size < 0 || size > INT32_MAX) return "the kernel does not take these shapes";
  if (!shapes.q_nope.is({n_token, n_head * nope}) || !shapes.q_rope.is({n_token, n_head * rope}) ||
      !shapes.row.is({n_token, row_dim}))
    return "q_nope, q_rope or row has a wrong shape";
  if (!w_v.is({n_head, value, latent}) || !shapes.w_k_scale.is({n_head, latent, 1}) || !shapes.w_v_scale.is({n_head, value, 1}))
    return "w_v, w_k_scale or w_v_scale has a wrong shape";
  if (!cache.is({1, 1, capacity, row_dim})) return "cache has a wrong shape";
  if ((shapes.cache_scale.dims != nullptr) != (dtype == EDGEQKV_INT8)) return "the cache does not fit the dtype";
  const bool scales = scale_split ? shapes.cache_scale.is({1, 1, 2, capacity}) : shapes.cache_scale.is({1, 1, capacity});
  if (dtype == EDGEQKV_INT8 && !scales) return "cache_scale has a wrong shape";
  args.size = sizeof args;
  args.n_head = int32_t(n_head), args.n_token = int32_t(n_token), args.capacity = int32_t(capacity);
  args.nope_dim = int32_t(nope), args.rope_dim = int32_t(rope), args.latent_dim = int32_t(latent),
  args.value_dim = int32_t(value);
  args.scale_split = int32_t(scale_split);
  args.dtype = dtype;
  return nullptr;
}

// The same for HeadLinear; n_head is the weight's.
inline const char* set_shape(Shape x, Shape weight, Shape scale, edgeqkv_head_linear_args& args) {
  if (x.n_dim != 2 || weight.n_dim != 3 || scale.n_dim != 3) return "x, weight or scale has a wrong shape";
  const int64_t n_head = weight.dims[0], n_out = weight.dims[1], n_in = weight.dims[2];
  for (int64_t size : {n_head, n_out, n_in, x.dims[0]})
    if (size > INT32_MAX) return "the kernel does not take these shapes";
  if (!x.is({x.dims[0], n_head * n_in})) return "x has a wrong shape";
  if (!scale.is({n_head, n_out, 1})) return "scale has a wrong shape";
  args.size = sizeof args;
  args.n_head = int32_t(n_head), args.n_in = int32_t(n_in), args.n_out = int32_t(n_out);
  args.n_token = int32_t(x.dims[0]);
  return nullptr;
}

}  // namespace edgeqkv
