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
    char* line = nullptr;
    size_t room = 0;
    for (ssize_t n; (n = ::getline(&line, &room, maps.get())) > 0;) {
      unsigned long begin = 0, end = 0;
      int name = 0;
      if (std::sscanf(line, "%lx-%lx %*s %*s %*s %*s %n", &begin, &end, &name) == 2 && name &&
          std::string(line + name, size_t(n - name)) == std::string(path.get()) + "\n")
        places_.emplace_back(reinterpret_cast<void*>(begin), end - begin);
    // Else a byte that is read may bring 2 MiB with it.
    for (const auto& [begin, bytes] : places_) ::madvise(begin, bytes, MADV_NOHUGEPAGE);
    }
    std::free(line);
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
  std::vector<std::pair<void*, size_t>> places_;
};

}  // namespace edgeqkv
