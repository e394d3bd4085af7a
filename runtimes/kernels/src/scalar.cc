// The readable reference: plain loops, no vectors, no blocking. It runs wherever C++ does.
#include <cmath>

#include "fp16.h"
#include "path.h"

namespace edgeqkv {
namespace {

size_t row_index(const edgeqkv_attention_args& a, int kv_head, int position) {
  return size_t(kv_head) * size_t(a.capacity) + size_t(position);
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

void write_row(const edgeqkv_attention_args& a, void* cache, float* scales, size_t row, const float* x) {
  size_t n = size_t(a.head_dim);
  if (a.dtype == EDGEQKV_INT8) quantise(x, a.head_dim, static_cast<int8_t*>(cache) + row * n, scales + row);
  for (size_t d = 0; d < n; d++) {
    if (a.dtype == EDGEQKV_FP32) static_cast<float*>(cache)[row * n + d] = x[d];
    if (a.dtype == EDGEQKV_FP16) static_cast<uint16_t*>(cache)[row * n + d] = to_fp16(x[d]);
  }
}

float read(const edgeqkv_attention_args& a, const void* cache, const float* scales, size_t row, int d) {
  size_t i = row * size_t(a.head_dim) + size_t(d);
  if (a.dtype == EDGEQKV_INT8) return scales[row] * static_cast<const int8_t*>(cache)[i];
  if (a.dtype == EDGEQKV_FP16) return from_fp16(static_cast<const uint16_t*>(cache)[i]);
  return static_cast<const float*>(cache)[i];
}

void append(const edgeqkv_attention_args& a, int kv_head) {
  for (int t = 0; t < a.n_token; t++) {
    size_t from = (size_t(t) * size_t(a.n_kv_head) + size_t(kv_head)) * size_t(a.head_dim);
    size_t row = row_index(a, kv_head, a.position + t);
    write_row(a, a.k_cache, a.k_scale, row, a.k + from);
    if (a.v) write_row(a, a.v_cache, a.v_scale, row, a.v + from);
  }
}

void attend(const edgeqkv_attention_args& a, const Item& item) {
  const void* v_cache = a.v ? a.v_cache : a.k_cache;
  const float* v_scale = a.v ? a.v_scale : a.k_scale;
  int group = a.n_head / a.n_kv_head, n = a.head_dim;
  double log2e = 1.4426950408889634;
  for (int r = 0; r < item.n_row; r++) {
    int token = (item.row0 + r) / group, head = item.kv_head * group + (item.row0 + r) % group;
    const float* q = a.q + (size_t(token) * size_t(a.n_head) + size_t(head)) * size_t(n);
    float* acc = item.acc + size_t(r) * size_t(n);
    float max = kNoScore;
    double sum = 0;
    for (int d = 0; d < n; d++) acc[d] = 0;
    for (int key = item.key0; key < item.key1 && key <= a.position + token; key++) {
      size_t row = row_index(a, item.kv_head, key);
      double dot = 0;  // a long sum in one chain; the vector paths have one for each lane
      for (int d = 0; d < n; d++) dot += double(q[d]) * read(a, a.k_cache, a.k_scale, row, d);
      float score = float(dot * a.scale * log2e);
      float new_max = score > max ? score : max;  // a NaN score leaves max alone and reaches sum through weight
      float keep = std::exp2(max - new_max), weight = std::exp2(score - new_max);
      for (int d = 0; d < n; d++) acc[d] = acc[d] * keep + weight * read(a, v_cache, v_scale, row, d);
      sum = sum * keep + weight;
      max = new_max;
    }
    item.max[r] = max;
    item.sum[r] = float(sum);
  }
}

size_t scratch_floats(int) { return 0; }

}  // namespace

const Path kScalarPath = {append, attend, scratch_floats};

}  // namespace edgeqkv
