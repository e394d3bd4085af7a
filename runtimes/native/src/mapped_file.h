// The pages of a file that this process maps and never writes: they can be given back, and come again from the file when they
// are read.
#pragma once

#include <cstddef>
#include <string>
#include <utility>
#include <vector>

#if defined(__linux__)
#include <sys/mman.h>

#include <cstdio>
#include <cstdlib>
#include <memory>

#include "zeros.h"
#endif

namespace edgeqkv {

class MappedFile {
 public:
  MappedFile() = default;

  // Where ``file`` is mapped now; nowhere on a system that does not tell.
  explicit MappedFile(const std::string& file) {
#if defined(__linux__)
    const std::unique_ptr<char, Free> path(::realpath(file.c_str(), nullptr));
    if (!path) return;
    const std::unique_ptr<std::FILE, int (*)(std::FILE*)> maps(std::fopen("/proc/self/maps", "re"), std::fclose);
    if (!maps) return;
    const std::string end = std::string(path.get()) + "\n";
    for (char line[kLongest]; std::fgets(line, sizeof line, maps.get());) {
      unsigned long first = 0, last = 0;
      int name = 0;
      if (std::sscanf(line, "%lx-%lx %*s %*s %*s %*s %n", &first, &last, &name) == 2 && name && line + name == end)
        places_.emplace_back(reinterpret_cast<void*>(first), last - first);
    }
#else
    (void)file;
#endif
  }

  void give_back() const {
#if defined(__linux__)
    for (const auto& [begin, bytes] : places_) ::madvise(begin, bytes, MADV_DONTNEED);
#endif
  }

 private:
  static constexpr size_t kLongest = 8192;  // of a line: a path has up to 4096 bytes, of which few are written as \ooo

  std::vector<std::pair<void*, size_t>> places_;
};

}  // namespace edgeqkv
