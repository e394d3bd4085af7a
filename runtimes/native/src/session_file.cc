#include "session_file.h"

#include <algorithm>
#include <cstring>

#include "error.h"
#include "json.h"
#include "limits.h"
#include "sha256.h"

#if !defined(__BYTE_ORDER__) || __BYTE_ORDER__ != __ORDER_LITTLE_ENDIAN__
#error "session files are little-endian, and so is every machine that this was written for"
#endif

namespace edgeqkv {
namespace {

constexpr char kMagic[8] = {'E', 'D', 'G', 'E', 'Q', 'K', 'V', 'S'};
constexpr uint32_t kVersion = 1;
constexpr size_t kPrefix = sizeof kMagic + 2 * sizeof(uint32_t), kDigest = 32;
static_assert(sizeof(float) == 4);

std::string header(const Manifest& manifest, const Artifact& artifact, size_t depth, bool logits) {
  JsonObject files;
  for (const auto& [name, sha256] : artifact.files) files.add(name, sha256);
  std::vector<JsonObject> buffers;
  for (const Buffer& b : artifact.buffers)
    buffers.push_back(JsonObject().add("name", b.name).add("dtype", b.dtype).add("shape", b.shape));
  return JsonObject()
      .add("checkpoint_sha256", manifest.checkpoint_sha256)
      .add("runtime", artifact.runtime)
      .add("kernel", artifact.kernel)
      .add("files", files)
      .add("vocab_size", manifest.vocab_size)
      .add("capacity", manifest.capacity)
      .add("cache_dtype", artifact.cache_dtype)
      .add("buffers", buffers)
      .add("depth", depth)
      .add("logits", logits)
      .text();
}

struct Header {
  size_t depth = 0;
  bool logits = false;
  std::vector<size_t> order;  // the artifact's buffers, as they lie in the file
};

// Error with what belongs to another bundle, artifact or cache.
Header read_header(const Json& json, const Manifest& manifest, const Artifact& artifact) {
  if (json.object("the header").keys.size() != 10) throw Error("its header has other fields than this version knows");
  auto same = [](const std::string& found, const std::string& expected, const char* what) {
    if (found != expected)
      throw Error(std::string("it was saved with another ") + what + ": '" + found + "', and this session has '" + expected +
                  "'");
  };
  auto text = [&](const char* field, const std::string& expected, const char* what) {
    same(json.at(field).string(field), expected, what);
  };
  auto number = [&](const char* field, int64_t expected, const char* what) {
    same(std::to_string(json.at(field).integer(field)), std::to_string(expected), what);
  };
  text("checkpoint_sha256", manifest.checkpoint_sha256, "model");
  text("runtime", artifact.runtime, "runtime");
  text("kernel", artifact.kernel, "kernel");
  text("cache_dtype", artifact.cache_dtype, "cache dtype");
  number("capacity", manifest.capacity, "capacity");
  number("vocab_size", manifest.vocab_size, "vocabulary size");
  const Json& files = json.at("files").object("files");
  bool equal = files.keys.size() == artifact.files.size();
  for (const auto& [name, sha256] : artifact.files) {
    const Json* found = files.find(name);
    equal = equal && found && found->string("a sha256") == sha256;
  }
  if (!equal) throw Error("it was saved with another export of the model: the files are not the same");

  Header header;
  const std::vector<Json>& buffers = json.at("buffers").array("buffers").items;
  for (const Json& b : buffers) {
    const auto found = std::find_if(artifact.buffers.begin(), artifact.buffers.end(),
                                    [&](const Buffer& ours) { return ours.name == b.at("name").string("name"); });
    bool fits = found != artifact.buffers.end() && b.at("dtype").string("dtype") == found->dtype;
    const std::vector<Json>& shape = b.at("shape").array("shape").items;
    fits = fits && shape.size() == found->shape.size();
    for (size_t i = 0; fits && i < shape.size(); i++) fits = shape[i].integer("a size") == found->shape[i];
    if (!fits) throw Error("it was saved with another cache: its buffers are not those of this session");
    header.order.push_back(size_t(found - artifact.buffers.begin()));
  }
  std::vector<size_t> sorted = header.order;
  std::sort(sorted.begin(), sorted.end());
  for (size_t i = 0; i < artifact.buffers.size(); i++)
    if (sorted.size() != artifact.buffers.size() || sorted[i] != i)
      throw Error("it does not hold every buffer of the cache once");
  const int64_t depth = json.at("depth").integer("depth");
  header.logits = json.at("logits").boolean("logits");
  if (depth < 0 || depth > manifest.capacity)
    throw Error("its depth is " + std::to_string(depth) + ", which no cache of this bundle holds");
  if (depth == 0 && header.logits) throw Error("it has logits and no tokens");
  header.depth = size_t(depth);
  return header;
}

size_t most_bytes(const Manifest& manifest, const Artifact& artifact) {
  size_t bytes =
      kPrefix + kMostHeaderBytes + size_t(manifest.capacity) * sizeof(int32_t) + size_t(manifest.vocab_size) * sizeof(float);
  for (const Buffer& b : artifact.buffers) bytes += b.bytes;
  return bytes + kDigest;
}

SessionFile read(Bytes bytes, const Manifest& manifest, const Artifact& artifact) {
  const char* data = bytes.data.get();
  auto number = [&](size_t place) {
    uint32_t value = 0;
    std::memcpy(&value, data + place, sizeof value);
    return value;
  };
  const Error truncated("it is truncated, or longer than it says");
  if (bytes.size < kPrefix || std::memcmp(data, kMagic, sizeof kMagic) != 0) throw Error("it is no session file");
  if (number(sizeof kMagic) != kVersion)
    throw Error("its version is " + std::to_string(number(sizeof kMagic)) + ", and this library reads " +
                std::to_string(kVersion));
  const size_t header_bytes = number(sizeof kMagic + sizeof(uint32_t));
  if (header_bytes > kMostHeaderBytes || kPrefix + header_bytes + kDigest > bytes.size) throw truncated;
  Sha256 sha256;
  sha256.update(data, bytes.size - kDigest);
  if (const Sha256::Digest digest = sha256.finish(); std::memcmp(digest.data(), data + bytes.size - kDigest, kDigest) != 0)
    throw Error("it is damaged or truncated: its sha256 differs");
  const Header header = read_header(parse_json({data + kPrefix, header_bytes}), manifest, artifact);

  SessionFile file;
  size_t place = kPrefix + header_bytes;
  const size_t token_bytes = header.depth * sizeof(int32_t),
               logit_bytes = header.logits ? size_t(manifest.vocab_size) * sizeof(float) : 0;
  size_t row_bytes = 0;
  for (const Buffer& b : artifact.buffers) row_bytes += b.outer * b.inner_bytes * header.depth;
  if (bytes.size != place + token_bytes + logit_bytes + row_bytes + kDigest) throw truncated;
  for (size_t i = 0; i < header.depth; i++) {
    file.tokens.push_back(int32_t(number(place + i * sizeof(int32_t))));
    if (file.tokens.back() < 0 || file.tokens.back() >= manifest.token_count)
      throw Error("it holds a token that this model does not know");
  }
  place += token_bytes;
  file.logits.resize(logit_bytes / sizeof(float));
  if (header.logits) std::memcpy(file.logits.data(), data + place, logit_bytes);
  place += logit_bytes;
  file.places.resize(artifact.buffers.size());
  for (const size_t i : header.order) {
    file.places[i] = place;
    place += artifact.buffers[i].outer * artifact.buffers[i].inner_bytes * header.depth;
  }
  file.bytes = std::move(bytes);
  return file;
}

}  // namespace

void write_session_file(const std::string& path, const Manifest& manifest, const Artifact& artifact, Context& context,
                        const std::vector<int64_t>& tokens, const float* logits) {
  const std::string head = header(manifest, artifact, tokens.size(), logits != nullptr);
  if (head.size() > kMostHeaderBytes)
    throw Error(path + " cannot be written: the cache has too many buffers for a session file");
  write_atomically(path, [&](const auto& append) {
    Sha256 sha256;
    auto put = [&](const void* data, size_t bytes) {
      sha256.update(data, bytes);
      append(data, bytes);
    };
    const uint32_t numbers[] = {kVersion, uint32_t(head.size())};
    put(kMagic, sizeof kMagic);
    put(numbers, sizeof numbers);
    put(head.data(), head.size());
    const std::vector<int32_t> ids(tokens.begin(), tokens.end());
    put(ids.data(), ids.size() * sizeof(int32_t));
    if (logits) put(logits, size_t(manifest.vocab_size) * sizeof(float));
    for (size_t i = 0; i < artifact.buffers.size(); i++)
      for_rows(artifact.buffers[i], 0, tokens.size(),
               [&](size_t place, size_t bytes) { put(context.buffer(i) + place, bytes); });
    const Sha256::Digest digest = sha256.finish();
    append(digest.data(), digest.size());
  });
}

SessionFile read_session_file(const std::string& path, const Manifest& manifest, const Artifact& artifact) {
  Bytes bytes = read_file(path, most_bytes(manifest, artifact));
  try {
    return read(std::move(bytes), manifest, artifact);
  } catch (const Error& error) {
    throw Error(path + " cannot be restored: " + error.what(), error.kind);
  }
}

void SessionFile::copy_rows(const Artifact& artifact, Context& context) const {
  for (size_t i = 0; i < artifact.buffers.size(); i++) {
    size_t from = places[i];
    for_rows(artifact.buffers[i], 0, tokens.size(), [&](size_t place, size_t n) {
      std::memcpy(context.buffer(i) + place, bytes.data.get() + from, n);
      from += n;
    });
  }
}

}  // namespace edgeqkv
