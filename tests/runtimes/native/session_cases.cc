// Runs tests/session_cases.json, whose "about" explains its words, over libedgeqkv: without Python, so that it can be built
// with sanitizers and for other processors. Then the same cases on several threads at once, each with sessions of its own, two
// threads on one session, and prompts that another thread cancels.
//
//   session_cases BUNDLE RUNTIME KERNEL CASES.json FOLDER [LIBRARY]     FOLDER is for files, LIBRARY the runtime's
#include <algorithm>
#include <atomic>
#include <cstdio>
#include <cstring>
#include <functional>
#include <map>
#include <memory>
#include <string>
#include <thread>
#include <utility>
#include <vector>

#include "../../../runtimes/native/src/error.h"
#include "../../../runtimes/native/src/file.h"
#include "../../../runtimes/native/src/json.h"
#include "edgeqkv.h"

namespace {

using edgeqkv::Error;
using edgeqkv::Json;

struct Result {
  enum { kNothing, kNumber, kIds, kLogits } kind = kNothing;
  int64_t number = 0;
  std::vector<int64_t> ids;
  std::vector<float> logits;  // empty: there are none

  bool operator==(const Result& o) const {
    auto same_bits = [](float a, float b) { return std::memcmp(&a, &b, sizeof a) == 0; };
    return kind == o.kind && number == o.number && ids == o.ids &&
           std::equal(logits.begin(), logits.end(), o.logits.begin(), o.logits.end(), same_bits);
  }
};

struct Failed {
  int32_t code;
};

void must(int32_t code) {
  if (code) throw Failed{code};
}

const char* kind_of(int32_t code) {
  switch (code) {
    case EDGEQKV_CHECK_FAILED: return "check";
    case EDGEQKV_MISSING: return "missing";
    case EDGEQKV_CACHE_FULL: return "full";
    default: return "input";
  }
}

class Run {
 public:
  Run(const edgeqkv_bundle* bundle, std::string folder) : bundle_(bundle), folder_(std::move(folder)) {
    info_.size = sizeof info_;
    must(edgeqkv_bundle_describe(bundle, &info_));
    must(edgeqkv_session_open(bundle_, &sessions_["main"]));
  }
  ~Run() {
    for (auto& [name, session] : sessions_) edgeqkv_session_close(session);
  }

  // False, and a line on stderr, at the first step that is not as expected.
  bool all(const Json& steps) {
    for (const Json& step : steps.items) {
      std::string found = "nothing";
      try {
        const Result result = run(step);
        if (!step.find("error") && as_expected(step, result)) continue;
      } catch (const Failed& failed) {
        found = kind_of(failed.code) + (": " + std::string(edgeqkv_error()));
        if (const Json* wanted = step.find("error"); wanted && wanted->text == kind_of(failed.code)) continue;
      }
      const auto place = &step - steps.items.data();
      std::fprintf(stderr, "step %d (%s) is not as expected; error: %s\n", int(place) + 1, step.at("do").text.c_str(),
                   found.c_str());
      return false;
    }
    return true;
  }

 private:
  bool as_expected(const Json& step, const Result& result) {
    if (const Json* name = step.find("as")) results_[name->text] = result;
    bool good = true;
    if (const Json* equals = step.find("equals"))
      good = good && result == (equals->kind == Json::kString ? results_.at(equals->text) : of_ids(ids(*equals)));
    if (const Json* length = step.find("length")) good = good && int64_t(result.ids.size()) == number(*length);
    if (const Json* is = step.find("is")) {
      Result wanted;
      if (is->kind == Json::kArray)
        wanted = of_ids(ids(*is));
      else if (is->is_null())
        wanted.kind = Result::kLogits;
      else
        wanted = of_number(number(*is));
      good = good && result == wanted;
    }
    return good;
  }

