// How long the threads of this process have waited for a processor that another program had.
#pragma once

#include <dirent.h>

#include <cstdio>
#include <string>

namespace edgeqkv {

// In seconds, of all its threads together, since they were started; negative where the kernel does not say it. Source: the
// second number of /proc/PID/task/TID/schedstat, "time spent waiting on a runqueue" in ns (Linux,
// Documentation/scheduler/sched-stats).
inline double waited_for_processor() {
  DIR* const threads = opendir("/proc/self/task");
  if (!threads) return -1;
  double seconds = -1;
  while (const dirent* entry = readdir(threads)) {
    if (entry->d_name[0] == '.') continue;
    FILE* const file = std::fopen((std::string("/proc/self/task/") + entry->d_name + "/schedstat").c_str(), "re");
    if (!file) continue;
    char line[96];
    unsigned long long ran = 0, waited = 0;
    if (std::fgets(line, sizeof line, file) && std::sscanf(line, "%llu %llu", &ran, &waited) == 2)
      seconds = (seconds < 0 ? 0 : seconds) + 1e-9 * double(waited);
    std::fclose(file);
  }
  closedir(threads);
  return seconds;
}

}  // namespace edgeqkv
