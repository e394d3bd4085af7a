// edgeqkv.h over Bundle and Session: arguments are checked, errors become codes and sentences, and nothing is thrown any
// further.
#include "edgeqkv.h"

#include <algorithm>
#include <cstdio>
#include <cstring>
#include <new>

#include "error.h"
#include "json.h"
#include "memory.h"
#include "session.h"

using edgeqkv::Error;
using edgeqkv::Session;

struct edgeqkv_bundle {
  std::shared_ptr<const edgeqkv::Bundle> opened;
  std::string runtime_version, json;
};

struct edgeqkv_session {
  std::unique_ptr<Session> session;
};

namespace {

// A plain array: a thread-local object with a destructor would keep the library from ever being unloaded.
thread_local char sentence[1024];

int32_t fail(int32_t code, const char* why) {
  size_t n = std::min(std::strlen(why), sizeof sentence - 1);
  while (n && why[n] && (static_cast<unsigned char>(why[n]) & 0xc0) == 0x80) n--;  // no half of a character
  std::memcpy(sentence, why, n);
  sentence[n] = 0;
  return code;
}

template <class Work>
int32_t guarded(Work work) {
  try {
    work();
    return EDGEQKV_SUCCESS;
  } catch (const Error& error) {
    return fail(error.kind, error.what());
  } catch (const std::bad_alloc&) {
    return fail(EDGEQKV_MISSING, "there is not enough memory");
  } catch (const std::length_error&) {
    return fail(EDGEQKV_MISSING, "there is not enough memory");
  } catch (const std::exception& error) {
    return fail(EDGEQKV_CHECK_FAILED, error.what());
  } catch (...) {
    return fail(EDGEQKV_CHECK_FAILED, "the callback threw an exception");
  }
}

void need(const void* pointer, const char* name) {
  if (!pointer) throw Error(std::string(name) + " is NULL");
}

// The work on a session, with its turn.
template <class Work>
int32_t on_session(edgeqkv_session* session, Work work) {
  return guarded([&] {
    need(session, "session");
    const Session::Turn turn(*session->session);
    work(*session->session);
  });
}

// A struct of the caller's, as far as it reaches; what this version does not know of it has to be zero.
template <class Struct>
Struct taken(const Struct* given, const char* name) {
  Struct out = {};
  if (!given) return out;
  constexpr size_t kMost = 4096;
  if (given->size < sizeof given->size || given->size > kMost)
    throw Error(std::string(name) + ".size is not the size of the struct");
  std::memcpy(&out, given, std::min(given->size, sizeof out));
  const auto* bytes = reinterpret_cast<const char*>(given);
  if (std::any_of(bytes + std::min(given->size, sizeof out), bytes + given->size, [](char byte) { return byte != 0; }))
    throw Error(std::string(name) + " asks for what this version of libedgeqkv does not know");
  return out;
}

template <class Struct>
void give(Struct value, Struct* out, const char* name) {
  need(out, name);
  if (out->size < sizeof out->size) throw Error(std::string(name) + ".size is not the size of the struct");
  value.size = out->size;
  std::memcpy(out, &value, std::min(out->size, sizeof value));
}

std::string text_or_empty(const char* text) { return text ? text : ""; }

edgeqkv_bundle_info info_of(const edgeqkv_bundle& bundle) {
  const edgeqkv::Manifest& manifest = bundle.opened->manifest;
  const edgeqkv::Artifact& artifact = bundle.opened->artifact;
  edgeqkv_bundle_info info = {};
  info.variant = manifest.variant.c_str();
  info.runtime = artifact.runtime.c_str();
  info.runtime_version = bundle.runtime_version.c_str();
  info.kernel = artifact.kernel.c_str();
  info.weights = artifact.weights.c_str();
  info.cache_dtype = artifact.cache_dtype.c_str();
  info.tokenizer_missing = bundle.opened->tokenizer ? nullptr : bundle.opened->tokenizer_missing.c_str();
  info.capacity = manifest.capacity;
  info.vocab_size = manifest.vocab_size;
  info.token_count = manifest.token_count;
  info.prefill_chunk = artifact.prefill_chunk;
  info.cache_bytes = artifact.cache_bytes;
  info.end_tokens = manifest.end_tokens.data();
  info.n_end_tokens = manifest.end_tokens.size();
  info.check_seconds = bundle.opened->check_seconds;
  return info;
}

std::string json_of(const edgeqkv_bundle& bundle) {
  const edgeqkv_bundle_info info = info_of(bundle);
  const edgeqkv::Manifest& manifest = bundle.opened->manifest;
  edgeqkv::JsonObject special_tokens, out;
  for (const auto& [name, token] : manifest.special_tokens) special_tokens.add(name, token);
  out.add("variant", info.variant)
      .add("runtime", info.runtime)
      .add("runtime_version", info.runtime_version)
      .add("kernel", info.kernel)
      .add("weights", info.weights)
      .add("cache_dtype", info.cache_dtype)
      .add("capacity", info.capacity)
      .add("vocab_size", info.vocab_size)
      .add("token_count", info.token_count)
      .add("prefill_chunk", info.prefill_chunk)
      .add("cache_bytes", info.cache_bytes)
      .add("text", !info.tokenizer_missing)
      .add("end_tokens", manifest.end_tokens)
      .add("chat_template", manifest.chat_template)
      .add("special_tokens", special_tokens);
  return out.text();
}

const edgeqkv::Tokenizer& tokenizer_of(const edgeqkv_bundle* bundle) {
  need(bundle, "bundle");
  if (!bundle->opened->tokenizer) throw Error(bundle->opened->tokenizer_missing, edgeqkv::kMissing);
  return *bundle->opened->tokenizer;
}

void give_logits(const Session& session, const float** logits) {
  if (logits) *logits = session.logits();
}

edgeqkv_session* wrapped(std::unique_ptr<Session> session) {
  auto made = std::make_unique<edgeqkv_session>();
  made->session = std::move(session);
  return made.release();
}

}  // namespace

