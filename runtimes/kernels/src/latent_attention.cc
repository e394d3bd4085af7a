// Latent attention, put together from attention over rows and from one matrix for each head.
#include "edgeqkv_latent_attention.h"

#include <algorithm>
#include <cmath>
#include <cstring>
#include <memory>
#include <new>

#include "attention.h"
#include "edgeqkv_head_linear.h"
#include "fp16.h"

namespace edgeqkv {
namespace {

constexpr size_t kExpandedFloats = size_t(4) << 20;  // K and V of so many heads at once as fit
constexpr int kExpandRows = 32;                      // rows of one task
constexpr double kTransposed = 40;  // what moving a byte of W_K takes, in products with int8: measured on Zen 4

using Args = edgeqkv_latent_attention_args;

int row_dim(const Args& a) { return a.latent_dim + a.rope_dim; }
int key_dim(const Args& a) { return a.nope_dim + a.rope_dim; }

// Attention over the latent rows, but for the query and where its result goes.
edgeqkv_attention_args over_rows(const Args& a) {
  edgeqkv_attention_args rows = {};
  rows.size = sizeof rows;
  rows.n_head = a.n_head, rows.n_kv_head = 1;
  rows.row_dim = rows.key_dim = row_dim(a), rows.value_dim = a.latent_dim, rows.scale_split = a.scale_split;
  rows.capacity = a.capacity, rows.position = a.position, rows.n_token = a.n_token;
  rows.dtype = a.dtype, rows.isa = a.isa;
  rows.scale = a.scale != 0 ? a.scale : 1 / std::sqrt(float(key_dim(a)));
  rows.q = a.q_nope, rows.k = a.row, rows.k_cache = a.cache, rows.k_scale = a.cache_scale, rows.out = a.out;
  return rows;
}

edgeqkv_head_linear_args product(const Args& a, const int8_t* weight, const float* scale, int n_in, int n_out) {
  edgeqkv_head_linear_args p = {};
  p.size = sizeof p;
  p.n_head = a.n_head, p.n_in = n_in, p.n_out = p.y_stride = n_out, p.n_token = a.n_token, p.isa = a.isa;
  p.weight = weight, p.scale = scale;
  return p;
}

// Checks all arguments, and chooses the path.
int32_t prepare(const Args& a, edgeqkv_attention_args& rows, const Path** path) {
  if (a.size != sizeof a || !a.q_nope || !a.q_rope || !a.row || !a.w_k || !a.w_k_scale || !a.w_v || !a.w_v_scale || !a.out)
    return EDGEQKV_BAD_ARGUMENT;
  for (int32_t size : {a.nope_dim, a.rope_dim, a.latent_dim, a.value_dim})
    if (size < 8 || size > kMaxRow || size % 8) return EDGEQKV_BAD_ARGUMENT;
  if (a.nope_dim % 16 || a.latent_dim % 16 || key_dim(a) > kMaxRow) return EDGEQKV_BAD_ARGUMENT;
  if (a.scale_split != 0 && a.scale_split != a.latent_dim) return EDGEQKV_BAD_ARGUMENT;
  if (a.form < EDGEQKV_FORM_AUTO || a.form > EDGEQKV_FORM_EXPANDED) return EDGEQKV_BAD_ARGUMENT;
  rows = over_rows(a);
  return prepare(rows, path);
}

// Whether `expanded` is asked for, or takes less time: products with int8 count one, with floats what the path's measured.
bool takes_expanded(const Args& a, const Path& path) {
  if (a.form != EDGEQKV_FORM_AUTO) return a.form == EDGEQKV_FORM_EXPANDED;
  if (a.n_token == 1) return false;
  const double pairs = double(a.n_token) * (a.position + (a.n_token + 1) / 2.0);
  const double in_rows = a.dtype == EDGEQKV_INT8 ? 1 : path.float_product;
  const double saved =
      pairs * (in_rows * (2 * a.latent_dim + a.rope_dim) - double(path.float_product) * (key_dim(a) + a.value_dim));
  // W_K and W_V are multiplied by as many vectors as there are queries, or rows; and W_K is transposed.
  return saved > (double(a.position) * (a.nope_dim + a.value_dim) + kTransposed * a.nope_dim) * a.latent_dim;
}

int32_t absorbed(const Args& a, const edgeqkv_attention_args& over, const Path& path, const Parallel& parallel) {
  const size_t queries = size_t(a.n_token) * size_t(a.n_head), row = size_t(row_dim(a)), latent = size_t(a.latent_dim);
  std::unique_ptr<float[]> memory(new (std::nothrow) float[queries * (row + latent)]);
  if (!memory) return EDGEQKV_NO_MEMORY;
  float *q = memory.get(), *latents = q + queries * row;

  edgeqkv_head_linear_args to_latent = product(a, a.w_k, a.w_k_scale, a.nope_dim, a.latent_dim);
  to_latent.y_stride = row_dim(a), to_latent.x = a.q_nope, to_latent.y = q;
  if (int32_t error = edgeqkv_head_linear(&to_latent, parallel.parallel_for, parallel.context, parallel.n_thread)) return error;
  for (size_t i = 0; i < queries; i++)
    std::memcpy(q + i * row + latent, a.q_rope + i * size_t(a.rope_dim), size_t(a.rope_dim) * sizeof(float));

  edgeqkv_attention_args rows = over;
  rows.q = q, rows.out = latents;
  append_rows(rows, path, parallel);
  if (int32_t error = attend_rows(rows, path, parallel)) return error;

  edgeqkv_head_linear_args to_value = product(a, a.w_v, a.w_v_scale, a.latent_dim, a.value_dim);
  to_value.x = latents, to_value.y = a.out;
  return edgeqkv_head_linear(&to_value, parallel.parallel_for, parallel.context, parallel.n_thread);
}

// K and V of some heads, for all rows of the cache.
struct Expansion {
  const Args& a;
  const Path& path;
  int n_row, n_block;         // rows, and blocks of kExpandRows of them
  int first, n_head, n_part;  // the heads, and into how many parts a block's are cut
  int8_t* w_k;                // [n_head, nope_dim, latent_dim]: W_K transposed
  float *k, *v;               // [n_head, n_row, key_dim], [n_head, n_row, value_dim]
  std::atomic<bool> no_memory{false};

