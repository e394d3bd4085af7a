/* Continues a prompt with a bundle, through libedgeqkv.
 *
 *   cc generate.c $(pkg-config --cflags --libs edgeqkv) -o generate
 *   ./generate BUNDLE "Once upon a time" 100
 *
 * EDGEQKV_ONNXRUNTIME and EDGEQKV_EXECUTORCH may name the runtimes' libraries, where the dynamic linker does not find them.
 */
#include <edgeqkv.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

enum { MOST_IDS = 4096 };

static int32_t print_token(void* user, int64_t id, const char* text, size_t text_bytes) {
  const edgeqkv_bundle_info* info = user;
  if (!info->tokenizer_missing)
    fwrite(text, 1, text_bytes, stdout);
  else
    printf("%lld ", (long long)id);
  fflush(stdout);
  return 0; /* anything else stops */
}

int main(int argc, char** argv) {
  if (argc < 3) {
    fprintf(stderr, "usage: generate BUNDLE PROMPT [TOKENS]\n");
    return 2;
  }
  edgeqkv_open_options options = {.size = sizeof options,
                                  .onnxruntime_library = getenv("EDGEQKV_ONNXRUNTIME"),
                                  .executorch_library = getenv("EDGEQKV_EXECUTORCH")};
  edgeqkv_bundle* bundle = NULL;
  edgeqkv_session* session = NULL;
  edgeqkv_bundle_info info = {.size = sizeof info};
  int64_t ids[MOST_IDS];
  size_t n = 0;
  edgeqkv_generate_options how = {
      .size = sizeof how, .limit = argc > 3 ? atoi(argv[3]) : 100, .temperature = 0.6, .top_k = 40, .seed = 7};

  int32_t code = edgeqkv_bundle_open(argv[1], &options, &bundle);
  if (!code) code = edgeqkv_bundle_describe(bundle, &info);
  if (!code) code = edgeqkv_session_open(bundle, &session);
  if (!code) code = edgeqkv_bundle_encode(bundle, argv[2], strlen(argv[2]), 1, ids, MOST_IDS, &n);
  if (!code) fprintf(stderr, "%s on %s %s\n", info.variant, info.runtime, info.runtime_version);
  if (!code) code = edgeqkv_session_generate(session, ids, n < MOST_IDS ? n : MOST_IDS, &how, print_token, &info, NULL);
  if (code) fprintf(stderr, "generate: %s\n", edgeqkv_error());
  puts("");
  edgeqkv_session_close(session);
  edgeqkv_bundle_close(bundle);
  return code;
}
