// ONNX Runtime through its C API, as runtimes/onnx/engine.py runs it: each cache buffer is bound as an input and as the output
// that succeeds it, so that a step writes its rows in place. Our operators are linked in, not loaded.
#include <cstdio>
#include <cstdlib>
#include <mutex>
#include <vector>

#include "../../onnx/ort_api.h"
#include "engine.h"
#include "error.h"
#include "library.h"
#include "mapped_file.h"
#include "zeros.h"

extern "C" OrtStatus* RegisterCustomOps(OrtSessionOptions* options, const edgeqkv::ort::ApiBase* base);

namespace edgeqkv {
namespace {

constexpr int kErrorsOnly = 3, kDeviceAllocator = 0, kDefaultMemory = 0;  // ORT_LOGGING_LEVEL_ERROR, OrtDeviceAllocator, ...
constexpr int kOldestMajor = 1, kOldestMinor = 23;                        // the first that reads our graphs
// Where an export puts tables of which a call reads a few rows (export/onnx/graph.py). A row brings up to 2 MiB of pages with
// it, so that after a few hundred tokens the whole table would count as this process's memory.
constexpr const char* kTables = "tables.data";

struct Runtime {
  const ort::ApiBase* base;
  ort::Api api;
  std::string version;
};

Runtime load(const std::string& library) {
  // ONNX Runtime reads this when it is loaded; afterwards it has written its files already (see edgeqkv.h). An app's own choice
  // stays.
  static std::once_flag quiet;
  std::call_once(quiet, [] { ::setenv("ORT_DISABLE_TELEMETRY", "1", /*overwrite=*/0); });
#if defined(__APPLE__)
  const Library loaded(library, {"libonnxruntime.dylib", "libonnxruntime.1.dylib"}, "ONNX Runtime");
#else
  // By soname, by Android's name, and as the wheel names the one that we test with.
  const Library loaded(library, {"libonnxruntime.so.1", "libonnxruntime.so", "libonnxruntime.so.1.31.1"}, "ONNX Runtime");
#endif
  const auto* base = loaded.function<const ort::ApiBase*()>("OrtGetApiBase")();
  const std::string version = base->GetVersionString();
  int major = 0, minor = 0;
  const bool readable = std::sscanf(version.c_str(), "%d.%d", &major, &minor) == 2;
  const bool too_old = readable && (major < kOldestMajor || (major == kOldestMajor && minor < kOldestMinor));
  const OrtApi* table = too_old ? nullptr : base->GetApi(ort::kApiVersion);
  if (!table) throw Error("ONNX Runtime " + version + " is older than 1.23; install a newer one, 1.31.1 say", kMissing);
  return {base, ort::Api(table), version};
}

void check(const Runtime& runtime, OrtStatus* status, const std::string& what, int kind) {
  if (!status) return;
  const std::string why = runtime.api.GetErrorMessage()(status);
  runtime.api.ReleaseStatus()(status);
  throw Error("onnxruntime " + runtime.version + " " + what + ": " + why.substr(0, why.find('\n')), kind);
}

int element_type(const std::string& dtype) {
  return dtype == "int8" ? ort::kInt8 : dtype == "float16" ? ort::kFloat16 : dtype == "int64" ? ort::kInt64 : ort::kFloat;
}

// What is opened, from the first object to the last: the destructor closes what there is, also when opening stops half way.
class OnnxModel : public Model {
 public:
  OnnxModel(const Manifest& manifest, const Artifact& artifact, const Runtime& runtime)
      : runtime_(runtime), artifact_(artifact), vocab_size_(manifest.vocab_size) {}

  ~OnnxModel() override {
    const ort::Api& api = runtime_.api;
    if (memory_) api.ReleaseMemoryInfo()(memory_);
    if (session_) api.ReleaseSession()(session_);
    if (options_) api.ReleaseSessionOptions()(options_);
    if (env_) api.ReleaseEnv()(env_);
  }

  void open(const std::string& file, int threads) {
    const ort::Api& api = runtime_.api;
    auto must = [&](OrtStatus* status) { check(runtime_, status, "cannot load " + file, kBadInput); };
    must(api.CreateEnv()(kErrorsOnly, "edgeqkv", &env_));
    must(api.CreateSessionOptions()(&options_));
    // All as in engine.py, which says why.
    must(api.SetIntraOpNumThreads()(options_, threads));
    must(api.SetInterOpNumThreads()(options_, 1));
    must(api.DisableMemPattern()(options_));
    must(api.AddSessionConfigEntry()(options_, "session.force_spinning_stop", "1"));
    if (threads) must(api.AddSessionConfigEntry()(options_, "edgeqkv.threads", std::to_string(threads).c_str()));
    must(RegisterCustomOps(options_, runtime_.base));
    must(api.CreateSession()(env_, file.c_str(), options_, &session_));
    must(api.CreateCpuMemoryInfo()(kDeviceAllocator, kDefaultMemory, &memory_));
    tables_ = MappedFile(file.substr(0, file.rfind('/') + 1) + kTables);
  }

  std::string version() const override { return runtime_.version; }
  std::unique_ptr<Context> new_context(float* logits) override;

  const Runtime& runtime() const { return runtime_; }
  const Artifact& artifact() const { return artifact_; }
  int64_t vocab_size() const { return vocab_size_; }
  OrtSession* session() const { return session_; }
  OrtMemoryInfo* memory() const { return memory_; }
  const MappedFile& tables() const { return tables_; }

