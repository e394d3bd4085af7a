// An opened bundle, and the sessions over it (docs/sessions.md has their rules).
#pragma once

#include <atomic>
#include <functional>
#include <memory>
#include <optional>
#include <string>
#include <vector>

#include "engine.h"
#include "manifest.h"
#include "sampler.h"
#include "tokenizer.h"
#include "zeros.h"

namespace edgeqkv {

struct OpenOptions {
  std::string runtime, kernel;  // "" is any
  int threads = 0;
  bool check = true;
  std::string onnxruntime_library, executorch_library;
};

// What sessions share; never changes.
struct Bundle {
  Manifest manifest;
  Artifact artifact;
  std::unique_ptr<Model> model;
  std::unique_ptr<Tokenizer> tokenizer;  // nullptr where there is none that this library knows, and then
  std::string tokenizer_missing;         // why
  double check_seconds = 0;
};

std::shared_ptr<const Bundle> open_bundle(const std::string& folder, const OpenOptions& options);

enum class Stop { kLimit = 1, kEndToken, kFull, kCancelled };

struct Generation {
  Sampling sampling;
  int64_t limit = 0;  // 0: until the cache is full
  std::vector<int64_t> end_tokens;
};

class Session {
 public:
  explicit Session(std::shared_ptr<const Bundle> bundle);

  const Bundle& bundle() const { return *bundle_; }
  const std::vector<int64_t>& tokens() const { return tokens_; }
  const float* logits() const { return has_logits_ ? logits_.get() : nullptr; }
  // From any thread, at any time; cancel from a signal handler too, so that it takes no lock.
  int64_t depth() const { return depth_.load(std::memory_order_relaxed); }
  void cancel();

  void prefill(const int64_t* ids, size_t n);
  void feed(const int64_t* ids, size_t n);
  void rewind(int64_t depth);
  void skip(int64_t n);
  // `on_token` returns false to stop.
  Stop generate(const int64_t* ids, size_t n, const Generation& generation, const std::function<bool(int64_t)>& on_token);
  void save(const std::string& path);
  void restore(const std::string& path);
  std::unique_ptr<Session> fork();

  // A caller's turn. Error with kBusy while another has it.
  class Turn {
   public:
    explicit Turn(Session& session);
    ~Turn();
    Turn(const Turn&) = delete;
    Turn& operator=(const Turn&) = delete;

   private:
    Session& session_;
  };

 private:
  // kStopping is between the other two: while the context is told to stop.
  enum State { kIdle, kInUse, kStopping, kStopped };

  void check_ids(const int64_t* ids, size_t n) const;
  void check_room(size_t n, size_t filled) const;
  void set_depth(size_t depth);
  // Runs checked ids in chunks; all of them, or none.
  void append(const int64_t* ids, size_t n);

  std::shared_ptr<const Bundle> bundle_;
  Zeros<float> logits_;  // before what writes it
  std::unique_ptr<Context> context_;
  std::vector<int64_t> tokens_;
  bool has_logits_ = false;
  std::atomic<int64_t> depth_{0};  // the number of tokens_
  std::atomic<int> state_{kIdle};
};

}  // namespace edgeqkv
