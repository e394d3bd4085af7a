// ExecuTorch's pool of threads. The wheel exports it from libexecutorch_threadpool and ships no header, so what is called is
// declared here, as extension/threadpool/threadpool.h of ExecuTorch 1.5.1 has it.
#pragma once

#include <executorch/runtime/core/function_ref.h>

#include <cstddef>
#include <cstdint>

namespace executorch::extension::threadpool {

class ThreadPool {
 public:
  size_t get_thread_count() const;
  // Not while anything runs on the pool.
  bool _unsafe_reset_threadpool(uint32_t threads);
  void run(runtime::FunctionRef<void(size_t)> task, size_t n);
};

ThreadPool* get_threadpool();

}  // namespace executorch::extension::threadpool