 private:
  Runtime runtime_;
  Artifact artifact_;
  int64_t vocab_size_;
  OrtEnv* env_ = nullptr;
  OrtSessionOptions* options_ = nullptr;
  OrtSession* session_ = nullptr;
  OrtMemoryInfo* memory_ = nullptr;
  MappedFile tables_;
};

// What a run reads and writes, bound by name.
class Binding {
 public:
  explicit Binding(const OnnxModel& model) : model_(model) { must(api().CreateIoBinding()(model.session(), &binding_)); }
  ~Binding() {
    if (binding_) api().ReleaseIoBinding()(binding_);
    for (OrtValue* value : values_)
      if (value) api().ReleaseValue()(value);
  }
  Binding(const Binding&) = delete;
  Binding& operator=(const Binding&) = delete;

  OrtValue* tensor(const void* data, size_t bytes, const std::vector<int64_t>& shape, const std::string& dtype) {
    values_.push_back(nullptr);
    must(api().CreateTensorWithDataAsOrtValue()(model_.memory(), const_cast<void*>(data), bytes, shape.data(), shape.size(),
                                                element_type(dtype), &values_.back()));
    return values_.back();
  }
  void input(const std::string& name, const OrtValue* value) { must(api().BindInput()(binding_, name.c_str(), value)); }
  void output(const std::string& name, const OrtValue* value) { must(api().BindOutput()(binding_, name.c_str(), value)); }
  void run(int64_t position, const OrtRunOptions* options) {
    check(model_.runtime(), api().RunWithBinding()(model_.session(), options, binding_),
          "stopped at position " + std::to_string(position), kCheckFailed);
  }

 private:
  const ort::Api& api() const { return model_.runtime().api; }
  void must(OrtStatus* status) const { check(model_.runtime(), status, "refuses what the manifest describes", kBadInput); }

  const OnnxModel& model_;
  OrtIoBinding* binding_ = nullptr;
  std::vector<OrtValue*> values_;
};

// How a context runs: until it is told to stop.
class RunOptions {
 public:
  explicit RunOptions(const OnnxModel& model) : model_(model) {
    check(model.runtime(), api().CreateRunOptions()(&options_), "has no options for a run", kMissing);
  }
  ~RunOptions() { api().ReleaseRunOptions()(options_); }
  RunOptions(const RunOptions&) = delete;
  RunOptions& operator=(const RunOptions&) = delete;

  const OrtRunOptions* get() const { return options_; }
  void terminate(bool on) noexcept {
    OrtStatus* status = on ? api().RunOptionsSetTerminate()(options_) : api().RunOptionsUnsetTerminate()(options_);
    if (status) api().ReleaseStatus()(status);  // never so far: it sets a flag
  }

 private:
  const ort::Api& api() const { return model_.runtime().api; }

  const OnnxModel& model_;
  OrtRunOptions* options_ = nullptr;
};

class OnnxContext : public Context {
 public:
  OnnxContext(const OnnxModel& model, float* logits) : model_(model), logits_(logits), options_(model), decode_(model) {
    for (const Buffer& b : model.artifact().buffers) buffers_.push_back(zeros<char>(b.bytes));
    // Decoding binds once: the token, its position and the logits keep their place in memory from step to step.
    bind(decode_, &token_, 1);
  }

  void run(const int64_t* ids, int64_t n, int64_t position) override {
    position_ = position;
    if (n == 1) {
      token_ = *ids;
      decode_.run(position, options_.get());
    } else {
      Binding prefill(model_);
      bind(prefill, ids, n);
      prefill.run(position, options_.get());
    }
    model_.tables().give_back();
  }

  // ONNX Runtime looks before each node of the graph.
  void stop(bool on) noexcept override { options_.terminate(on); }

  char* buffer(size_t i) override { return buffers_[i].get(); }

 private:
  void bind(Binding& binding, const int64_t* ids, int64_t n) {
    binding.input("ids", binding.tensor(ids, size_t(n) * sizeof *ids, {n}, "int64"));
    binding.input("position", binding.tensor(&position_, sizeof position_, {1}, "int64"));
    std::vector<OrtValue*> caches;
    for (size_t i = 0; i < buffers_.size(); i++) {
      const Buffer& b = model_.artifact().buffers[i];
      caches.push_back(binding.tensor(buffers_[i].get(), b.bytes, b.shape, b.dtype));
      binding.input(b.name, caches.back());
    }
    const size_t bytes = size_t(model_.vocab_size()) * sizeof(float);
    binding.output("logits", binding.tensor(logits_, bytes, {model_.vocab_size()}, "float32"));
    for (const auto& [output, buffer] : model_.artifact().aliases) binding.output(output, caches[buffer]);
  }

  const OnnxModel& model_;
  int64_t token_ = 0, position_ = 0;
  float* logits_;
  std::vector<Zeros<char>> buffers_;
  RunOptions options_;
  Binding decode_;
};

std::unique_ptr<Context> OnnxModel::new_context(float* logits) { return std::make_unique<OnnxContext>(*this, logits); }

}  // namespace

std::unique_ptr<Model> open_onnx(const Manifest& manifest, const Artifact& artifact, const std::string& file, int threads,
                                 const std::string& library) {
  auto model = std::make_unique<OnnxModel>(manifest, artifact, load(library));
  model->open(file, threads);
  return model;
}

}  // namespace edgeqkv
