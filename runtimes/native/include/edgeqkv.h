/* edgeqkv: run a bundle that `edgeqkv export` wrote, in a process of your own.
 *
 * A bundle is opened once; it holds the weights, and never changes. Over it, any number of sessions are opened; each holds one
 * cache, the tokens that fill it, and the logits after the last one. docs/sessions.md has the rules that sessions follow in
 * every language.
 *
 *     edgeqkv_bundle* bundle = NULL;
 *     edgeqkv_session* session = NULL;
 *     if (edgeqkv_bundle_open("bundle", NULL, &bundle) || edgeqkv_session_open(bundle, &session))
 *       fprintf(stderr, "%s\n", edgeqkv_error());
 *
 * Errors. Functions that return int32_t return EDGEQKV_SUCCESS (0) or one of the codes below, and then edgeqkv_error() is one
 * sentence that says what was wrong. A call that is refused changes nothing; one that fails part way leaves the depth as it was
 * (edgeqkv_session_feed: that of the prefix that it kept) and no logits. Nothing throws, aborts or prints. NULL where a
 * pointer is needed is EDGEQKV_BAD_INPUT; NULL is fine where a comment says so, and for every *_close.
 *
 * Threads. A bundle may be used from any threads at once. A session is for one thread at a time: a call on a session that
 * another thread is using, or from inside its own callback, returns EDGEQKV_BUSY. Only edgeqkv_session_depth and
 * edgeqkv_session_cancel may be called at any time. Different sessions may run at once. Closing what another thread may still
 * be about to use is the caller's mistake.
 *
 * Ownership. What an *_open or fork gives is yours until the matching *_close. Strings and arrays inside of a bundle's info
 * live as long as the bundle. Sessions keep alive what they need, so bundle and sessions may be closed in any order. Arguments
 * are copied.
 *
 * Trust. A bundle may come from anywhere: what its manifest says is checked, and every file that is opened is compared with its
 * sha256 there. A digest that was computed once is remembered in the process and taken for granted while the file's path,
 * device, inode, size, modification and change times stay what they were; a file that changed less than two seconds ago is read
 * again. The runtime opens the files again by their names, so whoever can write to the bundle's folder while it is being opened
 * is trusted.
 *
 * Environment. The library itself uses no network, and writes no file but the one that edgeqkv_session_save is given. ONNX
 * Runtime would send telemetry and leave files in the user's home. Its switch is the variable ORT_DISABLE_TELEMETRY, which the
 * library sets to 1 in the environment of the process right before it loads ONNX Runtime (setenv is not safe while another
 * thread calls getenv: an app that minds sets the variable itself, first thing in main, and the library then leaves the
 * environment alone). An app that loads ONNX Runtime before has to set it before that.
 *
 * Token ids are int64_t, 0 <= id < token_count. Texts and file names are UTF-8, ended by a zero unless a size is given with
 * them. Sizes are bytes.
 */
#ifndef EDGEQKV_H
#define EDGEQKV_H

#include <stddef.h>
#include <stdint.h>

#if defined(__GNUC__)
#define EDGEQKV_EXPORT __attribute__((visibility("default")))
#else
#define EDGEQKV_EXPORT
#endif

