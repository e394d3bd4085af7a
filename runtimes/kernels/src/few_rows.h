// Few query rows: one at a time over a block of cached rows.
#pragma once

#include "vector.h"

namespace edgeqkv {
namespace {

// What a step keeps of its weights besides the floats: over int8, V's integers.
template <class V, class T>
struct KeptWeights {
  struct Type {};
};
template <class V>
struct KeptWeights<V, int8_t> {
  using Type = typename V::PackedWeights;
};

template <class V, class T>
struct FewRows {
  using F = typename V::F;
  static constexpr int W = V::W;
  static constexpr bool kInt8 = sizeof(T) == 1;

  struct Scratch {
    T* padded;       // [W, row_dim or value_dim]
    float* queries;  // [kBlockRows / 2, query_floats], each in the scale of the scores; int8: as pack_query lays it out
    size_t query_floats;

    Scratch(Arena& arena, const edgeqkv_attention_args& a) {
      padded = arena.take<T>(size_t(W) * size_t(a.row_dim));
      query_floats = packed_query_floats(a.key_dim);
      queries = arena.take<float>(size_t(W / 2) * query_floats);
    }
  };

  // lane i = q . k[i] for W rows. Four rows at a time need one pointer and one stride.
  static F row_scores(const float* q, const T* k, ptrdiff_t stride, int dim) {
    F acc[W];
    EDGEQKV_UNROLL
    for (int i = 0; i < W; i += 4) {
      const T* row = k + i * stride;
      F a = V::set1(0), b = a, c = a, e = a;
      for (int d = 0; d < dim; d += W) {
        F x = V::load(q + d);
        a = V::fma(x, V::load(row + d), a);
        b = V::fma(x, V::load(row + stride + d), b);
        c = V::fma(x, V::load(row + 2 * stride + d), c);
        e = V::fma(x, V::load(row + 3 * stride + d), e);
      }
      acc[i] = a, acc[i + 1] = b, acc[i + 2] = c, acc[i + 3] = e;
    }
    return V::sums(acc);
  }

  // acc[0 .. C*W) += sum_j weight[j] * v[j]; two chains for each register hide the latency of the multiply-add.
  template <int C>
  static void add_values(const T* v, ptrdiff_t stride, const float* weight, int n, float* acc) {
    F a[C], b[C];
    EDGEQKV_UNROLL
    for (int c = 0; c < C; c++) {
      a[c] = V::load(acc + c * W);
      b[c] = V::set1(0);
    }
    int j = 0;
    for (; j + 2 <= n; j += 2, v += 2 * stride) {
      F wa = V::set1(weight[j]), wb = V::set1(weight[j + 1]);
      EDGEQKV_UNROLL
      for (int c = 0; c < C; c++) {
        a[c] = V::fma(wa, V::load(v + c * W), a[c]);
        b[c] = V::fma(wb, V::load(v + stride + c * W), b[c]);
      }
    }
    if (j < n) EDGEQKV_UNROLL
    for (int c = 0; c < C; c++) a[c] = V::fma(V::set1(weight[j]), V::load(v + c * W), a[c]);
    EDGEQKV_UNROLL
    for (int c = 0; c < C; c++) V::store(acc + c * W, V::add(a[c], b[c]));
  }

  static void add_row_values(const T* v, ptrdiff_t stride, const float* weight, int n, int dim, float* acc) {
    int d = 0;
    for (; d + 4 * W <= dim; d += 4 * W) add_values<4>(v + d, stride, weight, n, acc + d);
    for (; d < dim; d += W) add_values<1>(v + d, stride, weight, n, acc + d);
  }

  // One query row against one block of cached rows.
  struct Step {
    const float* q;
    int key, n;                            // the block: its first position and how many rows of it the query row sees
    int ahead, fetch;                      // rows from the block's first to what is fetched meanwhile, and how many those are
    float *max, *sum, *acc;                // the query row's state
    F top;                                 // largest scores
    alignas(64) float weight[kBlockKeys];  // scores at first
    typename KeptWeights<V, T>::Type packed[kMaxParts];  // weight times the scale of each part of the value
  };

  static void scores(const Cached<T>& cache, Step& s, T* padded) {
    const Slice<T>& k = cache.key;
    s.top = V::set1(kNoScore);
    for (int j = 0; j < s.n; j += W) {
      const T* rows = whole_rows<W>(k.row(s.key + j), k.stride, s.n - j, padded);
      if (j < s.fetch) fetch_rows(cache.row.row(s.key + s.ahead + j), (s.fetch - j < W ? s.fetch - j : W) * cache.row.stride);
      F x;
      if constexpr (kInt8)
        x = packed_scores<V>(k, s.q, rows, s.key, j, s.n);
      else
        x = row_scores(s.q, rows, k.stride, k.dim);
      V::store(s.weight + j, x);
      if (j + W > s.n) {
        for (int i = s.n; i < j + W; i++) s.weight[i] = -__builtin_inff();
        x = V::load(s.weight + j);
      }
      s.top = V::max(x, s.top);
    }
  }

