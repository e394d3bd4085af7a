#include "session.h"

#include <algorithm>
#include <chrono>
#include <cstring>
#include <thread>

#include "error.h"
#include "file.h"
#include "limits.h"
#include "session_file.h"

namespace edgeqkv {
namespace {

void check_file(const std::string& folder, const std::string& name, const std::string& sha256) {
  const std::string path = file_in_bundle(folder, name);
  if (file_sha256(path) != sha256)
    throw Error(folder + "/" + name + " is not the file that was exported (its sha256 differs); copy or export it again");
}

std::unique_ptr<Model> open_model(const Manifest& manifest, const Artifact& artifact, const std::string& folder,
                                  const OpenOptions& options) {
  for (const auto& [name, sha256] : artifact.files) file_in_bundle(folder, name);
  const std::string file = file_in_bundle(folder, artifact.files[0].first);
  if (artifact.runtime == "onnx") return open_onnx(manifest, artifact, file, options.threads, options.onnxruntime_library);
  if (artifact.runtime == "executorch" && manifest.format == 3)
    throw Error(file +
                " was exported by an edgeqkv before 0.2, whose attention operator took other arguments; export the bundle" +
                " again");
  if (artifact.runtime == "executorch")
    return open_executorch(manifest, artifact, file, options.threads, options.executorch_library);
  throw Error("libedgeqkv has no engine for the runtime '" + artifact.runtime + "'", kMissing);
}

void open_tokenizer(const std::string& folder, Bundle& bundle) {
  if (bundle.manifest.tokenizer_file.empty()) {
    bundle.tokenizer_missing = folder + " has no tokenizer, so it cannot take or write text; use token ids";
    return;
  }
  try {
    const Bytes bytes = read_file(file_in_bundle(folder, bundle.manifest.tokenizer_file), kMostTokenizerBytes);
    bundle.tokenizer = Tokenizer::parse({bytes.data.get(), bytes.size});
  } catch (const Error& error) {
    bundle.tokenizer_missing = folder + "/" + bundle.manifest.tokenizer_file + ": " + error.what() + "; use token ids";
  }
}

}  // namespace

std::shared_ptr<const Bundle> open_bundle(const std::string& folder, const OpenOptions& options) {
  if (options.threads < 0 || options.threads > kMostThreads)
    throw Error("threads must be 0 (the runtime's choice) to " + std::to_string(kMostThreads) + ", found " +
                std::to_string(options.threads));
  auto bundle = std::make_shared<Bundle>();
  bundle->manifest = read_manifest(folder);
  const Manifest& manifest = bundle->manifest;
  std::optional<Error> missing;
  for (const Artifact* artifact : matching_artifacts(manifest, folder, options.runtime, options.kernel)) {
    try {
      if (options.check) {
        const auto start = std::chrono::steady_clock::now();
        for (const auto& [name, sha256] : artifact->files) check_file(folder, name, sha256);
        if (!manifest.tokenizer_sha256.empty()) check_file(folder, manifest.tokenizer_file, manifest.tokenizer_sha256);
        bundle->check_seconds += std::chrono::duration<double>(std::chrono::steady_clock::now() - start).count();
      }
      bundle->model = open_model(manifest, *artifact, folder, options);
      bundle->artifact = *artifact;
      open_tokenizer(folder, *bundle);
      return bundle;
    } catch (const Error& error) {  // the next may run here
      if (error.kind != kMissing) throw;
      if (!missing) missing = error;
    }
  }
  throw *missing;
}

Session::Turn::Turn(Session& session) : session_(session) {
  int idle = kIdle;
  if (!session.state_.compare_exchange_strong(idle, kInUse))
    throw Error("the session is in use, by another thread or by the call that this one was made from", kBusy);
}

Session::Turn::~Turn() {
  int state = kInUse;
  if (session_.state_.compare_exchange_strong(state, kIdle)) return;
  while (session_.state_ == kStopping) std::this_thread::yield();
  session_.context_->stop(false);
  session_.state_ = kIdle;
}

Session::Session(std::shared_ptr<const Bundle> bundle)
    : bundle_(std::move(bundle)),
      logits_(zeros<float>(size_t(bundle_->manifest.vocab_size))),
      context_(bundle_->model->new_context(logits_.get())) {
  tokens_.reserve(size_t(bundle_->manifest.capacity));
}

void Session::cancel() {
  int running = kInUse;
  if (!state_.compare_exchange_strong(running, kStopping)) return;
  context_->stop(true);
  state_ = kStopped;
}

void Session::check_ids(const int64_t* ids, size_t n) const {
  const int64_t known = bundle_->manifest.token_count;
  if (n == 0) throw Error("give at least one token id");
  for (size_t i = 0; i < n; i++)
    if (ids[i] < 0 || ids[i] >= known)
      throw Error("token id " + std::to_string(ids[i]) + " is out of range: this model knows 0 to " +
                  std::to_string(known - 1));
}

void Session::check_room(size_t n, size_t filled) const {
  const auto capacity = size_t(bundle_->manifest.capacity);
  if (n > capacity - filled)
    throw Error(std::to_string(n) + " more tokens do not fit: the cache holds " + std::to_string(capacity) + " positions and " +
                    std::to_string(filled) + " are filled; reset the session, or export with a larger --capacity",
                kCacheFull);
}

void Session::set_depth(size_t depth) {
  tokens_.resize(depth);
  depth_.store(int64_t(depth), std::memory_order_relaxed);
}

void Session::append(const int64_t* ids, size_t n) {
  const size_t before = tokens_.size();
  has_logits_ = false;
  try {
    for (const int64_t* end = ids + n; ids < end;) {
      if (state_ != kInUse) throw Error("the call was cancelled", kCancelled);
      const int64_t chunk = std::min<int64_t>(bundle_->artifact.prefill_chunk, end - ids);
      context_->run(ids, chunk, int64_t(tokens_.size()));
      tokens_.insert(tokens_.end(), ids, ids + chunk);  // reserved, so that it cannot fail
      set_depth(tokens_.size());
      ids += chunk;
    }
  } catch (...) {
    set_depth(before);
    if (state_ != kInUse) throw Error("the call was cancelled", kCancelled);  // which the runtime calls a failure
    throw;
  }
  has_logits_ = true;
}

void Session::prefill(const int64_t* ids, size_t n) {
  check_ids(ids, n);
  check_room(n, tokens_.size());
  append(ids, n);
}

void Session::feed(const int64_t* ids, size_t n) {
  check_ids(ids, n);
  check_room(n, 0);
  const size_t both = std::min(n, tokens_.size());
  const size_t held = size_t(std::mismatch(ids, ids + both, tokens_.begin()).first - ids);
  const size_t kept = std::min(held, n - 1);
  set_depth(kept);
  append(ids + kept, n - kept);
}

void Session::rewind(int64_t depth) {
  if (depth < 0 || size_t(depth) > tokens_.size())
    throw Error("cannot rewind to depth " + std::to_string(depth) + ": " + std::to_string(tokens_.size()) +
                " positions are filled");
  if (size_t(depth) < tokens_.size()) has_logits_ = false;
  set_depth(size_t(depth));
}

void Session::skip(int64_t n) {
  if (n < 0) throw Error("cannot skip " + std::to_string(n) + " positions");
  check_room(size_t(n), tokens_.size());
  for (size_t i = 0; i < bundle_->artifact.buffers.size(); i++)
    for_rows(bundle_->artifact.buffers[i], tokens_.size(), size_t(n),
             [&](size_t place, size_t bytes) { std::memset(context_->buffer(i) + place, 0, bytes); });
  if (n) has_logits_ = false;
  set_depth(tokens_.size() + size_t(n));
}

Stop Session::generate(const int64_t* ids, size_t n, const Generation& generation,
                       const std::function<bool(int64_t)>& on_token) {
  Sampler sampler(generation.sampling);
  if (generation.limit < 0) throw Error("a limit is a number of tokens, or 0 for none");
  if (n == 0 && !has_logits_) throw Error("give at least one token id: the session has no logits to go on from");
  try {
    if (n) prefill(ids, n);
    for (int64_t count = 1;; count++) {
      const int64_t token = sampler.choose(logits_.get(), size_t(bundle_->manifest.token_count), tokens_);
      const auto& ends = generation.end_tokens;
      if (std::find(ends.begin(), ends.end(), token) != ends.end()) return Stop::kEndToken;
      if (!on_token(token)) return Stop::kCancelled;
      if (count == generation.limit) return Stop::kLimit;
      if (tokens_.size() == size_t(bundle_->manifest.capacity)) return Stop::kFull;
      append(&token, 1);
    }
  } catch (const Error& error) {
    if (error.kind == kCancelled) return Stop::kCancelled;
    throw;
  }
}

void Session::save(const std::string& path) {
  write_session_file(path, bundle_->manifest, bundle_->artifact, *context_, tokens_, logits());
}

void Session::restore(const std::string& path) {
  const SessionFile file = read_session_file(path, bundle_->manifest, bundle_->artifact);
  file.copy_rows(bundle_->artifact, *context_);
  tokens_.assign(file.tokens.begin(), file.tokens.end());
  set_depth(tokens_.size());
  std::copy(file.logits.begin(), file.logits.end(), logits_.get());
  has_logits_ = !file.logits.empty();
}

std::unique_ptr<Session> Session::fork() {
  auto other = std::make_unique<Session>(bundle_);
  for (size_t i = 0; i < bundle_->artifact.buffers.size(); i++)
    for_rows(bundle_->artifact.buffers[i], 0, tokens_.size(), [&](size_t place, size_t bytes) {
      std::memcpy(other->context_->buffer(i) + place, context_->buffer(i) + place, bytes);
    });
  other->tokens_ = tokens_;
  other->set_depth(tokens_.size());
  if (has_logits_) std::memcpy(other->logits_.get(), logits_.get(), size_t(bundle_->manifest.vocab_size) * sizeof(float));
  other->has_logits_ = has_logits_;
  return other;
}

}  // namespace edgeqkv
