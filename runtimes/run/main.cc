// edgeqkv-run: a bundle without Python in the process. Ids in; ids, timings and memory out, as one line of JSON.
//
// With --worker it is the process that `edgeqkv bench --runner` measures: one request a line on stdin, one answer a line on
// stdout, as edgeqkv/bench/worker.py describes them.
#include <algorithm>
#include <chrono>
#include <cstdio>
#include <cstdlib>
#include <functional>
#include <iostream>
#include <map>
#include <random>

#include "engine.h"
#include "error.h"
#include "json.h"
#include "memory.h"

namespace edgeqkv {
namespace {

constexpr const char* kUsage =
    "usage: edgeqkv-run BUNDLE --ids 1,2,3 [--tokens N] [--depth D] [options]\n"
    "       edgeqkv-run --worker [--library FILE]...\n"
    "\n"
    "Continues the ids greedily and prints one line of JSON: ids, seconds and bytes.\n"
    "\n"
    "  --ids 1,2,3      the prompt, as token ids\n"
    "  --tokens N       how many ids to write (16)\n"
    "  --depth D        begin at depth D, over rows of zeros: for measurements, the ids then mean nothing\n"
    "  --runtime R      onnx or executorch; by default the bundle's first\n"
    "  --kernel K       fused or stock; by default the bundle's first\n"
    "  --threads N      by default the runtime's choice\n"
    "  --library FILE   libonnxruntime.so or libedgeqkv_executorch.so, where the dynamic linker does not find it; or both\n";

struct Options {
  std::string bundle, runtime, kernel;
  Files libraries;
  std::vector<int64_t> ids;
  int64_t tokens = 16, depth = 0;
  int threads = 0;
  bool worker = false;
};

int64_t whole_number(const std::string& text, const std::string& option, int64_t least) {
  char* end = nullptr;
  const long long value = std::strtoll(text.c_str(), &end, 10);
  if (text.empty() || *end || value < least || value > INT32_MAX)
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

// Each engine takes its own by the name, so that a name that no engine knows would be passed over in silence.
const std::string& library_file(const std::string& path) {
  const std::string name = path.substr(path.rfind('/') + 1);
  for (const char* stem : {"libonnxruntime", "libedgeqkv_executorch", "libexecutorch"})
    if (name.compare(0, std::string(stem).size(), stem) == 0) return path;
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
    if (name == "--threads") options.threads = int(whole_number(value, name, 1));
    if (name == "--library") options.libraries.push_back(library_file(value));
  }
  if (!options.worker && (options.bundle.empty() || options.ids.empty()))
    throw Error("name a bundle and its prompt with --ids; edgeqkv-run --help says more");
  return options;
}

double seconds_of(const std::function<void()>& work) {
  const auto start = std::chrono::steady_clock::now();
  work();
  return std::chrono::duration<double>(std::chrono::steady_clock::now() - start).count();
}

std::string json(double value) {
  char text[32];
  std::snprintf(text, sizeof text, "%.9g", value);
  return text;
}
std::string json(int64_t value) { return std::to_string(value); }
std::string bytes(int64_t value) { return value < 0 ? "null" : json(value); }

template <class T>
std::string json(const std::vector<T>& values) {
  std::string out;
  for (const T& value : values) out += (out.empty() ? "" : ", ") + json(value);
  return "[" + out + "]";
}

std::string json(const Memory& m) {
  return "{\"peak_rss\": " + bytes(m.peak_rss) + ", \"rss\": " + bytes(m.rss) + ", \"pss\": " + bytes(m.pss) +
         ", \"private\": " + bytes(m.private_) + "}";
}

std::string about(const Session& session, double load_s) {
  const Artifact& artifact = session.artifact();
  return "\"runtime\": " + quoted(artifact.runtime) + ", \"runtime_version\": " + quoted(session.engine().version()) +
         ", \"kernel\": " + quoted(artifact.kernel) + ", \"load_s\": " + json(load_s) +
         ", \"cache_bytes\": " + json(session.engine().cache_bytes() + artifact.constant_scale_bytes);
}

void run_once(const Options& options) {
  const Bundle bundle = read_bundle(options.bundle);
  const Artifact& artifact = choose_artifact(bundle, options.runtime, options.kernel);
  std::unique_ptr<Session> session;
  const double load_s =
      seconds_of([&] { session = std::make_unique<Session>(bundle, artifact, options.threads, options.libraries); });
  session->depth = options.depth;
  std::vector<int64_t> ids(1);
  std::vector<double> step_s;
  const double prefill_s = seconds_of([&] { ids[0] = session->prefill(options.ids); });
  while (int64_t(ids.size()) < options.tokens && session->depth < bundle.capacity)
    step_s.push_back(seconds_of([&] { ids.push_back(session->prefill({ids.back()})); }));
  std::printf(
      "{\"ids\": %s, %s, \"variant\": %s, \"weights\": %s, \"cache\": %s, \"threads\": %s, \"depth\": %s, \"prompt\": %s, "
      "\"prefill_s\": %s, \"step_s\": %s, \"memory\": %s}\n",
      json(ids).c_str(), about(*session, load_s).c_str(), quoted(bundle.variant).c_str(), quoted(artifact.weights).c_str(),
      quoted(artifact.cache_dtype).c_str(), options.threads ? json(int64_t(options.threads)).c_str() : "null",
      json(options.depth).c_str(), json(int64_t(options.ids.size())).c_str(), json(prefill_s).c_str(), json(step_s).c_str(),
      json(memory_of_this_process()).c_str());
}

// The measured process: the requests of edgeqkv/bench/worker.py.
class Worker {
 public:
  explicit Worker(const Files& libraries) : libraries_(libraries) {}

