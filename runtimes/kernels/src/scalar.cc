// The readable reference: plain loops, no vectors, no blocking. It runs wherever C++ does.
#include <cmath>

#include "fp16.h"
#include "path.h"

namespace edgeqkv {
namespace {

// One tensor of the cache: rows [n_kv_head, capacity, dim], with scales [n_kv_head, 1 or 2, capacity] if it is int8.
struct Tensor {
  void* cache;
  float* scales;
  int dtype, capacity, dim, split;  // channels from `split` on have the second scale

  size_t index(int kv_head, int position, int d) const {
    return (size_t(kv_head) * size_t(capacity) + size_t(position)) * size_t(dim) + size_t(d);
  }
  float& scale(int kv_head, int position, int d) const {
    size_t n_scale = split < dim ? 2 : 1;
    return scales[(size_t(kv_head) * n_scale + (d >= split)) * size_t(capacity) + size_t(position)];
  }
  float read(int kv_head, int position, int d) const {
    size_t i = index(kv_head, position, d);
    if (dtype == EDGEQKV_INT8) return scale(kv_head, position, d) * static_cast<const int8_t*>(cache)[i];
    if (dtype == EDGEQKV_FP16) return from_fp16(static_cast<const uint16_t*>(cache)[i]);
    return static_cast<const float*>(cache)[i];
  }
};

Tensor keys(const edgeqkv_attention_args& a) {
  return {a.k_cache, a.k_scale, a.dtype, a.capacity, a.row_dim, a.scale_split > 0 ? a.scale_split : a.row_dim};
}

Tensor values(const edgeqkv_attention_args& a) {
  return a.v ? Tensor{a.v_cache, a.v_scale, a.dtype, a.capacity, a.value_dim, a.value_dim} : keys(a);
}

void quantise(const float* x, int n, int8_t* stored, float* scale) {
  float largest = 0, poison = 0;
  for (int d = 0; d < n; d++) {
    largest = std::fmax(largest, std::fabs(x[d]));
    poison += x[d] - x[d];  // 0 while all is finite, then NaN
  }
  *scale = largest / 127 + poison;
  for (int d = 0; d < n; d++) {
    float y = *scale > 0 ? std::nearbyint(x[d] / *scale) : 0.0f;
    stored[d] = int8_t(y > 127 ? 127 : y < -127 ? -127 : y);
  }
}

void write_row(const Tensor& t, int kv_head, int position, const float* x) {
  size_t i = t.index(kv_head, position, 0);
  for (int d = 0; d < t.dim; d++) {
    if (t.dtype == EDGEQKV_FP32) static_cast<float*>(t.cache)[i + size_t(d)] = x[d];
    if (t.dtype == EDGEQKV_FP16) static_cast<uint16_t*>(t.cache)[i + size_t(d)] = to_fp16(x[d]);
  }
  if (t.dtype != EDGEQKV_INT8) return;
  int8_t* row = static_cast<int8_t*>(t.cache) + i;
  quantise(x, t.split, row, &t.scale(kv_head, position, 0));
  if (t.split < t.dim) quantise(x + t.split, t.dim - t.split, row + t.split, &t.scale(kv_head, position, t.split));
}

void append(const edgeqkv_attention_args& a, int kv_head) {
  for (int t = 0; t < a.n_token; t++) {
    size_t from = size_t(t) * size_t(a.n_kv_head) + size_t(kv_head);
    write_row(keys(a), kv_head, a.position + t, a.k + from * size_t(a.row_dim));
    if (a.v) write_row(values(a), kv_head, a.position + t, a.v + from * size_t(a.value_dim));
  }
}

void attend(const edgeqkv_attention_args& a, const Item& item) {
  const Tensor key = keys(a), value = values(a);
  int group = a.n_head / a.n_kv_head;
  double log2e = 1.4426950408889634;
  for (int r = 0; r < item.n_row; r++) {
    int token = (item.row0 + r) / group, head = item.kv_head * group + (item.row0 + r) % group;
    const float* q = a.q + (size_t(token) * size_t(a.n_head) + size_t(head)) * size_t(a.key_dim);
    float* acc = item.acc + size_t(r) * size_t(a.value_dim);
    float max = kNoScore;
    double sum = 0;
    for (int d = 0; d < a.value_dim; d++) acc[d] = 0;
    for (int j = item.key0; j < item.key1 && j <= a.position + token; j++) {
      double dot = 0;  // a long sum in one chain; the vector paths have one for each lane
      for (int d = 0; d < a.key_dim; d++) dot += double(q[d]) * key.read(item.kv_head, j, d);
      float score = float(dot * a.scale * log2e);
      float new_max = score > max ? score : max;  // a NaN score leaves max alone and reaches sum through weight
      float keep = std::exp2(max - new_max), weight = std::exp2(score - new_max);
      for (int d = 0; d < a.value_dim; d++) acc[d] = acc[d] * keep + weight * value.read(item.kv_head, j, a.value_start + d);
      sum = sum * keep + weight;
      max = new_max;
    }
    item.max[r] = max;
    item.sum[r] = float(sum);
  }
}

size_t scratch_floats(const edgeqkv_attention_args&) { return 0; }

void head_linear(const edgeqkv_head_linear_args& a, int head, int begin, int end, float*) {
  for (int t = 0; t < a.n_token; t++) {
    size_t at = size_t(t) * size_t(a.n_head) + size_t(head);
    const float* x = a.x + at * size_t(a.n_in);
    for (int o = begin; o < end; o++) {
      size_t row = size_t(head) * size_t(a.n_out) + size_t(o);
      double sum = 0;
      for (int i = 0; i < a.n_in; i++) sum += double(x[i]) * a.weight[row * size_t(a.n_in) + size_t(i)];
      a.y[at * size_t(a.y_stride) + size_t(o)] = float(sum * a.scale[row]);
    }
  }
}

size_t head_linear_floats(const edgeqkv_head_linear_args&) { return 0; }

}  // namespace

const Path kScalarPath = {append, attend, scratch_floats, head_linear, head_linear_floats, 1};

}  // namespace edgeqkv
