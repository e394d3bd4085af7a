#include "worker.h"

#include <unistd.h>

#include <algorithm>
#include <cerrno>
#include <cmath>
#include <optional>
#include <random>

#include "../native/src/limits.h"
#include "bandwidth.h"
#include "waiting.h"

namespace edgeqkv {
namespace {

class Worker {
 public:
  explicit Worker(const Libraries& libraries) : libraries_(libraries) {}

  JsonObject answer(const Json& request) {
    const std::string& what = request.at("do").string("do");
    if (what == "memory") return memory_json();
    if (what == "load") return load(request);
    if (what == "bandwidth") return bandwidth(number(request, "threads"), number(request, "mib"));
    if (!opened_) throw Error("no bundle is loaded");
    if (what == "greedy") return greedy_ids(request.at("ids").array("ids").items, number(request, "tokens"));
    if (what == "fill") {
      const int64_t more = number(request, "depth") - depth();
      const Json* how = request.find("how");
      if (more > 0 && how && how->string("how") == "zeros")
        go_to(depth() + more);
      else if (more > 0)
        prefill(random(more));
      return {};
    }
    if (what == "first_token" || what == "prefill") {
      const std::vector<int64_t> ids = random(number(request, "tokens"));
      go_to(what == "prefill" ? number(request, "depth") : 0);
      return JsonObject().add("seconds", seconds_of([&] { prefill(ids); }));
    }
    if (what == "decode")
      return decode(number(request, "depth"), number(request, "warm_up"), number(request, "steps"),
                    request.find("series") ? number(request, "series") : 1);
    throw Error("unknown request '" + what + "'");
  }

 private:
  static int64_t number(const Json& request, const char* field) {
    const int64_t value = request.at(field).integer(field);
    if (value < 0 || value > INT32_MAX) throw Error(std::string(field) + " is " + json(value) + ", which it cannot be");
    return value;
  }

  JsonObject load(const Json& request) {
    opened_.reset();  // never two at once, and none where this fails
    const JsonObject before = memory_json();
    const Json &kernel = request.at("kernel"), *runtime = request.find("runtime");
    opened_.emplace(request.at("bundle").string("bundle"), runtime ? runtime->string("runtime") : "",
                    kernel.is_null() ? "" : kernel.string("kernel"), int32_t(number(request, "threads")), libraries_);
    JsonObject out;
    return about(*opened_, out).add("start", before);
  }

  JsonObject greedy_ids(const std::vector<Json>& prompt, int64_t tokens) {
    std::vector<int64_t> ids;
    for (const Json& id : prompt) ids.push_back(id.integer("a token id"));
    go_to(0);
    return JsonObject().add("ids", tokens ? greedy(*opened_, ids, tokens).ids : std::vector<int64_t>());
  }

  static JsonObject bandwidth(int64_t threads, int64_t mib) {
    if (threads < 1 || threads > kMostThreads || mib < 1)
      throw Error("bandwidth takes 1 to " + json(kMostThreads) + " threads and at least 1 MiB");
    const double rate = read_bandwidth(int32_t(threads), size_t(mib) << 20);
    return JsonObject().add("bytes_per_s", rate).add("source", "edgeqkv-run");
  }

  JsonObject decode(int64_t depth, int64_t warm_up, int64_t steps, int64_t series) {
    if (depth < warm_up) throw Error("decoding is measured from depth " + json(warm_up) + " on");
    const double before = waited_for_processor();
    std::vector<double> seconds;
    const double taken = seconds_of([&] { seconds = timed(depth, warm_up, steps, series); });
    const double waited = std::max(0.0, waited_for_processor() - before) / taken;
    return JsonObject().add("seconds", seconds).add("waited", before < 0 ? std::nullopt : std::optional(waited));
  }

  std::vector<double> timed(int64_t depth, int64_t warm_up, int64_t steps, int64_t series) {
    std::vector<double> seconds;
    for (; series > 0; series--) {
      const std::vector<int64_t> ids = random(warm_up + steps);
      go_to(depth - warm_up);
      for (int64_t i = 0; i < warm_up + steps; i++) {
        const double taken = seconds_of([&] { prefill({ids[size_t(i)]}); });
        if (i >= warm_up) seconds.push_back(taken);
      }
    }
    return seconds;
  }

  int64_t depth() const { return edgeqkv_session_depth(opened_->session.get()); }

  // What the rows hold does not matter to the clock, but that they were written does: pages that never were are one page of
  // zeros.
  void go_to(int64_t depth) {
    if (depth <= this->depth())
      must(edgeqkv_session_rewind(opened_->session.get(), depth));
    else
      must(edgeqkv_session_skip(opened_->session.get(), depth - this->depth()));
  }

  // With the search for the best id, as a greedy program does it.
  void prefill(const std::vector<int64_t>& ids) {
    const float* logits = nullptr;
    must(edgeqkv_session_prefill(opened_->session.get(), ids.data(), ids.size(), &logits));
    if (!std::isfinite(*std::max_element(logits, logits + opened_->info.token_count)))
      throw Error("the logits after " + json(depth()) + " tokens are not finite", EDGEQKV_CHECK_FAILED);
  }

  std::vector<int64_t> random(int64_t count) {
    if (count > opened_->info.capacity)
      throw Error(json(count) + " more tokens do not fit: the cache holds " + json(opened_->info.capacity) + " positions");
    std::vector<int64_t> ids(static_cast<size_t>(count));
    for (int64_t& id : ids) id = int64_t(ids_() % uint64_t(opened_->info.token_count));
    return ids;
  }

  Libraries libraries_;
  std::optional<Opened> opened_;
  std::mt19937_64 ids_{0};
};

// Lines of one descriptor, which need not arrive one by one.
class Lines {
 public:
  explicit Lines(int descriptor) : descriptor_(descriptor) {}

  // False at the end; what follows the last newline is no request.
  bool next(std::string& line) {
    for (;;) {
      const size_t end = held_.find('\n');
      if (end != std::string::npos) {
        line = held_.substr(0, end);
        held_.erase(0, end + 1);
        return true;
      }
      char piece[4096];
      const ssize_t n = ::read(descriptor_, piece, sizeof piece);
      if (n == 0 || (n < 0 && errno != EINTR)) return false;
      if (n > 0) held_.append(piece, size_t(n));
    }
  }

 private:
  int descriptor_;
  std::string held_;
};

bool write_all(int descriptor, const std::string& text) {
  for (size_t done = 0; done < text.size();) {
    const ssize_t n = ::write(descriptor, text.data() + done, text.size() - done);
    if (n < 0 && errno != EINTR) return false;
    if (n > 0) done += size_t(n);
  }
  return true;
}

}  // namespace

void serve(int requests, int answers, const Libraries& libraries) {
  Worker worker(libraries);
  Lines lines(requests);
  for (std::string line; lines.next(line);) {
    JsonObject answer;
    try {
      answer = worker.answer(parse_json(line));
    } catch (const Error& error) {
      answer.add("error", error.what()).add("exit_code", error.kind);
    } catch (const std::exception& error) {  // no memory for what was asked
      answer.add("error", error.what()).add("exit_code", int(kMissing));
    }
    if (!write_all(answers, answer.text() + "\n")) return;
  }
}

}  // namespace edgeqkv
