/* What it costs to go on with a conversation: prefilling it again against saving, restoring and forking its session.
 *
 *   cc resume.c $(pkg-config --cflags --libs edgeqkv) -o resume
 *   ./resume BUNDLE DEPTH FILE         FILE is written
 *
 * Prints one line of JSON, seconds and bytes. EDGEQKV_ONNXRUNTIME and EDGEQKV_EXECUTORCH as in generate.c.
 */
#define _POSIX_C_SOURCE 199309L /* clock_gettime */
#include <edgeqkv.h>
#include <stdio.h>
#include <stdlib.h>
#include <time.h>

static double now(void) {
  struct timespec time;
  clock_gettime(CLOCK_MONOTONIC, &time);
  return (double)time.tv_sec + (double)time.tv_nsec / 1e9;
}

static void must(int32_t code) {
  if (!code) return;
  fprintf(stderr, "resume: %s\n", edgeqkv_error());
  exit(code);
}

int main(int argc, char** argv) {
  if (argc != 4) {
    fprintf(stderr, "usage: resume BUNDLE DEPTH FILE\n");
    return 2;
  }
  edgeqkv_open_options options = {.size = sizeof options,
                                  .threads = 1,
                                  .onnxruntime_library = getenv("EDGEQKV_ONNXRUNTIME"),
                                  .executorch_library = getenv("EDGEQKV_EXECUTORCH")};
  edgeqkv_bundle* bundle = NULL;
  edgeqkv_session *session = NULL, *other = NULL, *fork = NULL;
  edgeqkv_bundle_info info = {.size = sizeof info};
  must(edgeqkv_bundle_open(argv[1], &options, &bundle));
  must(edgeqkv_bundle_describe(bundle, &info));
  must(edgeqkv_session_open(bundle, &session));
  must(edgeqkv_session_open(bundle, &other));

  const size_t depth = (size_t)atoi(argv[2]);
  int64_t* ids = malloc((depth + 1) * sizeof *ids);
  for (size_t i = 0; i < depth; i++) ids[i] = (int64_t)(i * 7919 % (size_t)info.token_count);
  double times[5] = {now()};
  must(edgeqkv_session_prefill(session, ids, depth, NULL));
  times[1] = now();
  must(edgeqkv_session_save(session, argv[3]));
  times[2] = now();
  must(edgeqkv_session_restore(other, argv[3]));
  times[3] = now();
  must(edgeqkv_session_fork(session, &fork));
  times[4] = now();

  FILE* file = fopen(argv[3], "rb");
  fseek(file, 0, SEEK_END);
  printf("{\"variant\": \"%s\", \"cache\": \"%s\", \"depth\": %zu, \"file_bytes\": %ld, ", info.variant, info.cache_dtype,
         depth, ftell(file));
  printf("\"prefill_s\": %.6f, \"save_s\": %.6f, \"restore_s\": %.6f, \"fork_s\": %.6f}\n", times[1] - times[0],
         times[2] - times[1], times[3] - times[2], times[4] - times[3]);
  fclose(file);
  free(ids);
  edgeqkv_session_close(fork);
  edgeqkv_session_close(other);
  edgeqkv_session_close(session);
  edgeqkv_bundle_close(bundle);
  return 0;
}
