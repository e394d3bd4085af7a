// A runtime behind two small interfaces: what is loaded once, and what each session has.
#pragma once

#include <cstdint>
#include <memory>
#include <string>

#include "manifest.h"

namespace edgeqkv {

// The cache of one session, and the way to run over it. For one thread at a time, but for stop.
class Context {
 public:
  virtual ~Context() = default;
  // Appends ids[0 .. n), 1 <= n <= prefill_chunk, at `position`; writes the logits of the last one. The caller has checked that
  // they fit.
  virtual void run(const int64_t* ids, int64_t n, int64_t position) = 0;
  // From any thread or signal handler: while `on`, a run ends with an Error as soon as the runtime looks.
  virtual void stop(bool on) noexcept = 0;
  // The memory of the artifact's buffer `i`.
  virtual char* buffer(size_t i) = 0;
};

// An artifact with its weights, for any number of contexts and threads. It outlives its contexts.
class Model {
 public:
  virtual ~Model() = default;
  virtual std::string version() const = 0;  // of the runtime's library
  // `logits`, vocab_size of them, is where the context writes; it outlives the context.
  virtual std::unique_ptr<Context> new_context(float* logits) = 0;
};

// `file` is the one to load. `library` is the path of the runtime's shared library (for ExecuTorch that of our session), or
// empty. Error with kMissing where this process cannot run the artifact at all.
std::unique_ptr<Model> open_onnx(const Manifest& manifest, const Artifact& artifact, const std::string& file, int threads,
                                 const std::string& library);
std::unique_ptr<Model> open_executorch(const Manifest& manifest, const Artifact& artifact, const std::string& file, int threads,
                                       const std::string& library);

}  // namespace edgeqkv
