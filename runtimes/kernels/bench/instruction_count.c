// A plugin of qemu-user that counts the guest's executed instructions and prints the total when the program ends.
//
//   qemu-aarch64 -plugin instruction_count.so,out=FILE program      (without out: to stderr)
//
// A block of guest code adds its length each time it runs. Debian ships no plugin header: these are the prototypes of
// qemu-plugin.h, interface version 1, that are used here. qemu's static builds load no plugins.
#include <inttypes.h>
#include <stddef.h>
#include <stdint.h>
#include <stdio.h>
#include <string.h>

#define EXPORT __attribute__((visibility("default")))

typedef uint64_t qemu_plugin_id_t;
struct qemu_plugin_tb;
struct qemu_info;
enum { QEMU_PLUGIN_INLINE_ADD_U64 = 0 };

void qemu_plugin_register_vcpu_tb_trans_cb(qemu_plugin_id_t, void (*)(qemu_plugin_id_t, struct qemu_plugin_tb*));
void qemu_plugin_register_vcpu_tb_exec_inline(struct qemu_plugin_tb*, int op, void* counter, uint64_t add);
void qemu_plugin_register_atexit_cb(qemu_plugin_id_t, void (*)(qemu_plugin_id_t, void*), void*);
size_t qemu_plugin_tb_n_insns(const struct qemu_plugin_tb*);

EXPORT int qemu_plugin_version = 1;

static uint64_t count;  // of all threads; additions of two at once may be lost, so count programs of one thread
static char path[4096];

static void translated(qemu_plugin_id_t id, struct qemu_plugin_tb* block) {
  (void)id;
  qemu_plugin_register_vcpu_tb_exec_inline(block, QEMU_PLUGIN_INLINE_ADD_U64, &count, qemu_plugin_tb_n_insns(block));
}

static void at_exit(qemu_plugin_id_t id, void* data) {
  (void)id, (void)data;
  FILE* out = path[0] ? fopen(path, "w") : stderr;
  if (!out) {
    perror(path);
    return;
  }
  fprintf(out, "%" PRIu64 "\n", count);
  if (out != stderr) fclose(out);
}

EXPORT int qemu_plugin_install(qemu_plugin_id_t id, const struct qemu_info* info, int argc, char** argv) {
  (void)info;
  for (int i = 0; i < argc; i++) {
    if (strncmp(argv[i], "out=", 4) || strlen(argv[i] + 4) >= sizeof path) {
      fprintf(stderr, "instruction_count: unknown argument %s\n", argv[i]);
      return -1;
    }
    strcpy(path, argv[i] + 4);
  }
  qemu_plugin_register_vcpu_tb_trans_cb(id, translated);
  qemu_plugin_register_atexit_cb(id, at_exit, NULL);
  return 0;
}
