// What the runner needs of a bundle's manifest, edgeqkv.json (edgeqkv/bundle.py is its definition).
#pragma once

#include <cstdint>
#include <map>
#include <string>
#include <vector>

namespace edgeqkv {

struct Buffer {
  std::string name, dtype;  // "float32", "float16" or "int8"
  std::vector<int64_t> shape;

  size_t bytes() const;
};

struct Artifact {
  std::string runtime, kernel, file, cache_dtype, weights;
  int64_t prefill_chunk = 1;
  int64_t cache_bytes = 0;                     // of the whole cache, scales included
  int64_t constant_scale_bytes = 0;            // those of them that are constants of the program
  std::vector<Buffer> caches;                  // that the caller allocates and binds; empty where the program holds them
  std::map<std::string, std::string> aliases;  // cache output -> the cache input whose memory it shares
};

struct Bundle {
  std::string folder, variant;
  int64_t capacity = 0, vocab_size = 0, token_count = 0;
  std::vector<Artifact> artifacts;
};

Bundle read_bundle(const std::string& folder);

// The first artifact for a runtime and a kernel; "" is any.
const Artifact& choose_artifact(const Bundle& bundle, const std::string& runtime, const std::string& kernel);

}  // namespace edgeqkv
