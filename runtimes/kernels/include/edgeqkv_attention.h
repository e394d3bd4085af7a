/* edgeqkv attention: append new rows to a cache and attend over it, reading each cached row once.
 *
 * One call does, for one layer:
 *   1. append   rows position .. position + n_token - 1 of the cache are written from k (and v), rounded to the cache's dtype;
 *   2. attend   for token t and head h:  out[t, h] = sum_j softmax_j(scale * q[t, h] . K[g, j]) V[g, j]
 *               with j = 0 .. position + t (causal, the rows just written included) and g = h / (n_head / n_kv_head).
 * n_token = 1 is a decode step, n_token > 1 a prefill after any depth. Softmax is computed online (Milakov and Gimelshein,
 * arXiv 1805.02867), in fp32, on the rows as they are stored. Over an int8 cache, the query and the softmax weights may be
 * rounded to 16 bits, a small part of what the cache's 8 bits do.
 *
 * Rows. A layer caches one row for each token and KV head: the key is one slice of it and the value another, which may overlap
 * or be the same. The key begins at channel 0:
 *   K = row[0 : key_dim],  V = row[value_start : value_start + value_dim].
 * With v = NULL there is this one tensor, and each of its rows comes from memory once, for the score and for the value:
 *   value is the key (Q-K=V, Q-MQA)       row_dim = key_dim = value_dim = head_dim, value_start 0
 *   latent attention, absorbed (MLA)      row = latent (R) | rotary key: row_dim = key_dim = R + rope, value_dim = R, value_start 0
 *   value from before the rotation        row = turned | plain | unturned: row_dim = head_dim + rot, key_dim = value_dim = head_dim,
 *                                         value_start = rot
 * With v there are two tensors, k of row_dim = key_dim channels and v of value_dim, which may differ (MLA expanded: 192 and 128).
 *
 * Tensors. All are dense and row-major, innermost dimension last; no padding, no stride but what the shape says.
 *   q                 float32 [n_token, n_head, key_dim]
 *   out               float32 [n_token, n_head, value_dim]
 *   k, v              float32 [n_token, n_kv_head, row_dim], [n_token, n_kv_head, value_dim]
 *   k_cache, v_cache  dtype   [n_kv_head, capacity, row_dim], [n_kv_head, capacity, value_dim]
 *   k_scale           float32 [n_kv_head, n_scale, capacity]    (EDGEQKV_INT8 only; else ignored, may be NULL)
 *   v_scale           float32 [n_kv_head, capacity]             (likewise)
 * A leading 1 as batch changes nothing. Pointers need their element's alignment (1, 2 or 4 bytes), no more; 64 bytes is a little
 * faster. `out` and the caches may overlap nothing else. Cache rows at and past position + n_token are neither read nor written.
 *
 * int8. Symmetric, one scale for each KV head and position, set when the row is written and never again:
 *   scale = max|row| / 127,  stored = round_half_even(row / scale) within -127 .. 127,  value = scale * stored.
 * A row whose scale is 0 stores zeros. A row with a NaN or an infinity stores zeros and a NaN scale: NaN in, NaN out.
 * With scale_split > 0 this holds for each of two slices, channels [0, scale_split) and [scale_split, row_dim), whose scales are
 * k_scale[g, 0, j] and k_scale[g, 1, j] (n_scale = 2; otherwise n_scale = 1). A latent and its rotary part differ in size.
 * fp16. IEEE binary16, rounded half to even; beyond 65504 it overflows to infinity, which attends to NaN.
 *
 * Threads. Without `parallel_for` everything runs on the calling thread. With it, work is cut over KV heads, over blocks of
 * query rows and, where these are too few for `n_thread`, over the sequence (the partial softmax states are merged), so
 * results may differ in the last bits from one `n_thread` to another. Calls on different caches may run at the same time;
 * calls on one cache may not. Scratch memory (0.07 MB a thread at head_dim 64, 0.4 MB at a row of 576) is allocated at a thread's
 * first call and kept.
 */
#ifndef EDGEQKV_ATTENTION_H
#define EDGEQKV_ATTENTION_H

#include <stdint.h>

#if defined(EDGEQKV_ATTENTION_SHARED) && defined(__GNUC__)
#define EDGEQKV_API __attribute__((visibility("default")))
#else
#define EDGEQKV_API
#endif

