/* Goes on with a text where its file stopped, through libedgeqkv: nothing that was read or written before is computed again.
 *
 *   cc resume.c $(pkg-config --cflags --libs edgeqkv) -o resume
 *   ./resume BUNDLE story.session "Once upon a time" 40      begins the story, since there is no such file yet
 *   ./resume BUNDLE story.session "" 40                      goes on with it
 *
 * EDGEQKV_ONNXRUNTIME and EDGEQKV_EXECUTORCH as in generate.c.
 */
#include <edgeqkv.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

enum { MOST_IDS = 4096 };

static int32_t print_token(void* last, int64_t id, const char* text, size_t text_bytes) {
  if (id >= 0) *(int64_t*)last = id;
  fwrite(text, 1, text_bytes, stdout);
  fflush(stdout);
  return 0;
}

int main(int argc, char** argv) {
  if (argc < 4) {
    fprintf(stderr, "usage: resume BUNDLE FILE TEXT [TOKENS]\n");
    return 2;
  }
  edgeqkv_open_options options = {.size = sizeof options,
                                  .onnxruntime_library = getenv("EDGEQKV_ONNXRUNTIME"),
                                  .executorch_library = getenv("EDGEQKV_EXECUTORCH")};
  edgeqkv_generate_options how = {.size = sizeof how, .limit = argc > 4 ? atoi(argv[4]) : 100};
  edgeqkv_bundle* bundle = NULL;
  edgeqkv_session* session = NULL;
  int64_t ids[MOST_IDS], last = -1;
  size_t n = 0;
  int32_t stopped = 0;

  int32_t code = edgeqkv_bundle_open(argv[1], &options, &bundle);
  if (!code) code = edgeqkv_session_open(bundle, &session);
  FILE* saved = fopen(argv[2], "rb");
  if (saved) fclose(saved);
  if (!code && saved) code = edgeqkv_session_restore(session, argv[2]);
  if (!code) code = edgeqkv_bundle_encode(bundle, argv[3], strlen(argv[3]), saved == NULL, ids, MOST_IDS, &n);
  if (!code) code = edgeqkv_session_generate(session, ids, n < MOST_IDS ? n : MOST_IDS, &how, print_token, &last, &stopped);
  puts("");
  /* The last token was handed out and not fed: without it, the file would lack it. */
  if (!code && stopped == EDGEQKV_STOP_LIMIT) code = edgeqkv_session_step(session, last, NULL);
  if (!code) code = edgeqkv_session_save(session, argv[2]);
  if (code) fprintf(stderr, "resume: %s\n", edgeqkv_error());
  edgeqkv_session_close(session);
  edgeqkv_bundle_close(bundle);
  return code;
}
