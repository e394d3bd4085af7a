// A conversation with a bundle in the terminal, through libedgeqkv.
//
//   c++ -std=c++17 chat.cc $(pkg-config --cflags --libs edgeqkv) -o chat
//   ./chat BUNDLE [BEFORE AFTER]
//
// BEFORE and AFTER stand around each line that is typed; for a model that was trained on ChatML they are $'<|im_start|>user\n'
// and
// $'<|im_end|>\n<|im_start|>assistant\n'. Ctrl-C stops an answer. /save FILE, /load FILE, /reset and /quit do what they say.
// EDGEQKV_ONNXRUNTIME and EDGEQKV_EXECUTORCH may name the runtimes' libraries, where the dynamic linker does not find them.
#include <edgeqkv.h>

#include <csignal>
#include <cstdlib>
#include <iostream>
#include <memory>
#include <stdexcept>
#include <string>
#include <vector>

namespace {

edgeqkv_session* interrupted = nullptr;

void must(int32_t code) {
  if (code) throw std::runtime_error(edgeqkv_error());
}

class Chat {
 public:
  Chat(const char* folder, std::string before, std::string after) : before_(std::move(before)), after_(std::move(after)) {
    edgeqkv_open_options options = {};
    options.size = sizeof options;
    options.onnxruntime_library = std::getenv("EDGEQKV_ONNXRUNTIME");
    options.executorch_library = std::getenv("EDGEQKV_EXECUTORCH");
    must(edgeqkv_bundle_open(folder, &options, &bundle_));
    must(edgeqkv_session_open(bundle_, &session_));
    interrupted = session_;
  }
  ~Chat() {
    edgeqkv_session_close(session_);
    edgeqkv_bundle_close(bundle_);
  }

  // Does what one line asks for; false at the end.
  bool line(const std::string& text) {
    const size_t space = text.find(' ');
    const std::string command = text.substr(0, space), file = space == std::string::npos ? "" : text.substr(space + 1);
    if (command == "/quit") return false;
    if (command == "/reset") {
      must(edgeqkv_session_reset(session_));
      history_.clear();
    } else if (command == "/save") {
      must(edgeqkv_session_feed(session_, history_.data(), history_.size(), nullptr));  // the last token, too
      must(edgeqkv_session_save(session_, file.c_str()));
    } else if (command == "/load") {
      must(edgeqkv_session_restore(session_, file.c_str()));
      history_.resize(size_t(edgeqkv_session_depth(session_)));
      size_t n = 0;
      must(edgeqkv_session_tokens(session_, history_.data(), history_.size(), &n));
    } else {
      answer(before_ + text + after_);
    }
    return true;
  }

 private:
  // The session keeps what it holds of the history, so that only what is new is computed.
  void answer(const std::string& text) {
    size_t n = 0;
    const int32_t first = history_.empty();  // tokens that open a text come once
    must(edgeqkv_bundle_encode(bundle_, text.data(), text.size(), first, nullptr, 0, &n));
    const size_t before = history_.size();
    history_.resize(before + n);
    must(edgeqkv_bundle_encode(bundle_, text.data(), text.size(), first, history_.data() + before, n, &n));
    edgeqkv_generate_options how = {};
    how.size = sizeof how;
    how.limit = 200;
    how.temperature = 0.6;
    how.top_p = 0.95;
    auto on_token = [](void* user, int64_t id, const char* piece, size_t bytes) -> int32_t {
      if (id >= 0) static_cast<std::vector<int64_t>*>(user)->push_back(id);
      std::cout.write(piece, std::streamsize(bytes)).flush();
      return 0;
    };
    if (const int32_t code = edgeqkv_session_feed(session_, history_.data(), history_.size(), nullptr)) {
      history_.resize(before);  // a line that does not fit was not said
      must(code);
    }
    must(edgeqkv_session_generate(session_, nullptr, 0, &how, on_token, &history_, nullptr));
    std::cout << std::endl;
  }

  std::string before_, after_;
  edgeqkv_bundle* bundle_ = nullptr;
  edgeqkv_session* session_ = nullptr;
  std::vector<int64_t> history_;
};

}  // namespace

int main(int argc, char** argv) {
  if (argc != 2 && argc != 4) {
    std::cerr << "usage: chat BUNDLE [BEFORE AFTER]\n";
    return 2;
  }
  try {
    Chat chat(argv[1], argc > 3 ? argv[2] : "", argc > 3 ? argv[3] : "\n");
    std::signal(SIGINT, [](int) { edgeqkv_session_cancel(interrupted); });
    for (std::string text; std::cout << "> " << std::flush, std::getline(std::cin, text);) {
      try {
        if (!chat.line(text)) break;
      } catch (const std::exception& error) {  // a full cache, a file that is not there: the conversation goes on
        std::cerr << error.what() << std::endl;
      }
    }
    return 0;
  } catch (const std::exception& error) {
    std::cerr << "chat: " << error.what() << std::endl;
    return 1;
  }
}