#ifdef __cplusplus
extern "C" {
#endif

enum { EDGEQKV_FP32 = 0, EDGEQKV_FP16 = 1, EDGEQKV_INT8 = 2 }; /* cache dtype */

/* Instruction set. AUTO takes the best one that this CPU has, or the one that the environment variable EDGEQKV_ISA names when it is
 * first asked for ("scalar", "avx2", "avxvnni", "avx512", "neon", "neon+dot", "neon+i8mm"); one that cannot run here is then
 * EDGEQKV_NO_ISA. */
enum {
  EDGEQKV_ISA_AUTO = 0,
  EDGEQKV_ISA_SCALAR = 1,
  EDGEQKV_ISA_AVX2 = 2,   /* with FMA and F16C */
  EDGEQKV_ISA_AVX512 = 3, /* F, BW, DQ, VL and VNNI; with a width that is no multiple of 16 it runs AVXVNNI or AVX2 */
  EDGEQKV_ISA_NEON = 4,
  EDGEQKV_ISA_NEON_DOT = 5,  /* with the ARMv8.2 dot product */
  EDGEQKV_ISA_AVXVNNI = 6,   /* AVX2 with AVX-VNNI, if the compiler has it (GCC 11, clang 12) */
  EDGEQKV_ISA_NEON_I8MM = 7, /* with the dot product and the ARMv8.6 matrix products of int8 */
  EDGEQKV_ISA_COUNT          /* no instruction set: above all of them, in no order of preference */
};

enum { /* what edgeqkv_attention returns */
       EDGEQKV_OK = 0,
       EDGEQKV_BAD_ARGUMENT = 1,  /* a NULL pointer, another size, a shape or dtype that the comments here exclude */
       EDGEQKV_PAST_CAPACITY = 2, /* position + n_token > capacity; nothing was written */
       EDGEQKV_NO_MEMORY = 3,     /* the scratch could not be allocated; out is undefined */
       EDGEQKV_NO_ISA = 4         /* this CPU or this build lacks the instruction set asked for */
};

typedef struct {
  uint32_t size;       /* sizeof(edgeqkv_attention_args): a caller that was compiled with another struct is refused */
  int32_t n_head;      /* a multiple of n_kv_head */
  int32_t n_kv_head;   /* >= 1 */
  int32_t row_dim;     /* this and the next four are multiples of 8; row_dim is 8 .. 2048 */
  int32_t key_dim;     /* 8 .. row_dim; row_dim if there is v */
  int32_t value_start; /* value_start + value_dim <= row_dim; 0 if there is v */
  int32_t value_dim;   /* 8 .. 2048 */
  int32_t scale_split; /* 0 .. row_dim - 8; 0, and always with v: one scale for each row. Ignored unless int8 */
  int32_t capacity;    /* positions that the cache holds, 1 .. 2^30 */
  int32_t position;    /* positions filled before this call, >= 0 */
  int32_t n_token;     /* >= 1 */
  int32_t dtype;       /* of the caches: EDGEQKV_FP32, _FP16 or _INT8 */
  int32_t isa;         /* EDGEQKV_ISA_AUTO outside of tests */
  float scale;         /* of the scores; 0 means 1 / sqrt(key_dim) */
  const float *q, *k;
  const float* v; /* NULL: the value is a slice of k's rows; v_cache and v_scale are then ignored */
  void *k_cache, *v_cache;
  float *k_scale, *v_scale;
  float* out;
} edgeqkv_attention_args;

/* Calls task(arg, i) for i = 0 .. n - 1, in any order, on any threads, and returns when all are done. */
typedef void (*edgeqkv_parallel_for)(void* context, int32_t n, void (*task)(void* arg, int32_t i), void* arg);

/* `parallel_for` NULL (n_thread is then ignored) runs on the calling thread. Never throws, never aborts. */
EDGEQKV_API int32_t edgeqkv_attention(const edgeqkv_attention_args* args, edgeqkv_parallel_for parallel_for, void* context,
                                      int32_t n_thread);

/* The path that `isa` would take here: AUTO resolved, any other value itself, or -1 if it cannot run here. */
EDGEQKV_API int32_t edgeqkv_attention_isa(int32_t isa);

/* "scalar", "avx2", ...; "unknown" for any other value. */
EDGEQKV_API const char* edgeqkv_attention_isa_name(int32_t isa);

#ifdef __cplusplus
}
#endif
#endif
