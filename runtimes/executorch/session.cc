// The session behind edgeqkv_executorch.h, on ExecuTorch's Program and Method: both methods get the same arenas, so that
// prefill and decode share activations and, in an arena of its own, the cache. (Module, one floor up, shares arenas too, but
// fills them with zeros first, which makes every page of the cache resident.)
#include <executorch/extension/data_loader/mmap_data_loader.h>
#include <executorch/extension/memory_allocator/malloc_memory_allocator.h>
#include <executorch/runtime/backend/interface.h>
#include <executorch/runtime/backend/options.h>
#include <executorch/runtime/executor/method.h>
#include <executorch/runtime/executor/program.h>
#include <executorch/runtime/platform/platform.h>
#include <executorch/runtime/platform/runtime.h>

#include <algorithm>
#include <atomic>
#include <cerrno>
#include <cstdio>
#include <cstdlib>
#include <cstring>
#include <memory>
#include <mutex>
#include <new>
#include <optional>
#include <string>
#include <vector>

#include "../native/src/limits.h"
#include "edgeqkv_executorch.h"
#include "stop.h"
#include "threadpool.h"

namespace edgeqkv::executorch {
namespace {

using namespace ::executorch::runtime;
using ::executorch::aten::DimOrderType;
using ::executorch::aten::ScalarType;
using ::executorch::aten::SizesType;
using ::executorch::aten::StridesType;
using ::executorch::aten::Tensor;
using ::executorch::aten::TensorImpl;
using ::executorch::extension::MallocMemoryAllocator;
using ::executorch::extension::MmapDataLoader;

enum { kOk = 0, kFailed = 1, kBadFile = 2, kMissing = 3 };

// Why something failed; never thrown across the interface.
struct Failure {
  int32_t code;
  std::string sentence;
};

// ExecuTorch says what is wrong in its log alone. While a call of ours runs, this thread's first error is kept and nothing is
// printed; what others log goes where it went before.
thread_local bool in_call = false, passing_on = false;
thread_local std::string first_error;
std::atomic<pal_emit_log_message_method> log_of_others{nullptr};  // now
std::atomic<pal_emit_log_message_method> log_before_us{nullptr};  // when we first took it

void keep_first_error(et_timestamp_t time, et_pal_log_level_t level, const char* file, const char* function, size_t line,
                      const char* message, size_t length) {
  if (in_call) {
    if ((level == kError || level == kFatal) && first_error.empty()) first_error.assign(message, length);
    return;
  }
  if (passing_on) {  // who took the log after us passes on to us
    log_before_us.load()(time, level, file, function, line, message, length);
    return;
  }
  passing_on = true;
  log_of_others.load()(time, level, file, function, line, message, length);
  passing_on = false;
}

std::string reason(Error error) {
  const std::string text = first_error.empty() ? "error" : first_error;
  return text + " (ExecuTorch's error " + std::to_string(int(error)) + ")";
}

// Where ExecuTorch's Python bindings are in the process too, they have taken the log; register_pal would complain on stderr of
// a second one, so the table's entry is set in place. The table is a plain variable of ExecuTorch's, which other threads may be
// reading.
void take_log() {
  PalImpl* table = const_cast<PalImpl*>(get_pal_impl());
  const pal_emit_log_message_method now = __atomic_load_n(&table->emit_log_message, __ATOMIC_ACQUIRE);
  if (now == keep_first_error) return;
  if (!log_before_us) log_before_us = now;
  log_of_others = now;
  __atomic_store_n(&table->emit_log_message, &keep_first_error, __ATOMIC_RELEASE);
}

// Held while a program is loaded or let go of: the log, the pool of threads and XNNPACK's packed weights are the process's.
std::mutex loading;

void start_runtime() {
  take_log();
  static bool started = false;
  if (started) return;
  runtime_init();
  // One packed copy of the weights for both methods, and for every session in the process. XNNPACK finds a copy by the sha256
  // of a matrix's values and of its bias, so that two int8 matrices that differ in nothing but their scales would be taken for
  // one.
  BackendOptions<1> options;
  if (options.set_option("weight_cache_enabled", true) != Error::Ok ||
      set_option("XnnpackBackend", options.view()) != Error::Ok)
    throw Failure{kMissing,
                  "ExecuTorch's XNNPACK backend cannot share packed weights, or is not there: " + reason(Error::NotFound)};
  started = true;
}

// A session's use of ExecuTorch's one pool of threads. XNNPACK keeps the pool that it was given when a method was loaded, so
// its size must not change, which makes a new pool, while there is any session. Made and destroyed under `loading`.
class PoolUse {
 public:
  explicit PoolUse(int32_t threads) {
    if (threads < 0 || threads > kMostThreads) throw Failure{kBadFile, "threads must be 0 to " + std::to_string(kMostThreads)};
    auto* pool = ::executorch::extension::threadpool::get_threadpool();
    if (threads && pool && pool->get_thread_count() != size_t(threads)) {
      if (users_)
        throw Failure{kBadFile, "ExecuTorch has one pool of threads, and sessions that run on " +
                                    std::to_string(pool->get_thread_count()) + "; close them, or open this one with as many"};
      pool->_unsafe_reset_threadpool(uint32_t(threads));
    }
    users_++;
  }
  ~PoolUse() { users_--; }
  PoolUse(const PoolUse&) = delete;
  PoolUse& operator=(const PoolUse&) = delete;

