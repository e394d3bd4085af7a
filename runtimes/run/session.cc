#include <algorithm>
#include <cmath>

#include "engine.h"
#include "error.h"

namespace edgeqkv {

Session::Session(const Bundle& bundle, const Artifact& artifact, int threads, const Files& libraries)
    : bundle_(bundle), artifact_(artifact), logits_(size_t(bundle.vocab_size)) {
  if (artifact_.runtime == "onnx")
    engine_ = open_onnx(bundle_, artifact_, threads, libraries);
  else if (artifact_.runtime == "executorch")
    engine_ = open_executorch(bundle_, artifact_, threads, libraries);
  else
    throw Error("this runner has no engine for the runtime '" + artifact_.runtime + "'", kMissing);
}

int64_t Session::prefill(const std::vector<int64_t>& ids) {
  if (ids.empty()) throw Error("give at least one token id");
  for (const int64_t id : ids)
    if (id < 0 || id >= bundle_.token_count)
      throw Error("token id " + std::to_string(id) + " is out of range: this model knows 0 to " +
                  std::to_string(bundle_.token_count - 1));
  const int64_t n = int64_t(ids.size());
  if (depth < 0 || depth + n > bundle_.capacity)
    throw Error(std::to_string(n) + " more tokens do not fit: the cache holds " + std::to_string(bundle_.capacity) +
                " positions and " + std::to_string(depth) + " are filled");
  for (int64_t start = 0; start < n; start += artifact_.prefill_chunk) {
    const int64_t chunk = std::min(artifact_.prefill_chunk, n - start);
    engine_->run(ids.data() + start, chunk, depth, logits_.data());
    depth += chunk;
  }
  const auto end = logits_.begin() + bundle_.token_count, best = std::max_element(logits_.begin(), end);
  if (!std::all_of(logits_.begin(), end, [](float x) { return std::isfinite(x); }))
    throw Error("the logits after " + std::to_string(depth) + " tokens are not finite", 1);
  return best - logits_.begin();
}

}  // namespace edgeqkv