  Result run(const Json& step) {
    const std::string& what = step.at("do").text;
    auto text = [&](const char* field, const char* usual) {
      const Json* found = step.find(field);
      return found ? found->text : std::string(usual);
    };
    edgeqkv_session*& session = sessions_.at(text("on", "main"));
    const std::vector<int64_t> given = step.find("ids") ? ids(step.at("ids")) : std::vector<int64_t>();
    const std::string file = folder_ + "/" + text("file", "");
    const float* logits = nullptr;
    if (what == "open") {
      must(edgeqkv_session_open(bundle_, &sessions_[text("to", "")]));
    } else if (what == "close") {
      must(edgeqkv_session_close(std::exchange(session, nullptr)));
    } else if (what == "concatenation") {
      return of_ids(given);
    } else if (what == "damage" || what == "truncate") {
      change(file, what == "damage", number(step.at(what == "damage" ? "byte" : "bytes")));
    } else if (what == "prefill") {
      must(edgeqkv_session_prefill(session, given.data(), given.size(), &logits));
      return of_logits(logits);
    } else if (what == "step") {
      must(edgeqkv_session_step(session, given.at(0), &logits));
      return of_logits(logits);
    } else if (what == "feed") {
      must(edgeqkv_session_feed(session, given.data(), given.size(), &logits));
      return of_logits(logits);
    } else if (what == "logits") {
      must(edgeqkv_session_logits(session, &logits));
      return of_logits(logits);
    } else if (what == "depth") {
      return of_number(edgeqkv_session_depth(session));
    } else if (what == "tokens") {
      std::vector<int64_t> held(size_t(info_.capacity));
      size_t n = 0;
      must(edgeqkv_session_tokens(session, held.data(), held.size(), &n));
      held.resize(n);
      return of_ids(held);
    } else if (what == "rewind") {
      must(edgeqkv_session_rewind(session, number(step.at("depth"))));
    } else if (what == "reset") {
      must(edgeqkv_session_reset(session));
    } else if (what == "save") {
      must(edgeqkv_session_save(session, file.c_str()));
    } else if (what == "restore") {
      must(edgeqkv_session_restore(session, file.c_str()));
    } else if (what == "fork") {
      edgeqkv_session* other = nullptr;
      must(edgeqkv_session_fork(session, &other));
      sessions_[text("to", "")] = other;
    } else if (what == "generate") {
      return generate(session, given, step);
    } else {
      throw Error("unknown step " + what);
    }
    return {};
  }

  Result generate(edgeqkv_session* session, const std::vector<int64_t>& given, const Json& step) {
    const Json *limit = step.find("limit"), *ends = step.find("end_tokens"), *sampling = step.find("sampling");
    if (limit && number(*limit) == 0) return of_ids({});  // to the library, 0 means no limit
    edgeqkv_generate_options options = {};
    options.size = sizeof options;
    options.limit = limit ? number(*limit) : 0;
    const std::vector<int64_t> end_tokens = ends ? ids(*ends) : std::vector<int64_t>();
    options.end_tokens = end_tokens.data();
    options.n_end_tokens = end_tokens.size();
    options.ignore_end_tokens = ends != nullptr;
    auto value = [&](const char* name) {
      const Json* found = sampling ? sampling->find(name) : nullptr;
      return found ? found->number(name) : 0;
    };
    options.temperature = value("temperature");
    options.top_k = int32_t(value("top_k"));
    options.top_p = value("top_p");
    options.repetition_penalty = value("repetition_penalty");
    options.seed = uint64_t(value("seed"));
    std::vector<int64_t> handed;
    auto on_token = [](void* user, int64_t id, const char*, size_t) -> int32_t {
      if (id >= 0) static_cast<std::vector<int64_t>*>(user)->push_back(id);
      return 0;
    };
    must(edgeqkv_session_generate(session, given.data(), given.size(), &options, on_token, &handed, nullptr));
    return of_ids(handed);
  }

  static void change(const std::string& file, bool damage, int64_t where) {
    const edgeqkv::Bytes bytes = edgeqkv::read_file(file, uint64_t{1} << 30);
    const auto size = int64_t(bytes.size);
    if (damage) bytes.data[size_t(where < 0 ? size + where : where)] ^= 1;
    std::FILE* out = std::fopen(file.c_str(), "wb");
    std::fwrite(bytes.data.get(), 1, size_t(damage ? size : std::max<int64_t>(0, size - where)), out);
    std::fclose(out);
  }

