// edgeqkv-run: a bundle without Python in the process, over libedgeqkv. Ids in; ids, timings and memory out, as one line of
// JSON. With --worker it is the process that `edgeqkv bench --runner` measures (worker.h).
#include <unistd.h>

#include <algorithm>
#include <cstdio>
#include <cstdlib>

#include "worker.h"

namespace edgeqkv {
namespace {

constexpr const char* kUsage =
    "usage: edgeqkv-run BUNDLE --ids 1,2,3 [--tokens N] [--depth D] [options]\n"
    "       edgeqkv-run --worker [--library FILE]...\n"
    "\n"
    "Continues the ids greedily and prints one line of JSON: ids, seconds and bytes.\n"
    "\n"
    "  --ids 1,2,3      the prompt, as token ids\n"
    "  --tokens N       how many ids to write at most (16); an end token of the bundle ends them earlier\n"
    "  --depth D        begin at depth D, over rows of zeros: for measurements, the ids then mean nothing\n"
    "  --runtime R      onnx or executorch; by default the bundle's first that runs here\n"
    "  --kernel K       fused or stock; by default the bundle's first that runs here\n"
    "  --threads N      by default the runtime's choice\n"
    "  --library FILE   libonnxruntime.so or libedgeqkv_executorch.so, where the dynamic linker does not find it; or both\n";

struct Options {
  std::string bundle, runtime, kernel;
  Libraries libraries;
  std::vector<int64_t> ids;
  int64_t tokens = 16, depth = 0;
  int32_t threads = 0;
  bool worker = false;
};

int64_t whole_number(const std::string& text, const std::string& option, int64_t least) {
  char* end = nullptr;
  const long long value = std::strtoll(text.c_str(), &end, 10);
  const bool digits = !text.empty() && text.find_first_not_of("0123456789") == std::string::npos;
  if (!digits || value < least || value > INT32_MAX)
    throw Error(option + " takes whole numbers from " + std::to_string(least) + ", found '" + text + "'");
  return value;
}

std::vector<int64_t> id_list(const std::string& text) {
  std::vector<int64_t> ids;
  for (size_t start = 0; start <= text.size();) {
    const size_t end = std::min(text.find(',', start), text.size());
    ids.push_back(whole_number(text.substr(start, end - start), "--ids", 0));
    start = end + 1;
  }
  return ids;
}

// Which library a file is, by its name. A runtime's other libraries, which are found beside it, may be named too.
void note_library(const std::string& path, Libraries& libraries) {
  const std::string name = path.substr(path.rfind('/') + 1);
  auto is = [&](const std::string& stem) { return name.compare(0, stem.size(), stem) == 0; };
  if (is("libonnxruntime"))
    libraries.onnxruntime = path;
  else if (is("libedgeqkv_executorch"))
    libraries.executorch = path;
  else if (!is("libexecutorch"))
    throw Error("--library takes libonnxruntime*, libedgeqkv_executorch* and what that links, found " + path);
}

Options read_options(int argc, char** argv) {
  Options options;
  for (int i = 1; i < argc; i++) {
    const std::string name = argv[i];
    if (name == "--worker") {
      options.worker = true;
      continue;
    }
    if (name.compare(0, 2, "--") != 0) {
      if (!options.bundle.empty()) throw Error("one bundle at a time; '" + name + "' is one too many");
      options.bundle = name;
      continue;
    }
    static const char* const known[] = {"--ids", "--tokens", "--depth", "--runtime", "--kernel", "--threads", "--library"};
    if (std::find(std::begin(known), std::end(known), name) == std::end(known))
      throw Error("unknown option " + name + "; edgeqkv-run --help lists them");
    if (++i == argc) throw Error(name + " needs a value");
    const std::string value = argv[i];
    if (name == "--ids") options.ids = id_list(value);
    if (name == "--tokens") options.tokens = whole_number(value, name, 1);
    if (name == "--depth") options.depth = whole_number(value, name, 0);
    if (name == "--runtime") options.runtime = value;
    if (name == "--kernel") options.kernel = value;
    if (name == "--threads") options.threads = int32_t(whole_number(value, name, 1));
    if (name == "--library") note_library(value, options.libraries);
  }
  if (!options.worker && (options.bundle.empty() || options.ids.empty()))
    throw Error("name a bundle and its prompt with --ids; edgeqkv-run --help says more");
  return options;
}

void run_once(const Options& options) {
  Opened opened(options.bundle, options.runtime, options.kernel, options.threads, options.libraries);
  must(edgeqkv_session_skip(opened.session.get(), options.depth));
  Greedy found = greedy(opened, options.ids, options.tokens);
  const std::optional<double> prefill_s = found.seconds.empty() ? std::nullopt : std::optional(found.seconds[0]);
  if (prefill_s) found.seconds.erase(found.seconds.begin());
  JsonObject out;
  out.add("ids", found.ids);
  about(opened, out)
      .add("variant", opened.info.variant)
      .add("weights", opened.info.weights)
      .add("cache", opened.info.cache_dtype)
      .add("threads", options.threads ? std::optional(options.threads) : std::nullopt)
      .add("depth", options.depth)
      .add("prompt", options.ids.size())
      .add("prefill_s", prefill_s)
      .add("step_s", found.seconds)
      .add("memory", memory_json());
  const std::string line = out.text() + "\n";
  std::fwrite(line.data(), 1, line.size(), stdout);
}

}  // namespace
}  // namespace edgeqkv

int main(int argc, char** argv) {
  using namespace edgeqkv;
  if (std::find(argv + 1, argv + argc, std::string("--help")) != argv + argc) {
    std::fputs(kUsage, stdout);
    return 0;
  }
  try {
    const Options options = read_options(argc, argv);
    options.worker ? serve(STDIN_FILENO, STDOUT_FILENO, options.libraries) : run_once(options);
    return 0;
  } catch (const Error& error) {
    std::fprintf(stderr, "edgeqkv-run: %s\n", error.what());
    return error.kind;
  } catch (const std::exception& error) {
    std::fprintf(stderr, "edgeqkv-run: there is not enough memory (%s)\n", error.what());
    return kMissing;
  }
}