  // Channels [begin, begin + n) of a cached row, under one scale.
  void read(size_t row, int begin, int n, float* to) const {
    const size_t at = row * size_t(row_dim(a)) + size_t(begin);
    if (a.dtype == EDGEQKV_FP32) {
      std::memcpy(to, static_cast<const float*>(a.cache) + at, size_t(n) * sizeof(float));
    } else if (a.dtype == EDGEQKV_FP16) {
      const uint16_t* from = static_cast<const uint16_t*>(a.cache) + at;
      for (int d = 0; d < n; d++) to[d] = from_fp16(from[d]);
    } else {
      const int8_t* from = static_cast<const int8_t*>(a.cache) + at;
      const float scale = a.cache_scale[(a.scale_split != 0 && begin >= a.scale_split ? size_t(a.capacity) : 0) + row];
      for (int d = 0; d < n; d++) to[d] = scale * from[d];
    }
  }

  void transpose(int head) const {
    const size_t n_in = size_t(a.nope_dim), n_out = size_t(a.latent_dim), matrix = n_in * n_out;
    const int8_t* from = a.w_k + size_t(first + head) * matrix;
    int8_t* to = w_k + size_t(head) * matrix;
    for (size_t begin = 0; begin < n_out; begin += 64)  // what is written stays in L1 until its cache lines are full
      for (size_t i = 0; i < n_in; i++)
        for (size_t o = begin; o < std::min(begin + 64, n_out); o++) to[i * n_out + o] = from[o * n_in + i];
  }

  // One block of rows, one part of the heads.
  void expand(int block, int part) {
    const int begin = block * kExpandRows, n = std::min(kExpandRows, n_row - begin);
    const size_t latent = size_t(a.latent_dim), rope = size_t(a.rope_dim), key = size_t(key_dim(a)),
                 value = size_t(a.value_dim);
    edgeqkv_head_linear_args p = product(a, nullptr, nullptr, a.latent_dim, 0);
    p.n_head = 1, p.n_token = n;
    const size_t floats = size_t(n) * (2 * latent + rope) + size_t(a.nope_dim), aligned = (floats + 15) & ~size_t(15);
    float* latents = thread_scratch(aligned + path.head_linear_floats(p));
    if (!latents) {
      no_memory = true;
      return;
    }
    float *scaled = latents + size_t(n) * latent, *ropes = scaled + size_t(n) * latent, *ones = ropes + size_t(n) * rope;
    float* scratch = latents + aligned;
    std::fill(ones, ones + a.nope_dim, 1.0f);
    for (int r = 0; r < n; r++) {
      read(size_t(begin + r), 0, a.latent_dim, latents + size_t(r) * latent);
      read(size_t(begin + r), a.latent_dim, a.rope_dim, ropes + size_t(r) * rope);
    }
    for (int head = n_head * part / n_part; head < n_head * (part + 1) / n_part; head++) {
      const size_t of_model = size_t(first + head), first_row = size_t(head) * size_t(n_row) + size_t(begin);
      float *keys = k + first_row * key, *values = v + first_row * value;
      // W_K's scales are of its latent channels: they go to the latents that meet them.
      const float* scale = a.w_k_scale + of_model * latent;
      for (int r = 0; r < n; r++) {
        for (size_t d = 0; d < latent; d++) scaled[size_t(r) * latent + d] = latents[size_t(r) * latent + d] * scale[d];
        std::memcpy(keys + size_t(r) * key + a.nope_dim, ropes + size_t(r) * rope, rope * sizeof(float));
      }
      p.n_out = a.nope_dim, p.y_stride = key_dim(a);
      p.x = scaled, p.weight = w_k + size_t(head) * latent * size_t(a.nope_dim), p.scale = ones, p.y = keys;
      path.head_linear(p, 0, 0, p.n_out, scratch);
      p.n_out = p.y_stride = a.value_dim;
      p.x = latents, p.weight = a.w_v + of_model * latent * value, p.scale = a.w_v_scale + of_model * value, p.y = values;
      path.head_linear(p, 0, 0, p.n_out, scratch);
    }
  }
};

// One tensor's channels of some heads of each token, between all heads [n_token, n_head, dim] and those alone.
struct Heads {
  const Args& a;
  int first, n_head;

