// The entry point: checks, choice of the instruction set, and the cut of the work into items.
#include <atomic>
#include <cmath>
#include <cstdlib>

#include "cpu.h"
#include "path.h"

namespace edgeqkv {
namespace {

constexpr int kMinSplitKeys = 256;  // fewer cached rows than this are not worth another thread

const Path* path_of(int isa) {
  switch (isa) {
    case EDGEQKV_ISA_SCALAR: return &kScalarPath;
#if defined(EDGEQKV_X86)
    case EDGEQKV_ISA_AVX2: return &kAvx2Path;
    case EDGEQKV_ISA_AVX512: return &kAvx512Path;
#elif defined(EDGEQKV_ARM64)
    case EDGEQKV_ISA_NEON: return &kNeonPath;
    case EDGEQKV_ISA_NEON_DOT: return &kNeonDotPath;
#endif
  }
  return nullptr;
}

int resolve(int isa) {
  // Asked once: under a hypervisor each CPUID costs microseconds.
  static const unsigned available = available_isas();
  if (isa == EDGEQKV_ISA_AUTO)
    for (isa = EDGEQKV_ISA_NEON_DOT; !(available >> isa & 1u);) isa--;  // later is better
  return path_of(isa) && (available >> isa & 1u) ? isa : -1;
}

// Grows and never shrinks; freed when its thread ends.
class Scratch {
 public:
  Scratch() = default;
  Scratch(const Scratch&) = delete;
  Scratch& operator=(const Scratch&) = delete;
  ~Scratch() { std::free(block_); }

  // n floats at a 64-byte boundary, or null.
  float* get(size_t n) {
    if (n > size_) {
      std::free(block_);
      block_ = std::malloc(n * sizeof(float) + 64);
      size_ = block_ ? n : 0;
    }
    return block_ ? reinterpret_cast<float*>((reinterpret_cast<uintptr_t>(block_) + 63) & ~uintptr_t(63)) : nullptr;
  }

 private:
  void* block_ = nullptr;
  size_t size_ = 0;
};

thread_local Scratch item_scratch;   // of the thread that runs an item
thread_local Scratch split_scratch;  // of the calling thread: the states that the items of one split leave to be merged

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
  size_t split_floats() const { return size_t(kBlockRows) * (size_t(args.head_dim) + 2); }
};

// Divides a block's state by its sum and writes it to `out`.
void finish(const Call& call, const Item& item) {
  const edgeqkv_attention_args& a = call.args;
  for (int r = 0; r < item.n_row; r++) {
    int row = item.row0 + r, head = item.kv_head * call.group() + row % call.group();
    float* out = a.out + (size_t(row / call.group()) * size_t(a.n_head) + size_t(head)) * size_t(a.head_dim);
    const float* acc = item.acc + size_t(r) * size_t(a.head_dim);
    for (int d = 0; d < a.head_dim; d++) out[d] = acc[d] / item.sum[r];
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
  item.max = at + size_t(kBlockRows) * size_t(call.args.head_dim);
  item.sum = item.max + kBlockRows;
}

void append_task(void* arg, int32_t kv_head) {
  const Call& call = *static_cast<Call*>(arg);
  call.path->append(call.args, kv_head);
}

void attend_task(void* arg, int32_t i) {
  Call& call = *static_cast<Call*>(arg);
  size_t state = (call.split_floats() + 15) & ~size_t(15);
  float* scratch = item_scratch.get(state + call.path->scratch_floats(call.args.head_dim));
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
  size_t first = size_t(block) * size_t(call.n_split), dim = size_t(call.args.head_dim);
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

int check(const edgeqkv_attention_args& a) {
  bool shape = a.n_kv_head >= 1 && a.n_head >= 1 && a.n_head % a.n_kv_head == 0 && a.head_dim >= 8 && a.head_dim <= 1024 &&
               a.head_dim % 8 == 0 && a.capacity >= 1 && a.position >= 0 && a.n_token >= 1 &&
               a.dtype >= EDGEQKV_FP32 && a.dtype <= EDGEQKV_INT8;
  if (!shape || !a.q || !a.k || !a.k_cache || !a.out || (a.v && !a.v_cache)) return EDGEQKV_BAD_ARGUMENT;
  if (a.dtype == EDGEQKV_INT8 && (!a.k_scale || (a.v && !a.v_scale))) return EDGEQKV_BAD_ARGUMENT;
  if (int64_t(a.position) + a.n_token > a.capacity) return EDGEQKV_PAST_CAPACITY;
  // Task and row numbers are 32-bit integers.
  if (int64_t(a.n_token) * a.n_head > INT32_MAX / 64) return EDGEQKV_BAD_ARGUMENT;
  return EDGEQKV_OK;
}

void run_serial(void*, int32_t n, void (*task)(void*, int32_t), void* arg) {
  for (int32_t i = 0; i < n; i++) task(arg, i);
}

}  // namespace
}  // namespace edgeqkv

using namespace edgeqkv;

extern "C" int32_t edgeqkv_attention(const edgeqkv_attention_args* args, edgeqkv_parallel_for parallel_for, void* context,
                                     int32_t n_thread) {
  if (!args) return EDGEQKV_BAD_ARGUMENT;
  if (int error = check(*args)) return error;
  int isa = resolve(args->isa);
  if (isa < 0) return EDGEQKV_NO_ISA;
#if defined(EDGEQKV_X86)
  if (isa == EDGEQKV_ISA_AVX512 && args->head_dim % 16 != 0) isa = EDGEQKV_ISA_AVX2;
#endif
  if (!parallel_for || n_thread < 1) {
    parallel_for = run_serial;
    n_thread = 1;
  }

  Call call;
  call.args = *args;
  if (call.args.scale == 0) call.args.scale = 1 / std::sqrt(float(args->head_dim));
  call.path = path_of(isa);
  call.n_block = (call.rows() + kBlockRows - 1) / kBlockRows;
  int n_item = args->n_kv_head * call.n_block;
  // Twice as many items as threads, so that a slow core does not hold up the others.
  int wanted = n_thread > 1 ? (2 * n_thread + n_item - 1) / n_item : 1;
  int possible = (args->position + args->n_token) / kMinSplitKeys;
  call.n_split = wanted < possible ? wanted : possible > 1 ? possible : 1;
  call.splits = nullptr;
  if (call.n_split > 1) {
    call.splits = split_scratch.get(size_t(n_item) * size_t(call.n_split) * call.split_floats());
    if (!call.splits) return EDGEQKV_NO_MEMORY;
  }

  // A single new row is not worth waking a thread.
  (args->n_token > 1 ? parallel_for : run_serial)(context, args->n_kv_head, append_task, &call);
  parallel_for(context, n_item * call.n_split, attend_task, &call);
  if (call.no_memory) return EDGEQKV_NO_MEMORY;
  for (int block = 0; call.splits && block < n_item; block++) merge(call, block);
  return EDGEQKV_OK;
}

extern "C" int32_t edgeqkv_attention_isa(int32_t isa) { return resolve(isa); }

extern "C" const char* edgeqkv_attention_isa_name(int32_t isa) {
  static const char* const names[] = {"auto", "scalar", "avx2", "avx512", "neon", "neon+dot"};
  return isa >= 0 && isa <= EDGEQKV_ISA_NEON_DOT ? names[isa] : "unknown";
}