  int64_t number(const Json& value) const {
    if (value.kind != Json::kString) return value.integer("a number");
    const std::map<std::string, int64_t> names = {
        {"capacity", info_.capacity}, {"chunk", info_.prefill_chunk}, {"token_count", info_.token_count}};
    int64_t sum = 0;
    for (size_t start = 0; start < value.text.size();) {
      const bool minus = value.text[start] == '-';
      if (minus || value.text[start] == '+') start++;
      const size_t end = std::min(value.text.find_first_of("+-", start), value.text.size());
      const std::string term = value.text.substr(start, end - start);
      const int64_t known = names.count(term) ? names.at(term) : std::stoll(term);
      sum += minus ? -known : known;
      start = end;
    }
    return sum;
  }

  std::vector<int64_t> ids(const Json& items) const {
    std::vector<int64_t> out;
    for (const Json& item : items.items) {
      if (item.kind != Json::kObject) {
        out.push_back(number(item));
      } else if (const Json* from = item.find("from")) {
        for (int64_t i = 0; i < number(item.at("count")); i++) out.push_back((number(*from) + i) % info_.token_count);
      } else {
        const std::vector<int64_t>& known = results_.at(item.at("of").text).ids;
        const Json *at = item.find("at"), *before = item.find("before");
        if (at) {
          out.push_back(known.at(size_t(number(*at))));
          continue;
        }
        auto end = known.end();
        if (before)
          end = number(*before) < 0 ? end + number(*before) : std::find(known.begin(), end, known.at(size_t(number(*before))));
        out.insert(out.end(), known.begin(), end);
      }
    }
    return out;
  }

  Result of_logits(const float* logits) const {
    Result result;
    result.kind = Result::kLogits;
    if (logits) result.logits.assign(logits, logits + info_.vocab_size);
    return result;
  }
  static Result of_ids(const std::vector<int64_t>& ids) {
    Result result;
    result.kind = Result::kIds;
    result.ids = ids;
    return result;
  }
  static Result of_number(int64_t number) {
    Result result;
    result.kind = Result::kNumber;
    result.number = number;
    return result;
  }

