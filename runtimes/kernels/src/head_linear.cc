// The entry point of head linear: checks, and the cut over heads and outputs.
#include "edgeqkv_head_linear.h"

#include "path.h"
#include "task.h"

namespace edgeqkv {
namespace {

struct Call {
  edgeqkv_head_linear_args args;
  const Path* path;
  int n_split;  // parts of the outputs of each head
  std::atomic<bool> no_memory{false};
};

void task(void* arg, int32_t i) {
  Call& call = *static_cast<Call*>(arg);
  float* scratch = thread_scratch(call.path->head_linear_floats(call.args));
  if (!scratch) {
    call.no_memory = true;
    return;
  }
  // In sixteens, so that only the last part may end with less than a vector.
  int head = i / call.n_split, split = i % call.n_split, sixteens = (call.args.n_out + 15) / 16;
  int begin = int(int64_t(sixteens) * split / call.n_split) * 16,
      end = int(int64_t(sixteens) * (split + 1) / call.n_split) * 16;
  call.path->head_linear(call.args, head, begin, end < call.args.n_out ? end : call.args.n_out, scratch);
}

bool valid(const edgeqkv_head_linear_args& a) {
  bool shape =
      a.n_head >= 1 && a.n_token >= 1 && a.n_out >= 1 && a.n_out <= 65536 && (a.y_stride == 0 || a.y_stride >= a.n_out);
  bool rows = a.n_in >= 16 && a.n_in <= kMaxRow && a.n_in % 16 == 0;
  return shape && rows && a.x && a.weight && a.scale && a.y && int64_t(a.n_token) * a.n_head <= INT32_MAX / 64;
}

}  // namespace
}  // namespace edgeqkv

using namespace edgeqkv;

extern "C" int32_t edgeqkv_head_linear(const edgeqkv_head_linear_args* args, edgeqkv_parallel_for parallel_for, void* context,
                                       int32_t n_thread) {
  if (!args || args->size != sizeof *args || !valid(*args)) return EDGEQKV_BAD_ARGUMENT;
  int isa = resolve_isa(args->isa);
  if (isa < 0) return EDGEQKV_NO_ISA;
  const Parallel parallel(parallel_for, context, n_thread);
  Call call;
  call.args = *args;
  if (args->y_stride == 0) call.args.y_stride = args->n_out;
  call.path = path_of(isa);
  int64_t products = int64_t(args->n_token) * args->n_in * args->n_out;
  call.n_split = parts_of(args->n_head, products, parallel.n_thread, (args->n_out + 15) / 16);
  parallel.run(args->n_head * call.n_split, task, &call);
  return call.no_memory ? EDGEQKV_NO_MEMORY : EDGEQKV_OK;
}