  static void weights(const Cached<T>& cache, Step& s) {
    float new_max = max_lanes<V>(V::max(s.top, V::set1(*s.max)));
    if (new_max > *s.max) {
      float keep = exp2_one<V>(*s.max - new_max);
      for (int d = 0; d < cache.value.dim; d += W) V::store(s.acc + d, V::mul(V::load(s.acc + d), V::set1(keep)));
      *s.sum *= keep;
      *s.max = new_max;
    }
    F total = V::set1(0);
    for (int j = 0; j < s.n; j += W) {
      F p = exp2<V>(V::sub(V::load(s.weight + j), V::set1(new_max)));
      total = V::add(total, p);
      V::store(s.weight + j, p);
    }
    *s.sum += sum_lanes<V>(total);
    if constexpr (kInt8)
      for (int p = 0; p < cache.value.n_part; p++) {
        float weight[kBlockKeys];
        scaled_weights(s, cache.value.part[p], weight);
        V::pack_weights(weight, s.n, s.packed[p]);
      }
  }

  static void scaled_weights(const Step& s, const Part& part, float* weight) {
    for (int j = 0; j < s.n; j += W) V::store(weight + j, scaled<V>(V::load(s.weight + j), part.scale + s.key, j, s.n));
  }

  static void values(const Cached<T>& cache, const Step& s) {
    const Slice<T>& v = cache.value;
    if constexpr (kInt8) {
      for (int p = 0; p < v.n_part; p++) {
        const Part& part = v.part[p];
        const T* rows = v.row(s.key) + part.begin;
        if (s.packed[p].unit != 0) {
          V::add_values(rows, v.stride, s.packed[p], s.n, part.dim, s.acc + part.begin);
        } else {
          float weight[kBlockKeys];
          scaled_weights(s, part, weight);
          add_row_values(rows, v.stride, weight, s.n, part.dim, s.acc + part.begin);
        }
      }
    } else {
      add_row_values(v.row(s.key), v.stride, s.weight, s.n, v.dim, s.acc);
    }
  }

  // Blocks of 4 KB, so that a block, the one before it, whose values are still to come, and their scores stay in L1; of k and v each.
  static int block_keys(int row_bytes) {
    int n = 4096 / row_bytes / W * W;
    return n < W ? W : n > kBlockKeys ? kBlockKeys : n;
  }

  // While the values of a block are summed, nothing is asked of memory: of one tensor, rows so far ahead are fetched meanwhile. Two
  // tensors keep memory busy by themselves, and fetching ahead in both slowed them down by a third. Measured on Zen 4.
  static constexpr int kFetchAhead = 8192;

  static void attend(const edgeqkv_attention_args& a, const Item& item, const Cached<T>& cache) {
    Arena arena(item.scratch);
    Scratch scratch(arena, a);
    for (int r = 0; r < item.n_row; r++) {
      float x[kMaxRow], *query = scratch.queries + size_t(r) * scratch.query_floats;
      if constexpr (kInt8) {
        load_query<V>(a, item, r, x);
        pack_query<V>(cache.key, x, query);
      } else {
        load_query<V>(a, item, r, query);
      }
    }
    // The weights of a step are a chain of dependent instructions: the scores of the step after it, which do not depend on
    // them, come between them and the values that wait for them.
    Step steps[2], *now = &steps[0], *before = &steps[1];
    bool pending = false;  // `before` has scores, and no weights and values yet
    const int row_bytes = a.row_dim * int(sizeof(T)), block = block_keys(row_bytes);
    const int ahead = block * row_bytes < kFetchAhead ? kFetchAhead / (block * row_bytes) * block : block;
    for (int key = item.key0; key < item.key1; key += block) {
      int n = item.key1 - key < block ? item.key1 - key : block;
      int left = cache.one_tensor ? item.key1 - key - ahead : 0, fetch = left < block ? left : block;
      for (int r = 0; r < item.n_row; r++) {
        int visible = seen(a, item, r) - key;
        if (visible <= 0) continue;
        now->q = scratch.queries + size_t(r) * scratch.query_floats;
        now->key = key, now->n = visible < n ? visible : n, now->ahead = ahead, now->fetch = r == 0 ? fetch : 0;
        now->max = item.max + r, now->sum = item.sum + r, now->acc = item.acc + ptrdiff_t(r) * a.value_dim;
        if (pending) weights(cache, *before);
        scores(cache, *now, scratch.padded);
        if (pending) values(cache, *before);
        Step* done = before;
        before = now, now = done, pending = true;
      }
    }
    if (!pending) return;
    weights(cache, *before);
    values(cache, *before);
  }
};

}  // namespace
}  // namespace edgeqkv
