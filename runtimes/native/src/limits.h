// How much of something a file or a caller may ask for: far above what is sensible, so that sums stay within 64 bits and a
// mistyped number takes no memory. Python has the same, in edgeqkv/limits.py.
#pragma once

#include <cstdint>

namespace edgeqkv {

constexpr int64_t kMostLayers = 4096;
constexpr int64_t kMostPositions = int64_t{1} << 24;
constexpr int64_t kMostIds = int64_t{1} << 24;
constexpr int64_t kMostCacheBytes = int64_t{1} << 40;
constexpr int32_t kMostThreads = 256;
constexpr uint64_t kMostJsonBytes = uint64_t{64} << 20;
constexpr uint64_t kMostTokenizerBytes = uint64_t{64} << 20;
constexpr uint32_t kMostHeaderBytes = uint32_t{16} << 20;  // of a session file

}  // namespace edgeqkv
