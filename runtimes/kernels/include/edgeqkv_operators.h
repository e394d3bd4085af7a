// What the operators of every runtime share: from a node's attributes and tensor shapes to the kernels' arguments. C++17.
//
// CachedAttention's tensors, beside `position` (and ExecuTorch's `count`), which each runtime reads itself:
//   q [T, n_head * key_dim], k [T, n_kv_head * row_dim], v [T, n_kv_head * value_dim] or none
//   k_cache [1, n_kv_head, capacity, row_dim], k_scale [1, n_kv_head, capacity] or with scale_split [1, n_kv_head, 2, capacity]
//   v_cache [1, n_kv_head, capacity, value_dim], v_scale [1, n_kv_head, capacity]   (v_* with v, *_scale with an int8 cache)
//   out [T, n_head * value_dim]
// HeadLinear's: x [T, n_head * n_in], weight [n_head, n_out, n_in], scale [n_head, n_out, n_in / block], out [T, n_head * n_out].
// A runtime that has a batch of 1 before T leaves it out here.
#pragma once

#include <cstddef>
#include <initializer_list>

#include "edgeqkv_attention.h"
#include "edgeqkv_head_linear.h"

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
    const bool fits = !scale                       ? cache.is({1, n_kv, capacity, i < 2 ? row_dim : value_dim})
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

// The same for HeadLinear; n_head is the weight's.
inline const char* set_shape(Shape x, Shape weight, Shape scale, edgeqkv_head_linear_args& args) {
  if (x.n_dim != 2 || weight.n_dim != 3 || scale.n_dim != 3) return "x, weight or scale has a wrong shape";
  const int64_t n_head = weight.dims[0], n_out = weight.dims[1], n_in = weight.dims[2], n_block = scale.dims[2];
  for (int64_t size : {n_head, n_out, n_in, x.dims[0]})
    if (size > INT32_MAX) return "the kernel does not take these shapes";
  if (!x.is({x.dims[0], n_head * n_in})) return "x has a wrong shape";
  if (n_block < 1 || n_in % n_block || !scale.is({n_head, n_out, n_block})) return "scale has a wrong shape";
  args.size = sizeof args;
  args.n_head = int32_t(n_head), args.n_in = int32_t(n_in), args.n_out = int32_t(n_out);
  args.block = int32_t(n_in / n_block);
  args.n_token = int32_t(x.dims[0]);
  return nullptr;
}

}  // namespace edgeqkv
