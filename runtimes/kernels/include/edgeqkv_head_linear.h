/* edgeqkv head linear: one int8 matrix for each head, what latent attention (MLA) multiplies its queries by on their way to the
 * cache (W_K, absorbed) and its outputs by on their way back (W_V).
 *
 *   y[t, h, o] = sum_i x[t, h, i] * W[h, o, i],   W[h, o, i] = scale[h, o] * weight[h, o, i]
 *
 * Tensors. All are dense and row-major, innermost dimension last.
 *   x       float32 [n_token, n_head, n_in]
 *   weight  int8    [n_head, n_out, n_in]
 *   scale   float32 [n_head, n_out]
 *   y       float32 [n_token, n_head, y_stride], of which the first n_out are written; overlaps nothing else
 * Pointers need their element's alignment (1 or 4 bytes), no more. The weights are read once for every 16 or
 * 32 tokens, so one token takes as long as the memory does.
 *
 * Rounding. Sums are of int8 products in integers: x is rounded to 16 bits of the largest in each 512 channels of a
 * token and head, an error below max|x| / 65024 each, where int8 weights are off by up to max|W| / 254. A NaN or an infinity in x
 * gives NaN in every output of its token and head. EDGEQKV_ISA_SCALAR does not round x and sums in float64.
 *
 * Threads. As in edgeqkv_attention.h; work is cut over heads and outputs, and results do not depend on `n_thread`.
 */
#ifndef EDGEQKV_HEAD_LINEAR_H
#define EDGEQKV_HEAD_LINEAR_H

#include "edgeqkv_attention.h"

#ifdef __cplusplus
extern "C" {
#endif

typedef struct {
  uint32_t size;    /* sizeof(edgeqkv_head_linear_args) */
  int32_t n_head;   /* >= 1 */
  int32_t n_in;     /* a multiple of 16, up to 2048 */
  int32_t n_out;    /* 1 .. 65536 */
  int32_t y_stride; /* at least n_out; 0: n_out */
  int32_t n_token;  /* >= 1 */
  int32_t isa;      /* EDGEQKV_ISA_AUTO outside of tests */
  const float* x;
  const int8_t* weight;
  const float* scale;
  float* y;
} edgeqkv_head_linear_args;

/* Returns what edgeqkv_attention returns: EDGEQKV_OK, _BAD_ARGUMENT, _NO_MEMORY or _NO_ISA. Never throws, never aborts. */
EDGEQKV_API int32_t edgeqkv_head_linear(const edgeqkv_head_linear_args* args, edgeqkv_parallel_for parallel_for, void* context,
                                        int32_t n_thread);

#ifdef __cplusplus
}
#endif
#endif
