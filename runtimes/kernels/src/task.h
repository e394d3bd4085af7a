// What the entry points share: the caller's threads, scratch memory of a thread, and how finely work is cut.
#pragma once

#include <atomic>
#include <cstdint>
#include <cstdlib>

#include "edgeqkv_attention.h"

namespace edgeqkv {

// Grows and never shrinks.
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

// Of the thread that runs a task, for as long as the task runs; freed when the thread ends.
inline float* thread_scratch(size_t n) {
  static thread_local Scratch scratch;
  return scratch.get(n > 0 ? n : 1);
}

// The caller's threads; without them, the calling thread.
struct Parallel {
  edgeqkv_parallel_for parallel_for = nullptr;
  void* context = nullptr;
  int32_t n_thread = 1;

  Parallel() = default;
  Parallel(edgeqkv_parallel_for run, void* of_run, int32_t threads)
      : parallel_for(run), context(of_run), n_thread(run && threads > 1 ? threads : 1) {}

  void run(int32_t n, void (*task)(void* arg, int32_t i), void* arg) const {
    if (parallel_for) return parallel_for(context, n, task, arg);
    for (int32_t i = 0; i < n; i++) task(arg, i);
  }
};

// Into how many parts each of n_item items of so many products is cut: so many that there are two tasks for each thread and a slow
// core does not hold up the others, but no part of less than what is worth another thread. At most `most`.
inline int parts_of(int64_t n_item, int64_t products, int32_t n_thread, int64_t most) {
  constexpr int64_t kMinProducts = int64_t(1) << 17;  // some microseconds
  if (n_thread <= 1) return 1;
  int64_t wanted = (2 * int64_t(n_thread) + n_item - 1) / n_item, possible = products / kMinProducts;
  if (possible > most) possible = most;
  return int(wanted < possible ? wanted : possible > 1 ? possible : 1);
}

}  // namespace edgeqkv
