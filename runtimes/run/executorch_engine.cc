// ExecuTorch through our session's C interface (runtimes/executorch), which is loaded when it is asked for.
#include "../executorch/edgeqkv_executorch.h"
#include "engine.h"
#include "error.h"
#include "library.h"

namespace edgeqkv {
namespace {

class ExecutorchEngine : public Engine {
 public:
  ExecutorchEngine(const Bundle& bundle, const Artifact& artifact, int threads, const std::string& library)
      : library_({library.empty() ? "libedgeqkv_executorch.so" : library}, "our ExecuTorch session, libedgeqkv_executorch.so,") {
    const std::string path = bundle.folder + "/" + artifact.file;
    check(function<decltype(edgeqkv_executorch_open)>("edgeqkv_executorch_open")(path.c_str(), threads, &session_, &info_,
                                                                                 sentence_, sizeof sentence_));
    run_ = function<decltype(edgeqkv_executorch_run)>("edgeqkv_executorch_run");
    if (info_.chunk != artifact.prefill_chunk || info_.vocab_size != bundle.vocab_size || info_.cache_bytes != artifact.cache_bytes)
      throw Error(path + " is another program than the manifest describes; export the bundle again");
  }

  ~ExecutorchEngine() override {
    if (session_) function<decltype(edgeqkv_executorch_close)>("edgeqkv_executorch_close")(session_);
  }

  std::string version() const override {
    return function<decltype(edgeqkv_executorch_version)>("edgeqkv_executorch_version")();
  }
  int64_t cache_bytes() const override { return info_.cache_bytes; }

  void run(const int64_t* ids, int64_t n, int64_t position, float* logits) override {
    check(run_(session_, ids, int32_t(n), position, logits, sentence_, sizeof sentence_));
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
  edgeqkv_executorch* session_ = nullptr;
  edgeqkv_executorch_info info_ = {};
  decltype(&edgeqkv_executorch_run) run_ = nullptr;
  char sentence_[1024] = {};
};

}  // namespace

std::unique_ptr<Engine> open_executorch(const Bundle& bundle, const Artifact& artifact, int threads, const std::string& library) {
  return std::make_unique<ExecutorchEngine>(bundle, artifact, threads, library);
}

}  // namespace edgeqkv
