// ExecuTorch through our session's C interface (runtimes/executorch), which is loaded when it is asked for.
#include <algorithm>
#include <mutex>
#include <utility>
#include <vector>

#include "../../executorch/edgeqkv_executorch.h"
#include "engine.h"
#include "error.h"
#include "library.h"

namespace edgeqkv {
namespace {

// The functions of the library.
struct Interface {
  explicit Interface(const std::string& file)
#if defined(__APPLE__)
      : library(file, {"libedgeqkv_executorch.dylib"}, "our ExecuTorch session"),
#else
      : library(file, {"libedgeqkv_executorch.so"}, "our ExecuTorch session"),
#endif
        version(library.function<decltype(edgeqkv_executorch_version)>("edgeqkv_executorch_version")),
        open(library.function<decltype(edgeqkv_executorch_open)>("edgeqkv_executorch_open")),
        run(library.function<decltype(edgeqkv_executorch_run)>("edgeqkv_executorch_run")),
        stop(library.function<decltype(edgeqkv_executorch_stop)>("edgeqkv_executorch_stop")),
        buffer(library.function<decltype(edgeqkv_executorch_buffer)>("edgeqkv_executorch_buffer")),
        close(library.function<decltype(edgeqkv_executorch_close)>("edgeqkv_executorch_close")) {
  }

  Library library;
  decltype(&edgeqkv_executorch_version) version;
  decltype(&edgeqkv_executorch_open) open;
  decltype(&edgeqkv_executorch_run) run;
  decltype(&edgeqkv_executorch_stop) stop;
  decltype(&edgeqkv_executorch_buffer) buffer;
  decltype(&edgeqkv_executorch_close) close;
};

// Calls a function that ends with a place for its sentence.
template <class Function, class... Arguments>
void call(Function function, Arguments... arguments) {
  char sentence[1024] = {};
  if (const int32_t code = function(arguments..., sentence, sizeof sentence)) throw Error(sentence, code);
}

using Program = std::unique_ptr<edgeqkv_executorch, decltype(&edgeqkv_executorch_close)>;

class ExecutorchModel : public Model {
 public:
  ExecutorchModel(const Manifest& manifest, const Artifact& artifact, const std::string& file, int threads,
                  const std::string& library)
      : interface_(library),
        artifact_(artifact),
        file_(file),
        threads_(threads),
        vocab_size_(manifest.vocab_size),
        spare_(load()) {}

  std::string version() const override { return interface_.version(); }
  std::unique_ptr<Context> new_context(float* logits) override;

  const Interface& interface() const { return interface_; }

  // A program over a cache of its own; the first is the one that was loaded to see whether it can be.
  Program program() {
    {
      const std::lock_guard<std::mutex> lock(mutex_);
      if (spare_) return std::exchange(spare_, Program(nullptr, interface_.close));
    }
    return load();
  }

  // The memory of each buffer of the artifact in `program`, whose names have no dots.
  std::vector<char*> buffers(edgeqkv_executorch* program) const {
    std::vector<char*> out;
    for (const Buffer& b : artifact_.buffers) {
      std::string name = b.name;
      std::replace(name.begin(), name.end(), '.', '_');
      void* data = nullptr;
      size_t bytes = 0;
      call(interface_.buffer, program, name.c_str(), &data, &bytes);
      if (bytes != b.bytes)
        throw Error(file_ + " has another " + b.name + " than the manifest describes; export the bundle again");
      out.push_back(static_cast<char*>(data));
    }
    return out;
  }

 private:
  Program load() const {
    edgeqkv_executorch* opened = nullptr;
    edgeqkv_executorch_info info = {};
    call(interface_.open, file_.c_str(), int32_t(threads_), &opened, &info);
    Program program(opened, interface_.close);
    if (info.chunk != artifact_.prefill_chunk || info.vocab_size != vocab_size_ || info.cache_bytes != artifact_.cache_bytes)
      throw Error(file_ + " is another program than the manifest describes; export the bundle again");
    buffers(opened);
    return program;
  }

  Interface interface_;
  Artifact artifact_;
  std::string file_;
  int threads_;
  int64_t vocab_size_;
  std::mutex mutex_;
  Program spare_;
};

class ExecutorchContext : public Context {
 public:
  ExecutorchContext(ExecutorchModel& model, float* logits)
      : interface_(model.interface()), program_(model.program()), buffers_(model.buffers(program_.get())), logits_(logits) {}

  void run(const int64_t* ids, int64_t n, int64_t position) override {
    call(interface_.run, program_.get(), ids, int32_t(n), position, logits_);
  }
  void stop(bool on) noexcept override { interface_.stop(program_.get(), on); }
  char* buffer(size_t i) override { return buffers_[i]; }

 private:
  const Interface& interface_;
  Program program_;
  std::vector<char*> buffers_;
  float* logits_;
};

std::unique_ptr<Context> ExecutorchModel::new_context(float* logits) {
  return std::make_unique<ExecutorchContext>(*this, logits);
}

}  // namespace

std::unique_ptr<Model> open_executorch(const Manifest& manifest, const Artifact& artifact, const std::string& file, int threads,
                                       const std::string& library) {
  return std::make_unique<ExecutorchModel>(manifest, artifact, file, threads, library);
}

}  // namespace edgeqkv
