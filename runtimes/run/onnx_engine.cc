// ONNX Runtime through its C API, as runtimes/onnx/engine.py runs it: each cache buffer is bound as an input and as the output
// that succeeds it, so that a step writes its rows in place. Our operator is linked in, not loaded.
#include <algorithm>
#include <cstdlib>
#include <map>

#include "../onnx/ort_api.h"
#include "engine.h"
#include "error.h"
#include "library.h"

extern "C" OrtStatus* RegisterCustomOps(OrtSessionOptions* options, const edgeqkv::ort::ApiBase* base);

namespace edgeqkv {
namespace {

constexpr int kWarningsOff = 3, kDeviceAllocator = 0, kDefaultMemory = 0;  // ORT_LOGGING_LEVEL_ERROR, OrtDeviceAllocator, ...

struct Free {
  void operator()(void* memory) const { std::free(memory); }
};

class OnnxEngine : public Engine {
 public:
  // By way of the other constructor, so that what has been opened is closed when something further down throws.
  OnnxEngine(const Bundle& bundle, const Artifact& artifact, int threads, const Files& libraries) : OnnxEngine(bundle, artifact) {
    const ort::ApiBase* base = load(libraries);
    version_ = base->GetVersionString();
    const OrtApi* table = base->GetApi(ort::kApiVersion);
    if (!table) throw Error("ONNX Runtime " + version_ + " is older than 1.17; install onnxruntime==1.31.1", kMissing);
    api_ = ort::Api(table);
    const std::string path = bundle.folder + "/" + artifact.file;
    OrtSessionOptions* options = nullptr;
    check(api_.CreateEnv()(kWarningsOff, "edgeqkv", &env_));
    check(api_.CreateSessionOptions()(&options));
    check(api_.SetIntraOpNumThreads()(options, threads));
    check(api_.SetInterOpNumThreads()(options, 1));
    // As in engine.py: waiting threads must not spin on after a step.
    check(api_.AddSessionConfigEntry()(options, "session.force_spinning_stop", "1"));
    if (threads) check(api_.AddSessionConfigEntry()(options, "edgeqkv.threads", std::to_string(threads).c_str()));
    check(RegisterCustomOps(options, base));
    OrtStatus* status = api_.CreateSession()(env_, path.c_str(), options, &session_);
    api_.ReleaseSessionOptions()(options);
    check(status, "onnxruntime " + version_ + " cannot load " + path + ": ");
    check(api_.CreateCpuMemoryInfo()(kDeviceAllocator, kDefaultMemory, &memory_));
    for (const Buffer& buffer : artifact.caches) {
      // calloc: pages that no token has touched stay with the system.
      caches_[buffer.name].reset(std::calloc(buffer.bytes(), 1));
      if (!caches_[buffer.name]) throw Error("no memory for the cache", kMissing);
      cache_bytes_ += int64_t(buffer.bytes());
    }
    logits_.resize(size_t(vocab_size_));
    decode_ = bind(&token_, 1);
  }

  ~OnnxEngine() override {
    release(decode_);
    if (memory_) api_.ReleaseMemoryInfo()(memory_);
    if (session_) api_.ReleaseSession()(session_);
    if (env_) api_.ReleaseEnv()(env_);
  }

  std::string version() const override { return version_; }
  int64_t cache_bytes() const override { return cache_bytes_; }

  void run(const int64_t* ids, int64_t n, int64_t position, float* logits) override {
    position_ = position;
    if (n == 1) {
      token_ = *ids;
      check(api_.RunWithBinding()(session_, nullptr, decode_.binding));
    } else {
      Bound bound = bind(const_cast<int64_t*>(ids), n);
      OrtStatus* status = api_.RunWithBinding()(session_, nullptr, bound.binding);
      release(bound);
      check(status);
    }
    std::copy(logits_.begin(), logits_.end(), logits);
  }

 private:
  OnnxEngine(const Bundle& bundle, const Artifact& artifact) : vocab_size_(bundle.vocab_size), artifact_(artifact) {}

  struct Bound {
    OrtIoBinding* binding = nullptr;
    std::vector<OrtValue*> values;
  };

  static const ort::ApiBase* load(const Files& libraries) {
    const std::vector<std::string> usual = {"libonnxruntime.so.1", "libonnxruntime.so.1.31.1"};  // by soname, as the wheel has it
    const Library loaded(libraries, "libonnxruntime", usual, "ONNX Runtime");
    return reinterpret_cast<const ort::ApiBase* (*)()>(loaded.symbol("OrtGetApiBase"))();
  }

  void check(OrtStatus* status, const std::string& what = "onnxruntime: ") const {
    if (!status) return;
    const std::string why = api_.GetErrorMessage()(status);
    api_.ReleaseStatus()(status);
    throw Error(what + why.substr(0, why.find('\n')));
  }

  OrtValue* tensor(Bound& bound, void* data, size_t bytes, const std::vector<int64_t>& shape, const std::string& dtype) const {
    static const std::map<std::string, int> elements = {
        {"float32", ort::kFloat}, {"float16", ort::kFloat16}, {"int8", ort::kInt8}, {"int64", ort::kInt64}};
    const auto element = elements.find(dtype);
    if (element == elements.end()) throw Error("the manifest has a tensor of the unknown dtype '" + dtype + "'");
    OrtValue* value = nullptr;
    check(api_.CreateTensorWithDataAsOrtValue()(memory_, data, bytes, shape.data(), shape.size(), element->second, &value));
    bound.values.push_back(value);
    return value;
  }

  Bound bind(int64_t* ids, int64_t n) {
    Bound bound;
    check(api_.CreateIoBinding()(session_, &bound.binding));
    auto input = [&](const char* name, OrtValue* value) { check(api_.BindInput()(bound.binding, name, value)); };
    input("ids", tensor(bound, ids, size_t(n) * sizeof *ids, {n}, "int64"));
    input("position", tensor(bound, &position_, sizeof position_, {1}, "int64"));
    std::map<std::string, OrtValue*> caches;
    for (const Buffer& buffer : artifact_.caches) {
      caches[buffer.name] = tensor(bound, caches_[buffer.name].get(), buffer.bytes(), buffer.shape, buffer.dtype);
      input(buffer.name.c_str(), caches[buffer.name]);
    }
    OrtValue* logits = tensor(bound, logits_.data(), logits_.size() * sizeof(float), {vocab_size_}, "float32");
    check(api_.BindOutput()(bound.binding, "logits", logits));
    for (const auto& [output, name] : artifact_.aliases) {
      if (!caches.count(name)) throw Error("the manifest binds " + output + " to " + name + ", which is no input");
      check(api_.BindOutput()(bound.binding, output.c_str(), caches[name]));
    }
    return bound;
  }

  void release(Bound& bound) const {
    if (bound.binding) api_.ReleaseIoBinding()(bound.binding);
    for (OrtValue* value : bound.values) api_.ReleaseValue()(value);
  }

  ort::Api api_{nullptr};
  OrtEnv* env_ = nullptr;
  OrtSession* session_ = nullptr;
  OrtMemoryInfo* memory_ = nullptr;
  std::string version_;
  int64_t vocab_size_, cache_bytes_ = 0, token_ = 0, position_ = 0;
  Artifact artifact_;
  std::map<std::string, std::unique_ptr<void, Free>> caches_;
  std::vector<float> logits_;
  Bound decode_;
};

}  // namespace

std::unique_ptr<Engine> open_onnx(const Bundle& bundle, const Artifact& artifact, int threads, const Files& libraries) {
  return std::make_unique<OnnxEngine>(bundle, artifact, threads, libraries);
}

}  // namespace edgeqkv