 private:
  static inline int users_ = 0;
};

struct Free {
  void operator()(void* memory) const { std::free(memory); }
};

// An int64 tensor over memory of ours.
struct Ints {
  std::vector<int64_t> values;
  SizesType sizes[2];
  DimOrderType order[2] = {0, 1};
  StridesType strides[2];
  TensorImpl impl;

  Ints(int dims, size_t n)
      : values(n),
        sizes{SizesType(dims == 1 ? n : 1), SizesType(n)},
        strides{StridesType(dims == 1 ? 1 : n), 1},
        impl(ScalarType::Long, dims, sizes, values.data(), order, strides) {}
};

// A call's turn on a session; a second thread gets none.
class Turn {
 public:
  explicit Turn(std::atomic<bool>& in_use) : in_use_(in_use) {
    if (in_use_.exchange(true)) throw Failure{kBadFile, "the session is in use by another thread; open one for each thread"};
  }
  ~Turn() { in_use_ = false; }
  Turn(const Turn&) = delete;
  Turn& operator=(const Turn&) = delete;

 private:
  std::atomic<bool>& in_use_;
};

// Lets a run on this thread look at `flag`.
class Watch {
 public:
  explicit Watch(const std::atomic<bool>& flag) { stopped = &flag; }
  ~Watch() { stopped = nullptr; }
  Watch(const Watch&) = delete;
  Watch& operator=(const Watch&) = delete;
};

struct Planned {
  std::vector<Span<uint8_t>> spans;
  std::optional<HierarchicalAllocator> allocator;
  std::optional<MemoryManager> manager;
  std::optional<Method> method;
};

class Session {
 public:
  explicit Session(const char* path, int32_t threads) : path_(path) {
    start_runtime();
    load_program();
    info.chunk = check_method("prefill", 3);
    if (check_method("decode", 2) != 1) refuse("its decode method takes more than one token");
    reserve_arenas();
    pool_.emplace(threads);
    load_method(prefill_, "prefill");
    load_method(decode_, "decode");
    ids_ = std::make_unique<Ints>(2, size_t(info.chunk));
  }

  void run(const int64_t* ids, int32_t n, int64_t position, float* logits) {
    const Turn turn(in_use_);
    if (n < 1 || n > info.chunk)
      throw Failure{kBadFile, "the program takes 1 to " + std::to_string(info.chunk) + " tokens at once"};
    if (position < 0) throw Failure{kBadFile, "position " + std::to_string(position) + " is before the first"};
    for (int32_t i = 0; i < n; i++)
      if (ids[i] < 0 || ids[i] >= info.vocab_size)
        throw Failure{kBadFile,
                      "token id " + std::to_string(ids[i]) + " is outside 0 to " + std::to_string(info.vocab_size - 1)};
    const bool one = n == 1;
    Method& method = *(one ? decode_ : prefill_).method;
    Ints& tokens = one ? token_ : *ids_;
    std::fill(std::copy(ids, ids + n, tokens.values.begin()), tokens.values.end(), 0);
    position_.values[0] = position;
    count_.values[0] = n;
    check(method.set_input(EValue(Tensor(&tokens.impl)), 0), kFailed);
    check(method.set_input(EValue(Tensor(&position_.impl)), 1), kFailed);
    if (!one) check(method.set_input(EValue(Tensor(&count_.impl)), 2), kFailed);
    check(method.set_output_data_ptr(logits, size_t(info.vocab_size) * sizeof(float), 0), kFailed);
    const Watch watch(stop_);
    const Error error = method.execute();
    if (error != Error::Ok && stop_) throw Failure{kFailed, "the run was stopped"};
    check(error, kFailed);
  }

  void stop(bool on) { stop_ = on; }

  void buffer(const char* name, void** data, size_t* bytes) {
    const Turn turn(in_use_);
    Result<Tensor> tensor = decode_.method->get_attribute(name);
    if (!tensor.ok()) refuse(std::string("it has no buffer ") + name);
    *data = tensor->mutable_data_ptr();
    *bytes = tensor->nbytes();
  }

  edgeqkv_executorch_info info = {};

