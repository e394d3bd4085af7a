// The entry point of attention: checks, and the cut of the work into items.
#include <cmath>
#include <memory>
#include <new>

#include "attention.h"

namespace edgeqkv {
namespace {

// Everything the tasks of one call share.
struct Call {
  edgeqkv_attention_args args;
  const Path* path;
  int n_block;    // blocks of query rows for each KV head
  int n_split;    // parts of the sequence for each block
  float* splits;  // [n_kv_head * n_block * n_split] states of split_floats() each; null if n_split is 1
  std::atomic<bool> no_memory{false};

  int group() const { return args.n_head / args.n_kv_head; }
  int rows() const { return args.n_token * group(); }
  size_t split_floats() const { return size_t(kBlockRows) * (size_t(args.value_dim) + 2); }
};

// Divides a block's state by its sum and writes it to `out`.
void finish(const Call& call, const Item& item) {
  const edgeqkv_attention_args& a = call.args;
  for (int r = 0; r < item.n_row; r++) {
    int row = item.row0 + r, head = item.kv_head * call.group() + row % call.group();
    float* out = a.out + (size_t(row / call.group()) * size_t(a.n_head) + size_t(head)) * size_t(a.value_dim);
    const float* acc = item.acc + size_t(r) * size_t(a.value_dim);
    for (int d = 0; d < a.value_dim; d++) out[d] = acc[d] / item.sum[r];
  }
}

// Item `block` (of all KV heads), part `split` of its positions; the state's place is the caller's to fill in.
Item make_item(const Call& call, int block, int split) {
  Item item = {};
  item.kv_head = block / call.n_block;
  item.row0 = block % call.n_block * kBlockRows;
  item.n_row = call.rows() - item.row0 < kBlockRows ? call.rows() - item.row0 : kBlockRows;
  int n_key = call.args.position + (item.row0 + item.n_row - 1) / call.group() + 1;  // what its last row sees
  item.key0 = int(int64_t(n_key) * split / call.n_split);
  item.key1 = int(int64_t(n_key) * (split + 1) / call.n_split);
  return item;
}

void place_state(const Call& call, Item& item, float* at) {
  item.acc = at;
  item.max = at + size_t(kBlockRows) * size_t(call.args.value_dim);
  item.sum = item.max + kBlockRows;
}

void attend_task(void* arg, int32_t i) {
  Call& call = *static_cast<Call*>(arg);
  size_t state = (call.split_floats() + 15) & ~size_t(15);
  float* scratch = thread_scratch(state + call.path->scratch_floats(call.args));
  if (!scratch) {
    call.no_memory = true;
    return;
  }
  Item item = make_item(call, i / call.n_split, i % call.n_split);
  item.scratch = scratch + state;
  place_state(call, item, call.splits ? call.splits + size_t(i) * call.split_floats() : scratch);
  call.path->attend(call.args, item);
  if (!call.splits) finish(call, item);
}

// Folds the states of one block's parts into the first and finishes it.
void merge(const Call& call, int block) {
  Item all = make_item(call, block, 0);
  size_t first = size_t(block) * size_t(call.n_split), dim = size_t(call.args.value_dim);
  place_state(call, all, call.splits + first * call.split_floats());
  for (int s = 1; s < call.n_split; s++) {
    Item part = all;
    place_state(call, part, call.splits + (first + size_t(s)) * call.split_floats());
    for (int r = 0; r < all.n_row; r++) {
      float max = part.max[r] > all.max[r] ? part.max[r] : all.max[r];
      float keep = std::exp2(all.max[r] - max), take = std::exp2(part.max[r] - max);
      float *x = all.acc + size_t(r) * dim, *y = part.acc + size_t(r) * dim;
      for (size_t d = 0; d < dim; d++) x[d] = x[d] * keep + y[d] * take;
      all.sum[r] = all.sum[r] * keep + part.sum[r] * take;
      all.max[r] = max;
    }
  }
  finish(call, all);
}

bool in_range(int64_t x, int64_t low, int64_t high) { return x >= low && x <= high && x % 8 == 0; }

int check(const edgeqkv_attention_args& a) {
  if (a.size != sizeof a) return EDGEQKV_BAD_ARGUMENT;
  bool heads = a.n_kv_head >= 1 && a.n_head >= 1 && a.n_head % a.n_kv_head == 0;
  bool rows = in_range(a.row_dim, 8, kMaxRow) && in_range(a.key_dim, 8, a.row_dim) && in_range(a.value_dim, 8, kMaxRow);
  bool slices =
      a.v ? a.key_dim == a.row_dim && a.value_start == 0 : in_range(a.value_start, 0, int64_t(a.row_dim) - a.value_dim);
  bool times = a.capacity >= 1 && a.capacity <= 1 << 30 && a.position >= 0 && a.n_token >= 1;
  if (!heads || !rows || !slices || !times || a.dtype < EDGEQKV_FP32 || a.dtype > EDGEQKV_INT8) return EDGEQKV_BAD_ARGUMENT;
  if (!a.q || !a.k || !a.k_cache || !a.out || (a.v && !a.v_cache)) return EDGEQKV_BAD_ARGUMENT;
  if (a.dtype == EDGEQKV_INT8) {
    if (!in_range(a.scale_split, 0, a.v ? 0 : a.row_dim - 8)) return EDGEQKV_BAD_ARGUMENT;
    if (!a.k_scale || (a.v && !a.v_scale)) return EDGEQKV_BAD_ARGUMENT;
  }
  if (int64_t(a.position) + a.n_token > a.capacity) return EDGEQKV_PAST_CAPACITY;
  // Task and row numbers are 32-bit integers.
  if (int64_t(a.n_token) * a.n_head > INT32_MAX / 64) return EDGEQKV_BAD_ARGUMENT;
  return EDGEQKV_OK;
}

#if defined(EDGEQKV_X86)
// Whether each slice of a row is whole vectors of n channels.
bool multiples_of(const edgeqkv_attention_args& a, int n) {
  return a.row_dim % n == 0 && a.key_dim % n == 0 && a.value_start % n == 0 && a.value_dim % n == 0 && a.scale_split % n == 0;
}
#endif

}  // namespace

int32_t prepare(edgeqkv_attention_args& a, const Path** path) {
  if (int error = check(a)) return error;
  int isa = resolve_isa(a.isa);
  if (isa < 0) return EDGEQKV_NO_ISA;
  if (a.scale == 0) a.scale = 1 / std::sqrt(float(a.key_dim));
  if (a.dtype != EDGEQKV_INT8) a.scale_split = 0;
#if defined(EDGEQKV_X86)
  if (isa == EDGEQKV_ISA_AVX512 && !multiples_of(a, 16))
    isa = resolve_isa(EDGEQKV_ISA_AVXVNNI) > 0 ? EDGEQKV_ISA_AVXVNNI : EDGEQKV_ISA_AVX2;
#endif
  *path = path_of(isa);
  return EDGEQKV_OK;
}

void append_rows(const edgeqkv_attention_args& a, const Path& path, const Parallel& parallel) {
  struct Rows {
    const edgeqkv_attention_args& a;
    const Path& path;
  } rows = {a, path};
  auto task = [](void* arg, int32_t kv_head) {
    const Rows& r = *static_cast<Rows*>(arg);
    r.path.append(r.a, kv_head);
  };
  // A single new row is not worth waking a thread.
  (a.n_token > 1 ? parallel : Parallel()).run(a.n_kv_head, task, &rows);
}

int32_t attend_rows(const edgeqkv_attention_args& a, const Path& path, const Parallel& parallel) {
  Call call;
  call.args = a;
  call.path = &path;
  call.n_block = (call.rows() + kBlockRows - 1) / kBlockRows;
  int n_item = a.n_kv_head * call.n_block;
  // Products of the last block, which sees the most.
  int64_t seen = int64_t(a.position) + a.n_token, rows = call.rows() < kBlockRows ? call.rows() : kBlockRows;
  call.n_split = parts_of(n_item, seen * rows * (a.key_dim + a.value_dim), parallel.n_thread, seen);
  std::unique_ptr<float[]> splits;
  if (call.n_split > 1) {
    splits.reset(new (std::nothrow) float[size_t(n_item) * size_t(call.n_split) * call.split_floats()]);
    if (!splits) return EDGEQKV_NO_MEMORY;
  }
  call.splits = splits.get();
  parallel.run(n_item * call.n_split, attend_task, &call);
  if (call.no_memory) return EDGEQKV_NO_MEMORY;
  for (int block = 0; call.splits && block < n_item; block++) merge(call, block);
  return EDGEQKV_OK;
}

}  // namespace edgeqkv

using namespace edgeqkv;

extern "C" int32_t edgeqkv_attention(const edgeqkv_attention_args* args, edgeqkv_parallel_for parallel_for, void* context,
                                     int32_t n_thread) {
  if (!args) return EDGEQKV_BAD_ARGUMENT;
  edgeqkv_attention_args a = *args;
  const Path* path = nullptr;
  if (int32_t error = prepare(a, &path)) return error;
  const Parallel parallel(parallel_for, context, n_thread);
  append_rows(a, *path, parallel);
  return attend_rows(a, *path, parallel);
}

extern "C" int32_t edgeqkv_attention_isa(int32_t isa) { return resolve_isa(isa); }

extern "C" const char* edgeqkv_attention_isa_name(int32_t isa) {
  static const char* const names[] = {"auto", "scalar", "avx2", "avx512", "neon", "neon+dot", "avxvnni", "neon+i8mm"};
  return isa >= 0 && isa < EDGEQKV_ISA_COUNT ? names[isa] : "unknown";
}