  template <class Copy>
  void each(Copy copy) const {
    for (int t = 0; t < a.n_token; t++)
      for (int h = 0; h < n_head; h++)
        copy(size_t(t) * size_t(a.n_head) + size_t(first + h), size_t(t) * size_t(n_head) + size_t(h));
  }
};

int32_t expanded(const Args& a, const edgeqkv_attention_args& rows, const Path& path, const Parallel& parallel) {
  const size_t n_row = size_t(a.position) + size_t(a.n_token), key = size_t(key_dim(a)), value = size_t(a.value_dim);
  const size_t nope = size_t(a.nope_dim), rope = size_t(a.rope_dim), tokens = size_t(a.n_token);
  const size_t of_head = n_row * (key + value) + tokens * (key + value);
  const int at_once = std::min(a.n_head, std::max(parallel.n_thread, int(kExpandedFloats / of_head)));
  std::unique_ptr<float[]> memory(new (std::nothrow) float[size_t(at_once) * of_head]);
  std::unique_ptr<int8_t[]> transposed(new (std::nothrow) int8_t[size_t(at_once) * nope * size_t(a.latent_dim)]);
  if (!memory || !transposed) return EDGEQKV_NO_MEMORY;

  append_rows(rows, path, parallel);
  for (int first = 0; first < a.n_head; first += at_once) {
    const int n_head = std::min(at_once, a.n_head - first);
    float *k = memory.get(), *v = k + size_t(n_head) * n_row * key;
    float *q = v + size_t(n_head) * n_row * value, *out = q + size_t(n_head) * tokens * key;
    const int n_block = (int(n_row) + kExpandRows - 1) / kExpandRows;
    const int64_t products = int64_t(kExpandRows) * n_head * (a.nope_dim + a.value_dim) * a.latent_dim;
    const int n_part = parts_of(n_block, products, parallel.n_thread, n_head);
    Expansion expansion = {a, path, int(n_row), n_block, first, n_head, n_part, transposed.get(), k, v};
    parallel.run(n_head, [](void* arg, int32_t i) { static_cast<Expansion*>(arg)->transpose(i); }, &expansion);
    parallel.run(
        n_block * n_part,
        [](void* arg, int32_t i) {
          Expansion& e = *static_cast<Expansion*>(arg);
          e.expand(i / e.n_part, i % e.n_part);
        },
        &expansion);
    if (expansion.no_memory) return EDGEQKV_NO_MEMORY;

    const Heads heads = {a, first, n_head};
    heads.each([&](size_t of_all, size_t of_these) {
      std::memcpy(q + of_these * key, a.q_nope + of_all * nope, nope * sizeof(float));
      std::memcpy(q + of_these * key + nope, a.q_rope + of_all * rope, rope * sizeof(float));
    });
    edgeqkv_attention_args over = {};
    over.size = sizeof over;
    over.n_head = over.n_kv_head = n_head;
    over.row_dim = over.key_dim = key_dim(a), over.value_dim = a.value_dim;
    over.capacity = int32_t(n_row), over.position = a.position, over.n_token = a.n_token;
    over.dtype = EDGEQKV_FP32, over.isa = a.isa, over.scale = rows.scale;
    over.q = q, over.k = k, over.v = v, over.k_cache = k, over.v_cache = v, over.out = out;
    const Path* path_of_floats = nullptr;
    if (int32_t error = prepare(over, &path_of_floats)) return error;
    if (int32_t error = attend_rows(over, *path_of_floats, parallel)) return error;
    heads.each([&](size_t of_all, size_t of_these) {
      std::memcpy(a.out + of_all * value, out + of_these * value, value * sizeof(float));
    });
  }
  return EDGEQKV_OK;
}

}  // namespace
}  // namespace edgeqkv

using namespace edgeqkv;

extern "C" int32_t edgeqkv_latent_attention(const edgeqkv_latent_attention_args* args, edgeqkv_parallel_for parallel_for,
                                            void* context, int32_t n_thread) {
  if (!args) return EDGEQKV_BAD_ARGUMENT;
  edgeqkv_attention_args rows = {};
  const Path* path = nullptr;
  if (int32_t error = prepare(*args, rows, &path)) return error;
  const Parallel parallel(parallel_for, context, n_thread);
  return (takes_expanded(*args, *path) ? expanded : absorbed)(*args, rows, *path, parallel);
}

extern "C" int32_t edgeqkv_latent_attention_form(const edgeqkv_latent_attention_args* args) {
  edgeqkv_attention_args rows = {};
  const Path* path = nullptr;
  if (!args || prepare(*args, rows, &path)) return EDGEQKV_FORM_AUTO;
  return takes_expanded(*args, *path) ? EDGEQKV_FORM_EXPANDED : EDGEQKV_FORM_ABSORBED;
}
