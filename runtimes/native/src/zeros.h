// Large memory that begins as zeros, whose pages stay with the system until they are written.
#pragma once

#include <cstddef>
#include <cstdlib>
#include <memory>
#include <string>

#include "error.h"

namespace edgeqkv {

struct Free {
  void operator()(void* memory) const { std::free(memory); }
};

template <class T>
using Zeros = std::unique_ptr<T[], Free>;

template <class T>
Zeros<T> zeros(size_t n) {
  Zeros<T> memory(static_cast<T*>(std::calloc(n, sizeof(T))));
  if (!memory) throw Error("there is not enough memory for " + std::to_string(n * sizeof(T)) + " bytes", kMissing);
  return memory;
}

}  // namespace edgeqkv
