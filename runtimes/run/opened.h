// A bundle with one session, as this program measures it.
#pragma once

#include <chrono>
#include <cstdint>
#include <functional>
#include <memory>
#include <optional>
#include <string>
#include <utility>
#include <vector>

#include "../native/src/error.h"
#include "../native/src/json.h"
#include "edgeqkv.h"

namespace edgeqkv {

// Throws what a function of the library said, as an exit code.
inline void must(int32_t code) {
  if (code) throw Error(edgeqkv_error(), code == EDGEQKV_CHECK_FAILED || code == EDGEQKV_MISSING ? code : EDGEQKV_BAD_INPUT);
}

inline double seconds_of(const std::function<void()>& work) {
  const auto start = std::chrono::steady_clock::now();
  work();
  return std::chrono::duration<double>(std::chrono::steady_clock::now() - start).count();
}

struct Libraries {
  std::string onnxruntime, executorch;
};

struct Opened {
  Opened(const std::string& folder, const std::string& runtime, const std::string& kernel, int32_t threads,
         const Libraries& libraries) {
    auto or_null = [](const std::string& text) { return text.empty() ? nullptr : text.c_str(); };
    edgeqkv_open_options options = {};
    options.size = sizeof options;
    options.runtime = or_null(runtime);
    options.kernel = or_null(kernel);
    options.threads = threads;
    options.onnxruntime_library = or_null(libraries.onnxruntime);
    options.executorch_library = or_null(libraries.executorch);
    edgeqkv_bundle* opened = nullptr;
    edgeqkv_session* begun = nullptr;
    load_s = seconds_of([&] {
      must(edgeqkv_bundle_open(folder.c_str(), &options, &opened));
      bundle.reset(opened);
      must(edgeqkv_session_open(opened, &begun));
      session.reset(begun);
    });
    info.size = sizeof info;
    must(edgeqkv_bundle_describe(opened, &info));
    load_s -= info.check_seconds;
  }

  std::unique_ptr<edgeqkv_bundle, decltype(&edgeqkv_bundle_close)> bundle{nullptr, edgeqkv_bundle_close};
  std::unique_ptr<edgeqkv_session, decltype(&edgeqkv_session_close)> session{nullptr, edgeqkv_session_close};
  edgeqkv_bundle_info info = {};
  double load_s = 0;  // from reading the manifest to a session that is ready, without the sha256 of the files
};

struct Greedy {
  std::vector<int64_t> ids;
  std::vector<double> seconds;  // until each id
};

// Appends the prompt and continues it, `limit` ids at most.
inline Greedy greedy(Opened& opened, const std::vector<int64_t>& prompt, int64_t limit) {
  struct Clock {
    Greedy found;
    std::chrono::steady_clock::time_point last = std::chrono::steady_clock::now();
  } clock;
  edgeqkv_generate_options options = {};
  options.size = sizeof options;
  options.limit = limit;
  auto on_token = [](void* user, int64_t id, const char*, size_t) -> int32_t {
    if (id < 0) return 0;  // bytes that are no character
    auto& [found, last] = *static_cast<Clock*>(user);
    const auto now = std::chrono::steady_clock::now();
    found.ids.push_back(id);
    found.seconds.push_back(std::chrono::duration<double>(now - last).count());
    last = now;
    return 0;
  };
  must(edgeqkv_session_generate(opened.session.get(), prompt.data(), prompt.size(), &options, on_token, &clock, nullptr));
  return clock.found;
}

// Of this process now.
inline JsonObject memory_json() {
  edgeqkv_memory_info m = {};
  m.size = sizeof m;
  must(edgeqkv_memory(&m));
  JsonObject out;
  for (const auto& [name, bytes] :
       {std::pair("peak_rss", m.peak_rss), {"rss", m.rss}, {"pss", m.pss}, {"private", m.private_rss}})
    out.add(name, bytes < 0 ? std::nullopt : std::optional(bytes));
  return out;
}

// The fields that both ways of running print.
inline JsonObject& about(const Opened& opened, JsonObject& out) {
  const edgeqkv_bundle_info& info = opened.info;
  return out.add("runtime", info.runtime)
      .add("runtime_version", info.runtime_version)
      .add("kernel", info.kernel)
      .add("load_s", opened.load_s)
      .add("cache_bytes", info.cache_bytes);
}

}  // namespace edgeqkv