 private:
  [[noreturn]] void refuse(const std::string& why) const {
    throw Failure{kBadFile, path_ + " is not a program that edgeqkv exported: " + why};
  }

  void check(Error error, int32_t code) const {
    if (error == Error::OperatorMissing)
      throw Failure{kMissing, path_ + " needs an operator that this library does not have: " + reason(error)};
    if (error == Error::MemoryAllocationFailed)
      throw Failure{kMissing, "there is not enough memory for " + path_ + ": " + reason(error)};
    if (error != Error::Ok)
      throw Failure{code, path_ + (code == kFailed ? " failed to run: " : " cannot be loaded: ") + reason(error)};
  }

  void load_program() {
    // Read the head ourselves: what is no program at all deserves a plain sentence.
    std::unique_ptr<std::FILE, int (*)(std::FILE*)> file(std::fopen(path_.c_str(), "rb"), std::fclose);
    if (!file) throw Failure{kBadFile, path_ + " cannot be read: " + std::strerror(errno)};
    unsigned char head[Program::kMinHeadBytes];
    if (std::fread(head, 1, sizeof head, file.get()) != sizeof head) refuse("it is truncated");
    const Program::HeaderStatus status = Program::check_header(head, sizeof head);
    if (status == Program::HeaderStatus::IncompatibleVersion)
      refuse("it was made for another version of ExecuTorch than " EDGEQKV_EXECUTORCH_VERSION "; export the bundle again");
    if (status != Program::HeaderStatus::CompatibleVersion) refuse("it has no ExecuTorch header");
    check_length(head, file.get());
    Result<MmapDataLoader> loader = MmapDataLoader::from(path_.c_str(), MmapDataLoader::MlockConfig::NoMlock);
    check(loader.error(), kBadFile);
    loader_.emplace(std::move(loader.get()));
    Result<Program> program = Program::load(&*loader_, Program::Verification::InternalConsistency);
    check(program.error(), kBadFile);
    program_.emplace(std::move(program.get()));
  }

  // The extended header (after the flatbuffer's 8 bytes: "eh00", its length, then 64-bit program size, segment offset, segment
  // size) says how long the file is. A truncated one would otherwise be noticed at a page that is not there.
  void check_length(const unsigned char* head, std::FILE* file) const {
    auto number = [&](size_t at) {
      uint64_t value = 0;
      for (int i = 7; i >= 0; i--) value = value << 8 | head[at + size_t(i)];
      return value;
    };
    if (std::memcmp(head + 8, "eh00", 4) != 0) refuse("it has no extended header");
    const uint64_t program = number(16), segments = number(24), bytes = number(32);
    std::fseek(file, 0, SEEK_END);
    const uint64_t length = uint64_t(std::ftell(file));
    if (program > length || segments > length || bytes > length - segments) refuse("it is truncated; copy or export it again");
  }

  MethodMeta meta(const char* name) const {
    Result<MethodMeta> meta = program_->method_meta(name);
    if (!meta.ok()) refuse(std::string("it has no method ") + name);
    return *meta;
  }

  // The number of tokens that a method takes, once its inputs and its output are what run() will hand it.
  int32_t check_method(const char* name, size_t inputs) {
    const MethodMeta method = meta(name);
    if (method.num_inputs() != inputs || method.num_outputs() != 1) refuse(std::string(name) + " has other inputs or outputs");
    int32_t tokens = 0;
    for (size_t i = 0; i < inputs; i++) {
      Result<TensorInfo> input = method.input_tensor_meta(i);
      if (!input.ok() || input->scalar_type() != ScalarType::Long)
        refuse(std::string(name) + " takes other than int64 tensors");
      const Span<const int32_t> sizes = input->sizes();
      const bool fits = i == 0 ? sizes.size() == 2 && sizes[0] == 1 && sizes[1] >= 1 : sizes.size() == 1 && sizes[0] == 1;
      if (!fits) refuse(std::string(name) + " takes tensors of other shapes");
      if (i == 0) tokens = sizes[1];
    }
    Result<TensorInfo> output = method.output_tensor_meta(0);
    if (!output.ok() || output->scalar_type() != ScalarType::Float || output->sizes().size() != 3 || output->sizes()[0] != 1 ||
        output->sizes()[1] != 1 || output->is_memory_planned())
      refuse(std::string(name) + " returns something other than logits");
    const int32_t vocab_size = output->sizes()[2];
    if (info.vocab_size && info.vocab_size != vocab_size) refuse("its methods return logits of different lengths");
    info.vocab_size = vocab_size;
    int64_t cache_bytes = 0;
    for (size_t i = 0; i < method.num_attributes(); i++) {
      Result<TensorInfo> attribute = method.attribute_tensor_meta(i);
      if (!attribute.ok()) refuse(std::string(name) + " does not say what its cache is");
      cache_bytes += int64_t(attribute->nbytes());
    }
    if (info.cache_bytes && info.cache_bytes != cache_bytes) refuse("its methods have different caches");
    info.cache_bytes = cache_bytes;
    return tokens;
  }

