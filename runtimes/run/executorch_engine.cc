// ExecuTorch through our session's C interface (runtimes/executorch), which is loaded when it is asked for.
#include "../executorch/edgeqkv_executorch.h"
#include "engine.h"
#include "error.h"
#include "library.h"

namespace edgeqkv {
namespace {

class ExecutorchEngine : public Engine {
 public:
  ExecutorchEngine(const Bundle& bundle, const Artifact& artifact, int threads, const Files& libraries)
      : library_(libraries, "libedgeqkv_executorch", {"libedgeqkv_executorch.so"}, "our ExecuTorch session") {
    const std::string path = bundle.folder + "/" + artifact.file;
    edgeqkv_executorch* opened = nullptr;
    check(function<decltype(edgeqkv_executorch_open)>("edgeqkv_executorch_open")(path.c_str(), threads, &opened, &info_, sentence_,
                                                                                 sizeof sentence_));
    session_ = {opened, function<decltype(edgeqkv_executorch_close)>("edgeqkv_executorch_close")};
    run_ = function<decltype(edgeqkv_executorch_run)>("edgeqkv_executorch_run");
    if (info_.chunk != artifact.prefill_chunk || info_.vocab_size != bundle.vocab_size || info_.cache_bytes != artifact.cache_bytes)
      throw Error(path + " is another program than the manifest describes; export the bundle again");
  }

  std::string version() const override {
    return function<decltype(edgeqkv_executorch_version)>("edgeqkv_executorch_version")();
  }
  int64_t cache_bytes() const override { return info_.cache_bytes; }

  void run(const int64_t* ids, int64_t n, int64_t position, float* logits) override {
    check(run_(session_.get(), ids, int32_t(n), position, logits, sentence_, sizeof sentence_));
  }

 private:
  template <class Function>
  Function* function(const char* name) const {
    return reinterpret_cast<Function*>(library_.symbol(name));
  }

  void check(int32_t code) const {
    if (code) throw Error(sentence_, code);
  }

  Library library_;
  std::unique_ptr<edgeqkv_executorch, decltype(&edgeqkv_executorch_close)> session_{nullptr, nullptr};
  edgeqkv_executorch_info info_ = {};
  decltype(&edgeqkv_executorch_run) run_ = nullptr;
  char sentence_[1024] = {};
};

}  // namespace

std::unique_ptr<Engine> open_executorch(const Bundle& bundle, const Artifact& artifact, int threads, const Files& libraries) {
  return std::make_unique<ExecutorchEngine>(bundle, artifact, threads, libraries);
}

}  // namespace edgeqkv
