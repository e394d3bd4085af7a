// What went wrong: one sentence and its kind, as in Python. The kinds are the codes of edgeqkv.h, and the first three the
// exit codes of every program of ours.
#pragma once

#include <stdexcept>
#include <string>

namespace edgeqkv {

enum ErrorKind { kCheckFailed = 1, kBadInput = 2, kMissing = 3, kCacheFull = 4, kBusy = 5, kCancelled = 6 };

struct Error : std::runtime_error {
  explicit Error(const std::string& sentence, int kind = kBadInput) : std::runtime_error(sentence), kind(kind) {}
  int kind;
};

}  // namespace edgeqkv
