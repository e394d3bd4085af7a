// How a run is ended early: our operator, which every layer of a program has, looks at what the session has set for its thread.
#pragma once

#include <atomic>

namespace edgeqkv::executorch {

// True: the run on this thread is to end. Null where no session of ours runs it.
inline thread_local const std::atomic<bool>* stopped = nullptr;

}  // namespace edgeqkv::executorch
