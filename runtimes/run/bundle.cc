#include "bundle.h"

#include <fstream>
#include <sstream>

#include "error.h"
#include "json.h"

namespace edgeqkv {
namespace {

constexpr int64_t kFormat = 3;

Artifact read_artifact(const Json& json) {
  Artifact artifact;
  artifact.runtime = json.at("runtime").string();
  artifact.kernel = json.at("kernel").string();
  artifact.cache_dtype = json.at("cache").at("dtype").string();
  artifact.weights = json.at("weights").at("scheme").string();
  artifact.cache_bytes = json.at("cache").at("bytes").integer();
  artifact.prefill_chunk = json.at("prefill_chunk").integer();
  if (json.at("cache").at("scale_layout").string() == "static")
    artifact.constant_scale_bytes = json.at("cache").at("scale_bytes").integer();
  if (json.at("files").keys.empty() || json.at("entry_points").array().empty() || artifact.prefill_chunk < 1)
    throw Error("an artifact has no files, no entry points or no prefill_chunk");
  artifact.file = json.at("files").keys[0];
  if (artifact.file.empty() || artifact.file[0] == '/' || ("/" + artifact.file + "/").find("/../") != std::string::npos)
    throw Error("an artifact names a file outside the bundle; export the bundle again");
  const Json& entry = json.at("entry_points").array()[0];
  for (const Json& port : entry.at("inputs").array()) {
    Buffer buffer = {port.at("name").string(), port.at("dtype").string(), {}};
    if (buffer.name == "ids" || buffer.name == "position" || buffer.name == "count") continue;
    for (const Json& size : port.at("shape").array()) buffer.shape.push_back(size.integer());
    artifact.caches.push_back(buffer);
  }
  for (const auto& [output, input] : entry.at("aliases").fields) artifact.aliases[output] = input.string();
  return artifact;
}

}  // namespace

size_t Buffer::bytes() const {
  size_t n = dtype == "int8" ? 1 : dtype == "float16" ? 2 : 4;
  for (const int64_t size : shape) n *= size_t(size);
  return n;
}

Bundle read_bundle(const std::string& folder) {
  const std::string path = folder + "/edgeqkv.json";
  std::ifstream file(path);
  if (!file) throw Error(folder + " is not a bundle: it has no edgeqkv.json; edgeqkv export writes one");
  std::stringstream text;
  text << file.rdbuf();
  try {
    const Json json = parse_json(text.str());
    const int64_t format = json.at("format").integer();
    if (format != kFormat)
      throw Error("expected format " + std::to_string(kFormat) + ", found " + std::to_string(format) +
                  "; export the bundle again, or update the runner");
    const Json &model = json.at("model"), &config = model.at("config");
    Bundle bundle;
    bundle.folder = folder;
    bundle.variant = model.at("variant").string();
    bundle.capacity = json.at("capacity").integer();
    bundle.vocab_size = config.at("vocab_size").integer();
    bundle.token_count = config.at("token_count").integer();
    if (bundle.capacity < 1 || bundle.token_count < 1 || bundle.vocab_size < bundle.token_count)
      throw Error("capacity, vocab_size or token_count cannot be right; export the bundle again");
    for (const Json& artifact : json.at("artifacts").array()) bundle.artifacts.push_back(read_artifact(artifact));
    return bundle;
  } catch (const Error& error) {
    throw Error(path + ": " + error.what());
  }
}

const Artifact& choose_artifact(const Bundle& bundle, const std::string& runtime, const std::string& kernel) {
  std::string have;
  for (const Artifact& artifact : bundle.artifacts) {
    if ((runtime.empty() || runtime == artifact.runtime) && (kernel.empty() || kernel == artifact.kernel)) return artifact;
    have += (have.empty() ? "" : ", ") + artifact.runtime + " (" + artifact.kernel + " kernel)";
  }
  throw Error(bundle.folder + " holds nothing for the runtime '" + (runtime.empty() ? "any" : runtime) + "' with the kernel '" +
              (kernel.empty() ? "any" : kernel) + "'; it was exported for: " + have);
}

}  // namespace edgeqkv