const char* edgeqkv_version(void) { return EDGEQKV_VERSION; }

const char* edgeqkv_error(void) { return sentence; }

int32_t edgeqkv_bundle_open(const char* folder, const edgeqkv_open_options* options, edgeqkv_bundle** bundle) {
  return guarded([&] {
    need(folder, "folder");
    need(bundle, "bundle");
    const edgeqkv_open_options given = taken(options, "options");
    auto opened = std::make_unique<edgeqkv_bundle>();
    opened->opened = edgeqkv::open_bundle(
        folder, {text_or_empty(given.runtime), text_or_empty(given.kernel), given.threads, !given.unchecked,
                 text_or_empty(given.onnxruntime_library), text_or_empty(given.executorch_library)});
    opened->runtime_version = opened->opened->model->version();
    opened->json = json_of(*opened);
    *bundle = opened.release();
  });
}

void edgeqkv_bundle_close(edgeqkv_bundle* bundle) { delete bundle; }

int32_t edgeqkv_bundle_describe(const edgeqkv_bundle* bundle, edgeqkv_bundle_info* info) {
  return guarded([&] {
    need(bundle, "bundle");
    give(info_of(*bundle), info, "info");
  });
}

const char* edgeqkv_bundle_json(const edgeqkv_bundle* bundle) { return bundle ? bundle->json.c_str() : nullptr; }

int32_t edgeqkv_bundle_encode(const edgeqkv_bundle* bundle, const char* text, size_t text_bytes, int32_t add_special,
                              int64_t* ids, size_t capacity, size_t* n) {
  return guarded([&] {
    if (text_bytes) need(text, "text");
    if (capacity) need(ids, "ids");
    need(n, "n");
    const std::vector<int32_t> found = tokenizer_of(bundle).encode({text, text_bytes}, add_special != 0);
    std::copy_n(found.begin(), std::min(capacity, found.size()), ids);
    *n = found.size();
  });
}

int32_t edgeqkv_bundle_decode(const edgeqkv_bundle* bundle, const int64_t* ids, size_t n_ids, char* text, size_t capacity,
                              size_t* n) {
  return guarded([&] {
    if (n_ids) need(ids, "ids");
    if (capacity) need(text, "text");
    need(n, "n");
    for (size_t i = 0; i < n_ids; i++)
      if (ids[i] < 0 || ids[i] > INT32_MAX) throw Error("token id " + std::to_string(ids[i]) + " is out of range");
    const std::string found = tokenizer_of(bundle).decode({ids, ids + n_ids}, true);
    std::copy_n(found.begin(), std::min(capacity, found.size()), text);
    *n = found.size();
  });
}

int32_t edgeqkv_session_open(const edgeqkv_bundle* bundle, edgeqkv_session** session) {
  return guarded([&] {
    need(bundle, "bundle");
    need(session, "session");
    *session = wrapped(std::make_unique<Session>(bundle->opened));
  });
}

int32_t edgeqkv_session_close(edgeqkv_session* session) {
  if (!session) return EDGEQKV_SUCCESS;
  // The turn ends before what it is a turn of.
  const int32_t code = on_session(session, [](Session&) {});
  if (code == EDGEQKV_SUCCESS) delete session;
  return code;
}

