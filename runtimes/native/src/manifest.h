// A bundle's manifest, edgeqkv.json, formats 3 and 4: what a runtime needs of it, checked.
#pragma once

#include <cstdint>
#include <optional>
#include <string>
#include <utility>
#include <vector>

namespace edgeqkv {

// A buffer that is kept between steps. Along its axis of positions it is [outer, capacity, inner]: for each of `outer` the
// filled rows lie side by side, `inner_bytes` each.
struct Buffer {
  std::string name, dtype;  // "float32", "float16" or "int8"
  std::vector<int64_t> shape;
  size_t bytes = 0, outer = 0, inner_bytes = 0;
};

// Calls piece(place, bytes) for every contiguous piece of the positions first .. first + n - 1 of a buffer.
template <class Piece>
void for_rows(const Buffer& buffer, size_t first, size_t n, Piece piece) {
  const size_t step = buffer.bytes / buffer.outer;
  for (size_t i = 0; i < buffer.outer; i++) piece(i * step + first * buffer.inner_bytes, n * buffer.inner_bytes);
}

struct Artifact {
  std::string runtime, kernel, weights, cache_dtype;
  std::vector<std::pair<std::string, std::string>> files;  // name in the bundle, sha256; the first is the one to load
  std::vector<Buffer> buffers;
  // Cache output -> index of the buffer whose memory it shares; empty where the program holds the cache itself.
  std::vector<std::pair<std::string, size_t>> aliases;
  int64_t prefill_chunk = 0;
  int64_t cache_bytes = 0;         // of the whole cache, all scales included
  int64_t static_scale_bytes = 0;  // those of them that are constants of the program
};

struct Manifest {
  int64_t format = 0;
  std::string variant, checkpoint_sha256;
  int64_t n_layer = 0, vocab_size = 0, token_count = 0, capacity = 0;
  std::string tokenizer_file, tokenizer_sha256;  // empty: the model came without one
  std::vector<int64_t> end_tokens;
  std::optional<std::string> chat_template;
  std::vector<std::pair<std::string, std::string>> special_tokens;
  std::vector<Artifact> artifacts;
};

// Error with the path and what is wrong.
Manifest read_manifest(const std::string& folder);

// Those for a runtime and a kernel, "" is any, in the manifest's order. Error with what there is where there are none.
std::vector<const Artifact*> matching_artifacts(const Manifest& manifest, const std::string& folder, const std::string& runtime,
                                                const std::string& kernel);

}  // namespace edgeqkv