  const edgeqkv_bundle* bundle_;
  std::string folder_;
  edgeqkv_bundle_info info_ = {};
  std::map<std::string, edgeqkv_session*> sessions_;
  std::map<std::string, Result> results_;
};

int run_all(const edgeqkv_bundle* bundle, const Json& cases, const std::string& folder) {
  int failed = 0;
  for (const Json& one : cases.items) {
    if (Run(bundle, folder).all(one.at("steps"))) continue;
    std::fprintf(stderr, "FAILED: %s\n", one.at("name").text.c_str());
    failed++;
  }
  return failed;
}

// Two threads on one session, while a third cancels and looks at the depth: calls do their work or say that it is busy.
int on_one_session(const edgeqkv_bundle* bundle) {
  edgeqkv_session* session = nullptr;
  must(edgeqkv_session_open(bundle, &session));
  edgeqkv_bundle_info info = {};
  info.size = sizeof info;
  must(edgeqkv_bundle_describe(bundle, &info));
  const std::vector<int64_t> prompt(size_t(info.capacity), 1);
  std::atomic<int> wrong{0}, working{2};
  auto work = [&] {
    for (int i = 0; i < 50; i++) {
      const int32_t code = edgeqkv_session_feed(session, prompt.data(), prompt.size(), nullptr);
      if (code != EDGEQKV_SUCCESS && code != EDGEQKV_BUSY && code != EDGEQKV_CANCELLED) wrong++;
      edgeqkv_session_rewind(session, 1);
    }
    working--;
  };
  std::thread first(work), second(work);
  while (working) {
    if (edgeqkv_session_depth(session) > info.capacity) wrong++;
    edgeqkv_session_cancel(session);
    std::this_thread::yield();
  }
  first.join();
  second.join();
  if (edgeqkv_session_feed(session, prompt.data(), prompt.size(), nullptr)) wrong++;
  if (edgeqkv_session_depth(session) != info.capacity) wrong++;
  if (wrong) std::fprintf(stderr, "FAILED: two threads on one session\n");
  return wrong + (edgeqkv_session_close(session) != EDGEQKV_SUCCESS);
}

// A prompt that another thread cancels at any moment: it is held as a whole or not at all, and afterwards runs as ever.
int cancelled_prompts(const edgeqkv_bundle* bundle) {
  edgeqkv_session *session = nullptr, *fresh = nullptr;
  must(edgeqkv_session_open(bundle, &session));
  must(edgeqkv_session_open(bundle, &fresh));
  edgeqkv_bundle_info info = {};
  info.size = sizeof info;
  must(edgeqkv_bundle_describe(bundle, &info));
  const std::vector<int64_t> start = {1, 2}, prompt(size_t(info.capacity) - start.size(), 3);
  const float *logits = nullptr, *expected = nullptr;
  must(edgeqkv_session_prefill(fresh, start.data(), start.size(), nullptr));
  must(edgeqkv_session_prefill(fresh, prompt.data(), prompt.size(), &expected));
  must(edgeqkv_session_prefill(session, start.data(), start.size(), nullptr));
  int wrong = 0, cancelled = 0;
  std::atomic<bool> working{true};
  std::thread worker([&] {
    for (int i = 0; i < 100; i++) {
      const int32_t code = edgeqkv_session_prefill(session, prompt.data(), prompt.size(), nullptr);
      const int64_t depth = edgeqkv_session_depth(session);
      edgeqkv_session_logits(session, &logits);
      if (code == EDGEQKV_CANCELLED) cancelled++;
      const bool good = code == EDGEQKV_CANCELLED ? depth == 2 && !logits : !code && depth == info.capacity && logits;
      if (!good) wrong++;
      edgeqkv_session_rewind(session, 2);
    }
    working = false;
  });
  for (int i = 0; working; i++) {
    for (int pause = 0; pause < i % 50; pause++) std::this_thread::yield();
    edgeqkv_session_cancel(session);
  }
  worker.join();
  must(edgeqkv_session_prefill(session, prompt.data(), prompt.size(), &logits));
  if (!cancelled || std::memcmp(logits, expected, size_t(info.vocab_size) * sizeof *logits) != 0) wrong++;
  if (wrong) std::fprintf(stderr, "FAILED: cancelled prompts\n");
  edgeqkv_session_close(fresh);
  return wrong + (edgeqkv_session_close(session) != EDGEQKV_SUCCESS);
}

}  // namespace

int main(int argc, char** argv) {
  if (argc < 6) {
    std::fprintf(stderr, "usage: session_cases BUNDLE RUNTIME KERNEL CASES.json FOLDER [LIBRARY]\n");
    return 2;
  }
  const char* library = argc > 6 ? argv[6] : nullptr;
  edgeqkv_open_options options = {};
  options.size = sizeof options;
  options.runtime = argv[2];
  options.kernel = argv[3];
  options.threads = 1;
  options.onnxruntime_library = options.executorch_library = library;
  edgeqkv_bundle* bundle = nullptr;
  if (const int32_t code = edgeqkv_bundle_open(argv[1], &options, &bundle)) {
    std::fprintf(stderr, "%s\n", edgeqkv_error());
    return code;
  }
  const edgeqkv::Bytes text = edgeqkv::read_file(argv[4], uint64_t{1} << 24);
  const Json table = edgeqkv::parse_json({text.data.get(), text.size});
  const Json& cases = table.at("cases");
  const std::string folder = argv[5];
  int failed = run_all(bundle, cases, folder);
  std::atomic<int> failed_at_once{0};
  std::vector<std::thread> threads;
  for (const char* own : {"/a", "/b"})  // of which FOLDER has two
    threads.emplace_back([&, own] { failed_at_once += run_all(bundle, cases, folder + own); });
  for (std::thread& thread : threads) thread.join();
  failed += failed_at_once + on_one_session(bundle) + cancelled_prompts(bundle);
  edgeqkv_bundle_close(bundle);
  std::printf("%d cases, %d failed\n", int(3 * cases.items.size()), failed);
  return failed ? 1 : 0;
}
