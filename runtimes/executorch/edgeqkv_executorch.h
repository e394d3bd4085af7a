/* A session on an ExecuTorch program that edgeqkv exported, as a C interface: what Python (engine.py), edgeqkv-run and an app
 * in any language call. No libtorch; the library links the torch-free libraries of the executorch wheel.
 *
 * A program has two methods over one cache, which lives in the session:
 *   decode   ids int64 [1, 1],     position int64 [1]                  -> logits float32 [1, 1, vocab_size]
 *   prefill  ids int64 [1, chunk], position int64 [1], count int64 [1] -> the same, of token count - 1
 * A prefill of fewer than `chunk` tokens is padded here. Padding is never read, and never written, but in a program on
 * ExecuTorch's own attention (export --kernel stock): there position + chunk must fit the cache, or tokens be run one by one.
 *
 * Every function that can fail returns 0, or an exit code (1 computing failed, 2 the file is wrong, 3 the environment lacks
 * something) with one sentence in `error`, cut to `error_size` bytes and always ended by a zero. Nothing throws or aborts.
 * A session is for one thread at a time, and refuses a second (2), but for stop; several sessions may run at once, on any
 * threads.
 */
#ifndef EDGEQKV_EXECUTORCH_H
#define EDGEQKV_EXECUTORCH_H

#include <stddef.h>
#include <stdint.h>

#if defined(__GNUC__)
#define EDGEQKV_EXECUTORCH_API __attribute__((visibility("default")))
#else
#define EDGEQKV_EXECUTORCH_API
#endif

#ifdef __cplusplus
extern "C" {
#endif

typedef struct edgeqkv_executorch edgeqkv_executorch;

/* What a program is made for, read from the program itself. `cache_bytes` are those of the cache tensors; `arena_bytes` what
 * the session has reserved for both methods, the cache among it. Pages of the cache become resident when rows are first
 * written. */
typedef struct {
  int32_t chunk, vocab_size;
  int64_t cache_bytes, arena_bytes;
} edgeqkv_executorch_info;

/* The version of ExecuTorch that this library was built with, and needs. */
EDGEQKV_EXECUTORCH_API const char* edgeqkv_executorch_version(void);

/* Loads a .pte file. ExecuTorch has one pool of threads for the process: `threads` sets its size when no other session is open,
 * and is refused when those that are run on another number; 0 takes the pool as it is. */
EDGEQKV_EXECUTORCH_API int32_t edgeqkv_executorch_open(const char* path, int32_t threads, edgeqkv_executorch** session,
                                                       edgeqkv_executorch_info* info, char* error, size_t error_size);

/* Appends ids[0 .. n), 1 <= n <= chunk, at `position`, which the caller counts; writes the logits of the last one. */
EDGEQKV_EXECUTORCH_API int32_t edgeqkv_executorch_run(edgeqkv_executorch* session, const int64_t* ids, int32_t n,
                                                      int64_t position, float* logits, char* error, size_t error_size);

/* From any thread, at any time: while `on` is not 0, a run ends with 1 at its next attention layer, in mid-token, or, where the
 * attention is ExecuTorch's own or another library's, when it is through. Rows at and after its position are then undefined. */
EDGEQKV_EXECUTORCH_API void edgeqkv_executorch_stop(edgeqkv_executorch* session, int32_t on);

/* Where the session keeps the cache buffer `name` (the program's own name: cache_0_k, cache_0_k_scale, ...), to save and
 * restore its rows: `*bytes` at `*data`, laid out as the manifest says, until the session is closed. Not to be touched while it
 * runs. */
EDGEQKV_EXECUTORCH_API int32_t edgeqkv_executorch_buffer(edgeqkv_executorch* session, const char* name, void** data,
                                                         size_t* bytes, char* error, size_t error_size);

EDGEQKV_EXECUTORCH_API void edgeqkv_executorch_close(edgeqkv_executorch* session);

#ifdef __cplusplus
}
#endif
#endif
