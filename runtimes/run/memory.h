// Memory of this process by the kernel's own accounts, as edgeqkv/bench/record.py reads it. Bytes; -1 is unknown.
#pragma once

#include <cstdint>
#include <cstdlib>
#include <fstream>
#include <string>

namespace edgeqkv {

struct Memory {
  int64_t peak_rss = -1, rss = -1, pss = -1, private_ = -1;
};

inline int64_t proc_field(const char* path, const std::string& name) {
  std::ifstream file(path);
  for (std::string line; std::getline(file, line);)
    if (line.compare(0, name.size() + 1, name + ":") == 0) return std::strtoll(line.c_str() + name.size() + 1, nullptr, 10) * 1024;
  return -1;
}

inline Memory memory_of_this_process() {
  const char* rollup = "/proc/self/smaps_rollup";
  const int64_t clean = proc_field(rollup, "Private_Clean"), dirty = proc_field(rollup, "Private_Dirty");
  return {proc_field("/proc/self/status", "VmHWM"), proc_field(rollup, "Rss"), proc_field(rollup, "Pss"),
          clean < 0 || dirty < 0 ? -1 : clean + dirty};
}

}  // namespace edgeqkv
