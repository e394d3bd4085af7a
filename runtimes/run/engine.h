// A runtime behind three calls; the session above it knows chunks and depth (edgeqkv/session.py is its twin in Python).
#pragma once

#include <memory>
#include <string>
#include <vector>

#include "bundle.h"

namespace edgeqkv {

class Engine {
 public:
  virtual ~Engine() = default;
  virtual std::string version() const = 0;
  // Of the cache buffers that are really there.
  virtual int64_t cache_bytes() const = 0;
  // Appends ids[0 .. n) at `position`; the logits of the last one into `logits`, vocab_size of them.
  virtual void run(const int64_t* ids, int64_t n, int64_t position, float* logits) = 0;
};

using Files = std::vector<std::string>;

// `libraries` may name the runtime's shared library, for ExecuTorch our session's (see Library). `threads` 0 is the runtime's choice.
std::unique_ptr<Engine> open_onnx(const Bundle& bundle, const Artifact& artifact, int threads, const Files& libraries);
std::unique_ptr<Engine> open_executorch(const Bundle& bundle, const Artifact& artifact, int threads, const Files& libraries);

class Session {
 public:
  Session(const Bundle& bundle, const Artifact& artifact, int threads, const Files& libraries);

  // Appends ids, in the artifact's chunks; the id with the highest logit after the last one.
  int64_t prefill(const std::vector<int64_t>& ids);

  const Bundle& bundle() const { return bundle_; }
  const Artifact& artifact() const { return artifact_; }
  const Engine& engine() const { return *engine_; }

  int64_t depth = 0;  // filled positions; set it back to write over rows that are there

 private:
  Bundle bundle_;
  Artifact artifact_;
  std::unique_ptr<Engine> engine_;
  std::vector<float> logits_;
};

}  // namespace edgeqkv