  std::string answer(const Json& request) {
    const std::string& what = request.at("do").string();
    if (what == "memory") return json(memory_of_this_process());
    if (what == "load") return load(request);
    if (!session_) throw Error("no bundle is loaded");
    if (what == "greedy") return greedy(request.at("ids").array(), request.at("tokens").integer());
    if (what == "fill") {
      const int64_t depth = request.at("depth").integer();
      if (depth > session_->depth) session_->prefill(random(depth - session_->depth));
      return "{}";
    }
    if (what == "first_token" || what == "prefill") {
      const std::vector<int64_t> ids = random(request.at("tokens").integer());
      session_->depth = what == "prefill" ? request.at("depth").integer() : 0;
      return "{\"seconds\": " + json(seconds_of([&] { session_->prefill(ids); })) + "}";
    }
    if (what == "decode") return decode(request.at("depth").integer(), request.at("steps").integer());
    throw Error("unknown request '" + what + "'");
  }

 private:
  static constexpr int64_t kWarmUpSteps = 2;

  std::string load(const Json& request) {
    const Memory before = memory_of_this_process();
    const Bundle bundle = read_bundle(request.at("bundle").string());
    const std::string kernel = request.at("kernel").kind == Json::kNull ? "" : request.at("kernel").string();
    const std::string runtime = request.has("runtime") ? request.at("runtime").string() : "";
    const Artifact& artifact = choose_artifact(bundle, runtime, kernel);
    const int threads = int(request.at("threads").integer());
    const double load_s = seconds_of([&] { session_ = std::make_unique<Session>(bundle, artifact, threads, libraries_); });
    return "{" + about(*session_, load_s) + ", \"start\": " + json(before) + "}";
  }

  std::string greedy(const std::vector<Json>& prompt, int64_t tokens) {
    std::vector<int64_t> next, ids;
    for (const Json& id : prompt) next.push_back(id.integer());
    session_->depth = 0;
    while (int64_t(ids.size()) < tokens && session_->depth + int64_t(next.size()) <= session_->bundle().capacity) {
      ids.push_back(session_->prefill(next));
      next = {ids.back()};
    }
    return "{\"ids\": " + json(ids) + "}";
  }

  std::string decode(int64_t depth, int64_t steps) {
    // The rows are there since the fill; what they hold now does not matter to the clock.
    session_->depth = depth - kWarmUpSteps;
    std::vector<double> seconds;
    for (const int64_t id : random(kWarmUpSteps + steps)) seconds.push_back(seconds_of([&] { session_->prefill({id}); }));
    seconds.erase(seconds.begin(), seconds.begin() + kWarmUpSteps);
    return "{\"seconds\": " + json(seconds) + "}";
  }

  std::vector<int64_t> random(int64_t count) {
    if (count < 0 || count > session_->bundle().capacity)
      throw Error(json(count) + " more tokens do not fit: the cache holds " + json(session_->bundle().capacity) + " positions");
    std::vector<int64_t> ids(static_cast<size_t>(count));
    for (int64_t& id : ids) id = int64_t(ids_() % uint64_t(session_->bundle().token_count));
    return ids;
  }

  Files libraries_;
  std::unique_ptr<Session> session_;
  std::mt19937_64 ids_{0};
};

void serve(const Files& libraries) {
  Worker worker(libraries);
  for (std::string line; std::getline(std::cin, line);) {
    std::string answer;
    try {
      answer = worker.answer(parse_json(line));
    } catch (const Error& error) {
      answer = "{\"error\": " + quoted(error.what()) + ", \"exit_code\": " + json(int64_t(error.exit_code)) + "}";
    } catch (const std::exception& error) {  // no memory for what was asked
      answer = "{\"error\": " + quoted(error.what()) + ", \"exit_code\": 3}";
    }
    std::cout << answer << std::endl;
  }
}

}  // namespace
}  // namespace edgeqkv

int main(int argc, char** argv) {
  using namespace edgeqkv;
  for (int i = 1; i < argc; i++)
    if (argv[i] == std::string("--help")) {
      std::fputs(kUsage, stdout);
      return 0;
    }
  try {
    const Options options = read_options(argc, argv);
    options.worker ? serve(options.libraries) : run_once(options);
    return 0;
  } catch (const Error& error) {
    std::fprintf(stderr, "edgeqkv-run: %s\n", error.what());
    return error.exit_code;
  } catch (const std::exception& error) {
    std::fprintf(stderr, "edgeqkv-run: there is not enough memory (%s)\n", error.what());
    return kMissing;
  }
}
