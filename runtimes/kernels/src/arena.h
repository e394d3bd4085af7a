// Scratch memory, laid out by the code that uses it: an Arena without memory only counts what would be taken.
#pragma once

#include <cstddef>

namespace edgeqkv {
namespace {

class Arena {
 public:
  explicit Arena(float* memory) : memory_(memory) {}  // at a 64-byte boundary, or null

  // n elements at a 64-byte boundary; null if there is no memory.
  template <class T>
  T* take(size_t n) {
    float* at = memory_ ? memory_ + n_float_ : nullptr;
    n_float_ += (n * sizeof(T) + 63) / 64 * 16;
    return reinterpret_cast<T*>(at);
  }

  size_t n_float() const { return n_float_; }

 private:
  float* memory_;
  size_t n_float_ = 0;
};

}  // namespace
}  // namespace edgeqkv
