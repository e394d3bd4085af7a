/* edgeqkv latent attention: MLA (DeepSeek-V2, arXiv 2405.04434) over a cache of one row for each token, latent | rotary key.
 *
 *   K[h, j] = W_K[h]^T latent[j] | rotary key[j]        keys of n_head heads, nope_dim + rope_dim channels
 *   V[h, j] = W_V[h] latent[j]                          values, value_dim channels
 *   out[t, h] = sum_j softmax_j(scale * (q_nope[t, h] | q_rope[t, h]) . K[h, j]) V[h, j],  j = 0 .. position + t
 *
 * after the new rows have been written to the cache, as edgeqkv_attention does. No K and no V of a head is ever cached. There are two
 * ways to the same result, up to rounding:
 *   absorbed  W_K[h] q_nope attends over the latents themselves, W_V[h] turns what comes out into values (appendix C of the paper).
 *             A cached row is read as it is, and costs each query 2 * latent_dim + rope_dim products.
 *   expanded  K and V of all rows are computed for this call, some heads at a time, in float32. A cached row costs each head
 *             (nope_dim + value_dim) * latent_dim products once, and then each query nope_dim + rope_dim + value_dim.
 * Decoding is always absorbed. A prompt is read in whichever takes less time by the count of these products, each weighed with what
 * it was measured to take (bench/latent_bench.cc): expanded at depth 0, and for long chunks.
 *
 * Tensors. All are dense and row-major, innermost dimension last.
 *   q_nope       float32 [n_token, n_head, nope_dim]
 *   q_rope       float32 [n_token, n_head, rope_dim]
 *   row          float32 [n_token, latent_dim + rope_dim]
 *   cache        dtype   [capacity, latent_dim + rope_dim]
 *   cache_scale  float32 [1 or 2, capacity]                      (int8 only)
 *   w_k          int8    [n_head, latent_dim, nope_dim], scales float32 [n_head, latent_dim]
 *   w_v          int8    [n_head, value_dim, latent_dim], scales float32 [n_head, value_dim]
 *   out          float32 [n_token, n_head, value_dim]
 * How rows are stored, rounding and threads: edgeqkv_attention.h and edgeqkv_head_linear.h. Expanded, up to 16 MiB, or what one head
 * for each thread needs, are allocated for the length of a call.
 */
#ifndef EDGEQKV_LATENT_ATTENTION_H
#define EDGEQKV_LATENT_ATTENTION_H

#include "edgeqkv_attention.h"

#ifdef __cplusplus
extern "C" {
#endif

enum { EDGEQKV_FORM_AUTO = 0, EDGEQKV_FORM_ABSORBED = 1, EDGEQKV_FORM_EXPANDED = 2 };

typedef struct {
  uint32_t size;       /* sizeof(edgeqkv_latent_attention_args) */
  int32_t n_head;      /* >= 1 */
  int32_t nope_dim;    /* a multiple of 16 */
  int32_t rope_dim;    /* a multiple of 8 */
  int32_t latent_dim;  /* a multiple of 16; latent_dim + rope_dim is at most 2048 */
  int32_t value_dim;   /* a multiple of 8 */
  int32_t scale_split; /* 0 or latent_dim: whether the rotary key has an int8 scale of its own */
  int32_t capacity;
  int32_t position;
  int32_t n_token;
  int32_t dtype; /* of the cache */
  int32_t isa;   /* EDGEQKV_ISA_AUTO and EDGEQKV_FORM_AUTO outside of tests */
  int32_t form;
  float scale; /* of the scores; 0 means 1 / sqrt(nope_dim + rope_dim) */
  const float *q_nope, *q_rope, *row;
  const int8_t *w_k, *w_v;
  const float *w_k_scale, *w_v_scale;
  void* cache;
  float* cache_scale;
  float* out;
} edgeqkv_latent_attention_args;

/* Returns what edgeqkv_attention returns. Never throws, never aborts. */
EDGEQKV_API int32_t edgeqkv_latent_attention(const edgeqkv_latent_attention_args* args, edgeqkv_parallel_for parallel_for,
                                             void* context, int32_t n_thread);

/* The form that these arguments would take: EDGEQKV_FORM_ABSORBED or _EXPANDED; 0 if they would be refused. */
EDGEQKV_API int32_t edgeqkv_latent_attention_form(const edgeqkv_latent_attention_args* args);

#ifdef __cplusplus
}
#endif
#endif
