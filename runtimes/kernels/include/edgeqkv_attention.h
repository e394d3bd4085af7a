/* edgeqkv attention: append new keys to a cache and attend over it, reading each cached row once.
 *
 * One call does, for one layer:
 *   1. append   rows position .. position + n_token - 1 of the cache are written from k (and v), rounded to the cache's dtype;
 *   2. attend   for token t and head h:  out[t, h] = sum_j softmax_j(scale * q[t, h] . K[g, j]) V[g, j]
 *               with j = 0 .. position + t (causal, the rows just written included) and g = h / (n_head / n_kv_head).
 * n_token = 1 is a decode step, n_token > 1 a prefill after any depth. With v = NULL the value is the key (a K-only cache):
 * one tensor, and each of its rows comes from memory once, for the score and for the value. Softmax is computed online
 * (Milakov and Gimelshein, arXiv 1805.02867), in fp32, on the rows as they are stored. Over an int8 cache, the query and
 * the softmax weights may be rounded to 16 bits, a small part of what the cache's 8 bits do.
 *
 * Tensors. All are dense and row-major, innermost dimension last; no padding, no stride but what the shape says.
 *   q, out            float32 [n_token, n_head, head_dim]
 *   k, v              float32 [n_token, n_kv_head, head_dim]
 *   k_cache, v_cache  dtype   [n_kv_head, capacity, head_dim]   (a leading 1 as batch changes nothing)
 *   k_scale, v_scale  float32 [n_kv_head, capacity]             (EDGEQKV_INT8 only; else ignored, may be NULL)
 * Pointers need their element's alignment (1, 2 or 4 bytes), no more; 64 bytes is a little faster. `out` and the caches may
 * overlap nothing else. Cache rows at and past position + n_token are neither read nor written.
 *
 * int8. Symmetric, one scale for each KV head and position, set when the row is written and never again:
 *   scale = max|row| / 127,  stored = round_half_even(row / scale) within -127 .. 127,  value = scale * stored.
 * A row whose scale is 0 stores zeros. A row with a NaN or an infinity stores zeros and a NaN scale: NaN in, NaN out.
 * fp16. IEEE binary16, rounded half to even; beyond 65504 it overflows to infinity, which attends to NaN.
 *
 * Threads. Without `parallel_for` everything runs on the calling thread. With it, work is cut over KV heads, over blocks of
 * query rows and, where these are too few for `n_thread`, over the sequence (the partial softmax states are merged), so
 * results may differ in the last bits from one `n_thread` to another. Calls on different caches may run at the same time;
 * calls on one cache may not. Scratch memory (0.06 MB a thread at head_dim 64) is allocated at a thread's first call and kept.
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

enum { /* instruction set; AUTO takes the best one that this CPU has */
  EDGEQKV_ISA_AUTO = 0,
  EDGEQKV_ISA_SCALAR = 1,
  EDGEQKV_ISA_AVX2 = 2,    /* with FMA and F16C */
  EDGEQKV_ISA_AVX512 = 3,  /* F, BW, DQ, VL and VNNI; a head_dim that is no multiple of 16 runs on AVX2 */
  EDGEQKV_ISA_NEON = 4,
  EDGEQKV_ISA_NEON_DOT = 5 /* with the ARMv8.2 dot product */
};

enum { /* what edgeqkv_attention returns */
  EDGEQKV_OK = 0,
  EDGEQKV_BAD_ARGUMENT = 1,  /* a NULL pointer, a shape or dtype that the comments here exclude */
  EDGEQKV_PAST_CAPACITY = 2, /* position + n_token > capacity; nothing was written */
  EDGEQKV_NO_MEMORY = 3,     /* the scratch could not be allocated; out is undefined */
  EDGEQKV_NO_ISA = 4         /* this CPU or this build lacks the instruction set asked for */
};

typedef struct {
  int32_t n_head;    /* a multiple of n_kv_head */
  int32_t n_kv_head; /* >= 1 */
  int32_t head_dim;  /* a multiple of 8, 8 .. 1024 */
  int32_t capacity;  /* positions that the cache holds */
  int32_t position;  /* positions filled before this call, >= 0 */
  int32_t n_token;   /* >= 1 */
  int32_t dtype;     /* of the caches: EDGEQKV_FP32, _FP16 or _INT8 */
  int32_t isa;       /* EDGEQKV_ISA_AUTO outside of tests */
  float scale;       /* of the scores; 0 means 1 / sqrt(head_dim) */
  const float *q, *k;
  const float* v; /* NULL: the value is the key; v_cache and v_scale are then ignored */
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