#ifdef __cplusplus
extern "C" {
#endif

/* What functions return. */
enum {
  EDGEQKV_SUCCESS = 0,
  EDGEQKV_CHECK_FAILED = 1, /* the runtime failed, or its logits are not finite */
  EDGEQKV_BAD_INPUT = 2,    /* an argument or a file is wrong */
  EDGEQKV_MISSING = 3,      /* the environment lacks something: a library, an operator, memory */
  EDGEQKV_CACHE_FULL = 4,   /* more tokens than the capacity holds */
  EDGEQKV_BUSY = 5,         /* another thread is using this session */
  EDGEQKV_CANCELLED = 6     /* edgeqkv_session_cancel was called; the depth is that before the call */
};

typedef struct edgeqkv_bundle edgeqkv_bundle;
typedef struct edgeqkv_session edgeqkv_session;

/* The version of this library, "0.2.0". */
EDGEQKV_EXPORT const char* edgeqkv_version(void);

/* The sentence of the last call that failed on this thread, "" before any; valid until the next that fails on it. */
EDGEQKV_EXPORT const char* edgeqkv_error(void);

/* ---- Bundles ---- */

/* Every struct begins with its size, which the caller sets to sizeof, so that later versions can add members at the end. In
 * structs that are handed in, zero and NULL are the defaults. */
typedef struct {
  size_t size;                     /* sizeof(edgeqkv_open_options) */
  const char* runtime;             /* "onnx" or "executorch"; NULL: the bundle's first that can run here */
  const char* kernel;              /* "fused" or "stock"; NULL: the bundle's first that can run here */
  int32_t threads;                 /* 0: the runtime's choice; at most 256. ExecuTorch has one number for the whole process */
  int32_t unchecked;               /* not 0: do not compare files with their sha256 (the caller has done it) */
  const char* onnxruntime_library; /* path of libonnxruntime.so, 1.23 or newer; NULL: as the dynamic linker finds it. The first
                                    * one that is loaded serves the whole process */
  const char* executorch_library;  /* path of libedgeqkv_executorch.so; NULL likewise */
} edgeqkv_open_options;

typedef struct {
  size_t size;                 /* sizeof(edgeqkv_bundle_info) */
  const char* variant;         /* "Q-MQA", ... */
  const char* runtime;         /* the artifact that was opened */
  const char* runtime_version; /* of the library in use */
  const char* kernel;
  const char* weights;           /* "int8", ... */
  const char* cache_dtype;       /* "fp32", "fp16" or "int8" */
  const char* tokenizer_missing; /* why edgeqkv_bundle_encode and _decode are refused; NULL: they work */
  int64_t capacity;              /* positions of a session's cache */
  int64_t vocab_size;            /* length of the logits */
  int64_t token_count;           /* ids that exist; the rest of the logits is padding */
  int64_t prefill_chunk;         /* tokens that are run at once */
  int64_t cache_bytes;           /* of one session's cache with all scales; pages become resident as rows are written */
  const int64_t* end_tokens;     /* ids that end a generation */
  size_t n_end_tokens;
  double check_seconds; /* what comparing the files with their sha256 took; about 0 where all were known */
} edgeqkv_bundle_info;

/* Opens the bundle in `folder` and loads its weights. `options` may be NULL. */
EDGEQKV_EXPORT int32_t edgeqkv_bundle_open(const char* folder, const edgeqkv_open_options* options, edgeqkv_bundle** bundle);

EDGEQKV_EXPORT void edgeqkv_bundle_close(edgeqkv_bundle* bundle);

EDGEQKV_EXPORT int32_t edgeqkv_bundle_describe(const edgeqkv_bundle* bundle, edgeqkv_bundle_info* info);

/* The same as a JSON object, with "chat_template" (Jinja, or null) and "special_tokens" of the manifest; NULL for NULL. */
EDGEQKV_EXPORT const char* edgeqkv_bundle_json(const edgeqkv_bundle* bundle);

/* Text to ids and back, where the bundle's tokenizer is one that this library knows (byte-level BPE); EDGEQKV_MISSING
 * otherwise. At most `capacity` ids or bytes are written; *n is how many there are, so that capacity 0 asks for the size. No
 * zero is added. In the text, special tokens are recognised as such; with `add_special` not 0, those that the tokenizer puts
 * around a text (the beginning-of-text token, say) are added, which a chat template does itself. decode leaves special tokens
 * out. */
EDGEQKV_EXPORT int32_t edgeqkv_bundle_encode(const edgeqkv_bundle* bundle, const char* text, size_t text_bytes,
                                             int32_t add_special, int64_t* ids, size_t capacity, size_t* n);
EDGEQKV_EXPORT int32_t edgeqkv_bundle_decode(const edgeqkv_bundle* bundle, const int64_t* ids, size_t n_ids, char* text,
                                             size_t capacity, size_t* n);

/* ---- Sessions ---- */

/* ONNX Runtime: sessions share the weights and the pool of threads. ExecuTorch: each loads the program again over the same file
 * pages and packed weights; its activations are its own. */
EDGEQKV_EXPORT int32_t edgeqkv_session_open(const edgeqkv_bundle* bundle, edgeqkv_session** session);

/* EDGEQKV_BUSY, and nothing is closed, while another thread is inside of a call. */
EDGEQKV_EXPORT int32_t edgeqkv_session_close(edgeqkv_session* session);

/* How many positions are filled; -1 for NULL. */
EDGEQKV_EXPORT int64_t edgeqkv_session_depth(const edgeqkv_session* session);

/* The ids that the session holds, *n = depth of them; at most `capacity` are written. */
EDGEQKV_EXPORT int32_t edgeqkv_session_tokens(edgeqkv_session* session, int64_t* ids, size_t capacity, size_t* n);

/* The logits after the last token, float32 [vocab_size], valid until the next call on this session; *logits = NULL where there
 * are none. */
EDGEQKV_EXPORT int32_t edgeqkv_session_logits(edgeqkv_session* session, const float** logits);

/* Appends ids[0 .. n), n >= 1. `logits` (may be NULL) as in edgeqkv_session_logits. */
EDGEQKV_EXPORT int32_t edgeqkv_session_prefill(edgeqkv_session* session, const int64_t* ids, size_t n, const float** logits);

/* Appends one id. */
EDGEQKV_EXPORT int32_t edgeqkv_session_step(edgeqkv_session* session, int64_t id, const float** logits);

/* Makes the session hold exactly ids[0 .. n), n >= 1: keeps the longest prefix that it already holds and prefills the rest;
 * where nothing is left, the last token is run again. */
EDGEQKV_EXPORT int32_t edgeqkv_session_feed(edgeqkv_session* session, const int64_t* ids, size_t n, const float** logits);

/* Keeps the first `depth` tokens, 0 <= depth <= the current depth. There are no logits until the next token is run. */
EDGEQKV_EXPORT int32_t edgeqkv_session_rewind(edgeqkv_session* session, int64_t depth);

/* Rewinds to depth 0. */
EDGEQKV_EXPORT int32_t edgeqkv_session_reset(edgeqkv_session* session);

/* Stops what another thread is running on this session, in mid-token. prefill, feed and step return EDGEQKV_CANCELLED, and are
 * then calls that failed part way; generate stops with EDGEQKV_STOP_CANCELLED, and the tokens that it fed before are held. ONNX
 * Runtime notices before its next node; ExecuTorch at the next layer, or, with a stock kernel, after the piece of a prompt that
 * is running. Without effect when nothing runs, and on the next call. Takes no lock and no memory, so that a signal handler may
 * call it. */
EDGEQKV_EXPORT void edgeqkv_session_cancel(edgeqkv_session* session);

/* For measurements: counts `n` more positions as filled, with token 0 and rows of zeros, which are written and so become
 * resident. */
EDGEQKV_EXPORT int32_t edgeqkv_session_skip(edgeqkv_session* session, int64_t n);

/* ---- Generation ---- */

typedef struct {
  size_t size;               /* sizeof(edgeqkv_generate_options) */
  int64_t limit;             /* tokens at most; 0: until the cache is full */
  double temperature;        /* 0: the most likely token each time */
  int32_t top_k;             /* 0: all */
  double top_p;              /* within (0, 1]; 0: 1, all */
  double repetition_penalty; /* > 0; 0: 1, none */
  uint64_t seed;
  const int64_t* end_tokens; /* ids that end the generation besides the bundle's; NULL where n_end_tokens is 0 */
  size_t n_end_tokens;
  int32_t ignore_end_tokens; /* not 0: the bundle's end tokens are tokens like any other */
} edgeqkv_generate_options;

/* Why a generation stopped. */
enum { EDGEQKV_STOP_LIMIT = 1, EDGEQKV_STOP_END_TOKEN = 2, EDGEQKV_STOP_FULL = 3, EDGEQKV_STOP_CANCELLED = 4 };

/* Called on the calling thread with each token before it is fed. `text` is what the token adds, `text_bytes` of whole UTF-8
 * characters (a character that several tokens spell comes with the last of them); empty where the tokenizer is not known. Bytes
 * that a generation leaves unfinished come at its end as U+FFFD, with id -1. Anything but 0 stops the generation. */
typedef int32_t (*edgeqkv_on_token)(void* user, int64_t id, const char* text, size_t text_bytes);

/* Appends ids[0 .. n), then samples tokens, hands them to `on_token` and feeds them. n = 0 (ids may be NULL) goes on from the
 * logits that the session has. An end token is neither handed out nor fed; the last token is not fed. `options` may be NULL:
 * greedy, until the end. `stopped` (may be NULL) is one of EDGEQKV_STOP_*. */
EDGEQKV_EXPORT int32_t edgeqkv_session_generate(edgeqkv_session* session, const int64_t* ids, size_t n,
                                                const edgeqkv_generate_options* options, edgeqkv_on_token on_token, void* user,
                                                int32_t* stopped);

/* ---- Sessions as files and copies ---- */

/* Writes tokens, filled rows and logits to `path`, whole or not at all (docs/session-file.md). */
EDGEQKV_EXPORT int32_t edgeqkv_session_save(edgeqkv_session* session, const char* path);

/* Takes over what `path` holds. A file of another bundle, artifact or cache, a truncated or a changed one is refused before the
 * session is touched. Takes as much memory as the file is long until it returns. */
EDGEQKV_EXPORT int32_t edgeqkv_session_restore(edgeqkv_session* session, const char* path);

/* A second session over the same weights, with a copy of the tokens, the filled rows and the logits. */
EDGEQKV_EXPORT int32_t edgeqkv_session_fork(edgeqkv_session* session, edgeqkv_session** fork);

/* ---- Memory ---- */

/* Of the whole process, by the system's own accounts, in bytes; -1 is unknown (all of them, where there is no /proc). */
typedef struct {
  size_t size;         /* sizeof(edgeqkv_memory_info) */
  int64_t peak_rss;    /* the most that was ever resident */
  int64_t rss;         /* resident now, shared pages included */
  int64_t pss;         /* the same, shared pages divided by their users */
  int64_t private_rss; /* pages that this process alone has */
} edgeqkv_memory_info;

EDGEQKV_EXPORT int32_t edgeqkv_memory(edgeqkv_memory_info* memory);

#ifdef __cplusplus
}
#endif
#endif