  // One arena for each planned buffer, large enough for both methods. calloc gives untouched pages.
  void reserve_arenas() {
    std::vector<size_t> sizes;
    for (Planned* planned : {&prefill_, &decode_}) {
      const MethodMeta method = meta(planned == &prefill_ ? "prefill" : "decode");
      for (size_t i = 0; i < method.num_memory_planned_buffers(); i++) {
        Result<int64_t> size = method.memory_planned_buffer_size(i);
        if (!size.ok() || *size < 0) refuse("its memory plan cannot be read");
        if (sizes.size() <= i) sizes.push_back(0);
        sizes[i] = std::max(sizes[i], size_t(*size));
      }
    }
    for (const size_t size : sizes) {
      constexpr size_t kAlignment = 64;
      arenas_.emplace_back(std::calloc(size + kAlignment, 1));
      if (!arenas_.back()) throw Failure{kMissing, "there is not enough memory for " + path_};
      info.arena_bytes += int64_t(size);
      auto* start =
          reinterpret_cast<uint8_t*>((reinterpret_cast<uintptr_t>(arenas_.back().get()) + kAlignment - 1) & ~(kAlignment - 1));
      for (Planned* planned : {&prefill_, &decode_}) planned->spans.emplace_back(start, size);
    }
  }

  void load_method(Planned& planned, const char* name) {
    planned.allocator.emplace(Span<Span<uint8_t>>(planned.spans.data(), planned.spans.size()));
    planned.manager.emplace(&method_memory_, &*planned.allocator, &scratch_);
    Result<Method> method = program_->load_method(name, &*planned.manager);
    check(method.error(), kBadFile);
    planned.method.emplace(std::move(method.get()));
  }

  std::string path_;
  std::atomic<bool> in_use_{false}, stop_{false};
  std::optional<PoolUse> pool_;  // until the methods are gone
  std::optional<MmapDataLoader> loader_;
  std::optional<Program> program_;
  std::vector<std::unique_ptr<void, Free>> arenas_;
  MallocMemoryAllocator method_memory_, scratch_;
  Ints token_{2, 1}, position_{1, 1}, count_{1, 1};
  std::unique_ptr<Ints> ids_;
  Planned prefill_, decode_;
};

// Runs `work`; its failure becomes a code and a sentence.
template <class Work>
int32_t guarded(char* error, size_t error_size, Work work) {
  first_error.clear();
  in_call = true;
  std::string sentence;
  int32_t code = kOk;
  try {
    work();
  } catch (const std::bad_alloc&) {
    code = kMissing;
    sentence = "there is not enough memory";
  } catch (const Failure& failure) {
    code = failure.code;
    sentence = failure.sentence;
  } catch (const std::exception& problem) {
    code = kMissing;
    sentence = problem.what();
  }
  in_call = false;
  if (error_size) std::snprintf(error, error_size, "%s", sentence.c_str());
  return code;
}

}  // namespace
}  // namespace edgeqkv::executorch

struct edgeqkv_executorch : edgeqkv::executorch::Session {
  using Session::Session;
};

const char* edgeqkv_executorch_version(void) { return EDGEQKV_EXECUTORCH_VERSION; }

int32_t edgeqkv_executorch_open(const char* path, int32_t threads, edgeqkv_executorch** session, edgeqkv_executorch_info* info,
                                char* error, size_t error_size) {
  return edgeqkv::executorch::guarded(error, error_size, [&] {
    const std::lock_guard<std::mutex> lock(edgeqkv::executorch::loading);
    auto opened = std::make_unique<edgeqkv_executorch>(path, threads);
    *info = opened->info;
    *session = opened.release();
  });
}

int32_t edgeqkv_executorch_run(edgeqkv_executorch* session, const int64_t* ids, int32_t n, int64_t position, float* logits,
                               char* error, size_t error_size) {
  return edgeqkv::executorch::guarded(error, error_size, [&] { session->run(ids, n, position, logits); });
}

void edgeqkv_executorch_stop(edgeqkv_executorch* session, int32_t on) { session->stop(on != 0); }

int32_t edgeqkv_executorch_buffer(edgeqkv_executorch* session, const char* name, void** data, size_t* bytes, char* error,
                                  size_t error_size) {
  return edgeqkv::executorch::guarded(error, error_size, [&] { session->buffer(name, data, bytes); });
}

void edgeqkv_executorch_close(edgeqkv_executorch* session) {
  const std::lock_guard<std::mutex> lock(edgeqkv::executorch::loading);
  delete session;
}
