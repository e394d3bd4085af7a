// Included before all else: what GCC 12's C++ headers call and the C++ library of an older system lacks (it came with GCC 11).
#pragma once
#include <new>
namespace std {
[[noreturn]] inline void __throw_bad_array_new_length() { throw bad_array_new_length(); }
}  // namespace std