int64_t edgeqkv_session_depth(const edgeqkv_session* session) { return session ? session->session->depth() : -1; }

int32_t edgeqkv_session_tokens(edgeqkv_session* session, int64_t* ids, size_t capacity, size_t* n) {
  return on_session(session, [&](Session& s) {
    need(n, "n");
    if (capacity) need(ids, "ids");
    std::copy_n(s.tokens().begin(), std::min(capacity, s.tokens().size()), ids);
    *n = s.tokens().size();
  });
}

int32_t edgeqkv_session_logits(edgeqkv_session* session, const float** logits) {
  return on_session(session, [&](Session& s) {
    need(logits, "logits");
    give_logits(s, logits);
  });
}

int32_t edgeqkv_session_prefill(edgeqkv_session* session, const int64_t* ids, size_t n, const float** logits) {
  return on_session(session, [&](Session& s) {
    if (n) need(ids, "ids");
    s.prefill(ids, n);
    give_logits(s, logits);
  });
}

int32_t edgeqkv_session_step(edgeqkv_session* session, int64_t id, const float** logits) {
  return edgeqkv_session_prefill(session, &id, 1, logits);
}

int32_t edgeqkv_session_feed(edgeqkv_session* session, const int64_t* ids, size_t n, const float** logits) {
  return on_session(session, [&](Session& s) {
    if (n) need(ids, "ids");
    s.feed(ids, n);
    give_logits(s, logits);
  });
}

int32_t edgeqkv_session_rewind(edgeqkv_session* session, int64_t depth) {
  return on_session(session, [&](Session& s) { s.rewind(depth); });
}

int32_t edgeqkv_session_reset(edgeqkv_session* session) { return edgeqkv_session_rewind(session, 0); }

void edgeqkv_session_cancel(edgeqkv_session* session) {
  if (session) session->session->cancel();
}

int32_t edgeqkv_session_skip(edgeqkv_session* session, int64_t n) {
  return on_session(session, [&](Session& s) { s.skip(n); });
}

int32_t edgeqkv_session_generate(edgeqkv_session* session, const int64_t* ids, size_t n,
                                 const edgeqkv_generate_options* options, edgeqkv_on_token on_token, void* user,
                                 int32_t* stopped) {
  return on_session(session, [&](Session& s) {
    if (n) need(ids, "ids");
    need(reinterpret_cast<const void*>(on_token), "on_token");
    const edgeqkv_generate_options given = taken(options, "options");
    if (given.n_end_tokens) need(given.end_tokens, "options.end_tokens");
    edgeqkv::Generation generation;
    generation.sampling.temperature = given.temperature;
    generation.sampling.top_k = given.top_k;
    if (given.top_p != 0) generation.sampling.top_p = given.top_p;
    if (given.repetition_penalty != 0) generation.sampling.repetition_penalty = given.repetition_penalty;
    generation.sampling.seed = given.seed;
    generation.limit = given.limit;
    if (!given.ignore_end_tokens) generation.end_tokens = s.bundle().manifest.end_tokens;
    generation.end_tokens.insert(generation.end_tokens.end(), given.end_tokens, given.end_tokens + given.n_end_tokens);
    std::optional<edgeqkv::DecodeStream> stream;
    if (s.bundle().tokenizer) stream.emplace(*s.bundle().tokenizer, true);
    const edgeqkv::Stop stop = s.generate(ids, n, generation, [&](int64_t id) {
      const std::string text = stream ? stream->push(int32_t(id)) : std::string();
      return on_token(user, id, text.data(), text.size()) == 0;
    });
    const std::string rest = stream ? stream->flush() : std::string();
    if (!rest.empty() && stop != edgeqkv::Stop::kCancelled) on_token(user, -1, rest.data(), rest.size());
    if (stopped) *stopped = int32_t(stop);
  });
}

int32_t edgeqkv_session_save(edgeqkv_session* session, const char* path) {
  return on_session(session, [&](Session& s) {
    need(path, "path");
    s.save(path);
  });
}

int32_t edgeqkv_session_restore(edgeqkv_session* session, const char* path) {
  return on_session(session, [&](Session& s) {
    need(path, "path");
    s.restore(path);
  });
}

int32_t edgeqkv_session_fork(edgeqkv_session* session, edgeqkv_session** fork) {
  return on_session(session, [&](Session& s) {
    need(fork, "fork");
    *fork = wrapped(s.fork());
  });
}

int32_t edgeqkv_memory(edgeqkv_memory_info* memory) {
  return guarded([&] {
    const edgeqkv::Memory now = edgeqkv::memory_of_this_process();
    give({0, now.peak_rss, now.rss, now.pss, now.private_rss}, memory, "memory");
  });
}
