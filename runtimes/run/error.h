// What a user did wrong (2), what the machine lacks (3), what a runtime computed wrongly (1): one sentence, as in Python.
#pragma once

#include <stdexcept>
#include <string>

namespace edgeqkv {

struct Error : std::runtime_error {
  explicit Error(const std::string& sentence, int exit_code = 2) : std::runtime_error(sentence), exit_code(exit_code) {}
  int exit_code;
};

constexpr int kMissing = 3;

}  // namespace edgeqkv
