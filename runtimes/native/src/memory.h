// Memory of this process by the kernel's own accounts, as edgeqkv/bench reads it. Bytes; -1 is unknown.
#pragma once

#include <cstdint>
#include <cstdio>
#include <cstdlib>
#include <cstring>
#include <memory>

namespace edgeqkv {

struct Memory {
  int64_t peak_rss = -1, rss = -1, pss = -1, private_rss = -1;
};

inline int64_t proc_field(const char* path, const char* name) {
  const std::unique_ptr<std::FILE, int (*)(std::FILE*)> file(std::fopen(path, "re"), std::fclose);
  const size_t n = std::strlen(name);
  for (char line[256]; file && std::fgets(line, sizeof line, file.get());)
    if (std::strncmp(line, name, n) == 0 && line[n] == ':') return std::strtoll(line + n + 1, nullptr, 10) * 1024;
  return -1;
}

inline Memory memory_of_this_process() {
  const char* rollup = "/proc/self/smaps_rollup";
  const int64_t clean = proc_field(rollup, "Private_Clean"), dirty = proc_field(rollup, "Private_Dirty");
  return {proc_field("/proc/self/status", "VmHWM"), proc_field(rollup, "Rss"), proc_field(rollup, "Pss"),
          clean < 0 || dirty < 0 ? -1 : clean + dirty};
}

}  // namespace edgeqkv
