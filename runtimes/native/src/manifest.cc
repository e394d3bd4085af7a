#include "manifest.h"

#include <algorithm>
#include <map>
#include <set>

#include "error.h"
#include "file.h"
#include "json.h"
#include "limits.h"

namespace edgeqkv {
namespace {

constexpr const char* kName = "edgeqkv.json";

[[noreturn]] void wrong(const std::string& what) { throw Error(what + "; export the bundle again"); }

void demand(bool holds, const std::string& what) {
  if (!holds) wrong(what);
}

int64_t whole(const Json& object, const char* field, int64_t least, int64_t most) {
  const int64_t value = object.at(field).integer(field);
  demand(value >= least && value <= most, std::string(field) + " is " + std::to_string(value) + ", outside " +
                                              std::to_string(least) + " to " + std::to_string(most));
  return value;
}

const std::string& text(const Json& object, const char* field) { return object.at(field).string(field); }

const std::string& digest(const Json& value, const std::string& of) {
  const std::string& digits = value.string("the sha256 of " + of);
  demand(digits.size() == 64 && digits.find_first_not_of("0123456789abcdef") == std::string::npos,
         "the sha256 of " + of + " is none");
  return digits;
}

const std::string& file_name(const std::string& name) {
  const std::string within = "/" + name + "/";
  const bool inside =
      !name.empty() && name[0] != '/' && within.find("/../") == std::string::npos && name.find('\0') == std::string::npos;
  demand(inside, "it names a file outside the bundle");
  return name;
}

size_t element_bytes(const std::string& dtype) {
  if (dtype == "int8") return 1;
  if (dtype == "float16") return 2;
  demand(dtype == "float32", "a cache buffer has the unknown dtype '" + dtype + "'");
  return 4;
}

bool is_scale(const std::string& name) {
  const std::string end = ".scale";
  return name.size() > end.size() && name.compare(name.size() - end.size(), end.size(), end) == 0;
}

std::vector<int64_t> sizes(const Json& shape) {
  std::vector<int64_t> out;
  for (const Json& size : shape.array("shape").items) out.push_back(size.integer("a size of a shape"));
  return out;
}

// The axis of positions of a tensor that holds rows.
size_t position_axis(const std::string& axes) {
  if (axes == "batch, kv_head, position, channel") return 2;
  demand(axes == "batch, position, kv_head, channel", "the cache has the unknown axes '" + axes + "'");
  return 1;
}

Buffer buffer(const std::string& name, const std::string& dtype, const std::vector<int64_t>& shape, size_t row_axis,
              int64_t capacity) {
  Buffer out = {name, dtype, shape, element_bytes(dtype), 1, element_bytes(dtype)};
  const bool scale = is_scale(name);
  demand(scale ? shape.size() == 3 || shape.size() == 4 : shape.size() == 4, name + " has a wrong number of dimensions");
  demand(!scale || dtype == "float32", name + " is not float32");
  const size_t axis = scale ? shape.size() - 1 : row_axis;
  int64_t elements = 1;
  for (size_t i = 0; i < shape.size(); i++) {
    demand(shape[i] >= 1 && shape[i] <= kMostCacheBytes / elements, name + " has an impossible shape");
    elements *= shape[i];
    if (i < axis) out.outer *= size_t(shape[i]);
    if (i > axis) out.inner_bytes *= size_t(shape[i]);
  }
  demand(shape[axis] == capacity, name + " holds other than " + std::to_string(capacity) + " positions");
  out.bytes *= size_t(elements);
  return out;
}

// Format 3 has one shape for all tensors and one for all scales.
std::vector<Buffer> buffers_of_format_3(const Json& cache, const std::string& dtype, size_t row_axis, int64_t capacity) {
  std::vector<Buffer> out;
  const std::vector<int64_t> shape = sizes(cache.at("shape")), scale_shape = sizes(cache.at("scale_shape"));
  for (const Json& name : cache.at("names").array("names").items)
    out.push_back(buffer(name.string("a name of a buffer"), dtype, shape, row_axis, capacity));
  for (const Json& name : cache.at("scale_names").array("scale_names").items)
    out.push_back(buffer(name.string("a name of a buffer"), "float32", scale_shape, row_axis, capacity));
  demand(cache.at("capacity").integer("capacity") == capacity, "the cache has another capacity than the bundle");
  return out;
}

void read_cache(const Json& cache, const Manifest& manifest, Artifact& artifact) {
  static const std::map<std::string, std::string> dtypes = {{"fp32", "float32"}, {"fp16", "float16"}, {"int8", "int8"}};
  artifact.cache_dtype = text(cache, "dtype");
  const auto dtype = dtypes.find(artifact.cache_dtype);
  demand(dtype != dtypes.end(), "the cache has the unknown dtype '" + artifact.cache_dtype + "'");
  const bool old = manifest.format == 3;
  const size_t row_axis = position_axis(text(cache, old ? "layout" : "axes"));
  if (old) {
    artifact.buffers = buffers_of_format_3(cache, dtype->second, row_axis, manifest.capacity);
  } else {
    for (const Json& b : cache.at("buffers").array("buffers").items)
      artifact.buffers.push_back(buffer(text(b, "name"), text(b, "dtype"), sizes(b.at("shape")), row_axis, manifest.capacity));
  }
  int64_t bytes = 0, rows = 0, scales = 0;
  std::set<std::string> names;
  for (const Buffer& b : artifact.buffers) {
    demand(names.insert(b.name).second, "two cache buffers have the name " + b.name);
    (is_scale(b.name) ? scales : rows)++;
    demand(is_scale(b.name) || b.dtype == dtype->second, b.name + " is not of the cache's dtype");
    bytes += int64_t(b.bytes);
    demand(bytes <= kMostCacheBytes, "the cache has more than " + std::to_string(kMostCacheBytes) + " bytes");
  }
  const size_t tensors = old ? cache.at("tensors").array("tensors").items.size() : cache.at("row").object("row").items.size();
  demand(rows == manifest.n_layer * int64_t(tensors), "the cache has other than one buffer for each layer and tensor");
  const std::string& layout = text(cache, old ? "scale_layout" : "scales");
  const bool with_rows = layout == "per_token" || layout == "per_row" || layout == "per_slice";
  demand(with_rows || layout == "static" || layout == "none", "the cache has the unknown scales '" + layout + "'");
  demand(with_rows ? scales == rows : scales == 0, "the cache has scales for other than its rows");
  demand((layout != "none") == (artifact.cache_dtype == "int8"), "the scales of the cache do not fit its dtype");
  if (layout == "static") artifact.static_scale_bytes = whole(cache, "scale_bytes", 0, kMostCacheBytes);
  artifact.cache_bytes = whole(cache, "bytes", 1, kMostCacheBytes);
  demand(bytes + artifact.static_scale_bytes == artifact.cache_bytes, "the bytes of the cache are not those of its buffers");
}

// Inputs and outputs are exactly the buffers, and each output succeeds the input that it is named after: two layers' caches
// cannot be swapped unseen.
void read_aliases(const Json& entry, const std::map<std::string, const Json*>& inputs,
                  const std::map<std::string, const Json*>& outputs, Artifact& artifact) {
  auto matches = [](const Json& port, const Buffer& b) {
    return text(port, "dtype") == b.dtype && sizes(port.at("shape")) == b.shape;
  };
  std::map<std::string, size_t> places;
  for (size_t i = 0; i < artifact.buffers.size(); i++) {
    const auto input = inputs.find(artifact.buffers[i].name);
    demand(input != inputs.end() && matches(*input->second, artifact.buffers[i]),
           "the program does not take the cache's buffers as they are");
    places[artifact.buffers[i].name] = i;
  }
  demand(inputs.size() == places.size(), "the program takes inputs that are no buffers of the cache");
  const Json& aliases = entry.at("aliases").object("aliases");
  demand(aliases.keys.size() == outputs.size(), "the manifest does not say where the program's cache outputs lie");
  std::vector<bool> updated(artifact.buffers.size());
  for (size_t i = 0; i < aliases.keys.size(); i++) {
    const std::string &output = aliases.keys[i], &source = aliases.items[i].string("an alias");
    const auto place = places.find(source);
    const auto port = outputs.find(output);
    demand(place != places.end(), "the manifest binds " + output + " to " + source + ", which is no buffer of the cache");
    demand(port != outputs.end() && matches(*port->second, artifact.buffers[place->second]),
           output + " is no output like " + source);
    demand(output == source + ".out" || output == source + ".out_again", output + " does not succeed " + source);
    if (output == source + ".out") updated[place->second] = true;
    artifact.aliases.emplace_back(output, place->second);
  }
  demand(std::find(updated.begin(), updated.end(), false) == updated.end(),
         "the program does not update every buffer of the cache");
}

void read_entry_point(const Json& entry, const Manifest& manifest, bool first, Artifact& artifact) {
  std::map<std::string, const Json*> inputs, outputs;
  for (const Json& port : entry.at("inputs").array("inputs").items)
    demand(inputs.emplace(text(port, "name"), &port).second, "two inputs have one name");
  for (const Json& port : entry.at("outputs").array("outputs").items)
    demand(outputs.emplace(text(port, "name"), &port).second, "two outputs have one name");
  demand(inputs.erase("ids") && inputs.erase("position"), "the program does not take ids and a position");
  const auto logits = outputs.find("logits");
  demand(logits != outputs.end(), "the program gives no logits");
  std::vector<int64_t> shape = sizes(logits->second->at("shape"));
  while (shape.size() > 1 && shape.front() == 1) shape.erase(shape.begin());
  demand(text(*logits->second, "dtype") == "float32" && shape == std::vector<int64_t>{manifest.vocab_size},
         "the logits are not float32 of the vocabulary's size");
  outputs.erase(logits);
  const Json& states = entry.at("states").object("states");
  if (!states.keys.empty()) {  // the program keeps the cache itself
    std::set<std::string> kept, names;
    for (const Json& state : states.items) kept.insert(state.string("a state"));
    for (const Buffer& b : artifact.buffers) names.insert(b.name);
    demand(kept == names && entry.at("aliases").object("aliases").keys.empty(),
           "the program does not keep every buffer in a state");
    const Json& arena = entry.at("arena_bytes");
    demand(arena.is_null() || arena.integer("arena_bytes") >= artifact.cache_bytes,
           "the cache does not fit what the program reserves");
    return;
  }
  Artifact checked = artifact;
  read_aliases(entry, inputs, outputs, checked);
  if (first) artifact = checked;
}

Artifact read_artifact(const Json& json, const Manifest& manifest) {
  Artifact artifact;
  artifact.runtime = text(json, "runtime");
  artifact.kernel = text(json, "kernel");
  try {
    artifact.weights = text(json.at("weights"), "scheme");
    artifact.prefill_chunk = whole(json, "prefill_chunk", 1, manifest.capacity);
    const Json& files = json.at("files").object("files");
    for (size_t i = 0; i < files.keys.size(); i++)
      artifact.files.emplace_back(file_name(files.keys[i]), digest(files.items[i], files.keys[i]));
    const Json& entries = json.at("entry_points").array("entry_points");
    demand(!artifact.files.empty() && !entries.items.empty(), "it has no files or no entry points");
    read_cache(json.at("cache"), manifest, artifact);
    for (const Json& entry : entries.items) read_entry_point(entry, manifest, &entry == &entries.items[0], artifact);
  } catch (const Error& error) {
    throw Error("the " + artifact.runtime + " " + artifact.kernel + " artifact: " + error.what(), error.kind);
  }
  return artifact;
}

void read_text(const Json& json, Manifest& manifest) {
  const Json& part = json.at("text");
  const Json& tokenizer = part.at("tokenizer");
  if (!tokenizer.is_null()) {
    manifest.tokenizer_file = file_name(text(tokenizer, "file"));
    manifest.tokenizer_sha256 = digest(tokenizer.at("sha256"), manifest.tokenizer_file);
  }
  for (const Json& id : part.at("end_tokens").array("end_tokens").items) {
    manifest.end_tokens.push_back(id.integer("an end token"));
    demand(manifest.end_tokens.back() >= 0 && manifest.end_tokens.back() < manifest.token_count,
           "an end token is no token of the model");
  }
  const Json& chat = part.at("chat_template");
  if (!chat.is_null()) manifest.chat_template = chat.string("chat_template");
  const Json& special = part.at("special_tokens").object("special_tokens");
  for (size_t i = 0; i < special.keys.size(); i++)
    manifest.special_tokens.emplace_back(special.keys[i], special.items[i].string("a special token"));
}

Manifest read(const Json& json) {
  Manifest manifest;
  manifest.format = json.at("format").integer("format");
  if (manifest.format != 3 && manifest.format != 4)
    throw Error("expected format 3 or 4, found " + std::to_string(manifest.format) +
                (manifest.format > 4 ? "; update edgeqkv" : "; export the bundle again"));
  const Json &model = json.at("model"), &config = model.at("config");
  manifest.variant = text(model, "variant");
  manifest.checkpoint_sha256 = text(model, "checkpoint_sha256");
  manifest.n_layer = whole(config, "n_layer", 1, kMostLayers);
  manifest.vocab_size = whole(config, "vocab_size", 1, kMostIds);
  manifest.token_count = whole(config, "token_count", 1, manifest.vocab_size);
  manifest.capacity = whole(json, "capacity", 1, whole(config, "n_positions", 1, kMostPositions));
  if (manifest.format == 4) {
    read_text(json, manifest);
  } else if (const Json& sha256 = model.at("tokenizer_sha256"); !sha256.is_null()) {
    manifest.tokenizer_file = "tokenizer.json";
    manifest.tokenizer_sha256 = digest(sha256, manifest.tokenizer_file);
  }
  std::set<std::string> kinds;
  for (const Json& artifact : json.at("artifacts").array("artifacts").items) {
    manifest.artifacts.push_back(read_artifact(artifact, manifest));
    const bool is_new = kinds.insert(manifest.artifacts.back().runtime + " " + manifest.artifacts.back().kernel).second;
    demand(is_new, "two artifacts are for the same runtime and kernel");
  }
  demand(!manifest.artifacts.empty(), "it has no artifact");
  return manifest;
}

}  // namespace

Manifest read_manifest(const std::string& folder) {
  if (!exists(folder)) throw Error(folder + " does not exist");
  if (!exists(folder + "/" + kName))
    throw Error(folder + " is not a bundle: it has no " + kName + "; edgeqkv export writes one");
  const Bytes bytes = read_file(file_in_bundle(folder, kName), kMostJsonBytes);
  try {
    return read(parse_json({bytes.data.get(), bytes.size}));
  } catch (const Error& error) {
    throw Error(folder + "/" + kName + ": " + error.what(), error.kind);
  }
}

std::vector<const Artifact*> matching_artifacts(const Manifest& manifest, const std::string& folder, const std::string& runtime,
                                                const std::string& kernel) {
  std::vector<const Artifact*> found;
  std::string have;
  for (const Artifact& artifact : manifest.artifacts) {
    if ((runtime.empty() || runtime == artifact.runtime) && (kernel.empty() || kernel == artifact.kernel))
      found.push_back(&artifact);
    have += (have.empty() ? "" : ", ") + artifact.runtime + " (" + artifact.kernel + " kernel)";
  }
  if (found.empty())
    throw Error(folder + " holds nothing for the runtime '" + (runtime.empty() ? "any" : runtime) + "' with the kernel '" +
                (kernel.empty() ? "any" : kernel) + "'; it was exported for: " + have);
  return found;
}

}  // namespace edgeqkv
