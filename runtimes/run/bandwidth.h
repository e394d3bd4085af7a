// How fast this machine reads memory, as decoding does: in order, each thread a part of its own.
#pragma once

#include <algorithm>
#include <chrono>
#include <cstdint>
#include <cstring>
#include <thread>
#include <vector>

namespace edgeqkv {

// The sum of 64-bit words, so that every one of them is read. `bytes` is a multiple of 64, `data` aligned to it.
inline uint64_t sum_of_words(const unsigned char* data, size_t bytes) {
  typedef uint64_t Vector __attribute__((vector_size(16)));
  Vector sums[4] = {};
  for (size_t i = 0; i < bytes; i += sizeof sums) {
    Vector words[4];
    std::memcpy(words, data + i, sizeof words);
    for (int j = 0; j < 4; j++) sums[j] += words[j];
  }
  const Vector all = (sums[0] + sums[1]) + (sums[2] + sums[3]);
  return all[0] + all[1];
}

// Waits for its threads, also where one more cannot be started.
struct Joined {
  std::vector<std::thread> threads;
  ~Joined() {
    for (std::thread& thread : threads) thread.join();
  }
};

// Bytes a second, the fastest of three passes over `bytes`: a pass is slower where another program has the memory or a core
// meanwhile. `bytes` has to be several times what the caches hold. Throws std::bad_alloc, and std::system_error without
// threads.
inline double read_bandwidth(int32_t threads, size_t bytes) {
  constexpr int kPasses = 3;
  constexpr size_t kLine = 64;
  const size_t part = std::max(kLine, bytes / size_t(threads) / kLine * kLine), all = part * size_t(threads);
  std::vector<unsigned char> memory(all + kLine, 1);  // written: pages that never were are all one page of zeros
  unsigned char* const data = memory.data() + (kLine - reinterpret_cast<uintptr_t>(memory.data()) % kLine);
  std::vector<uint64_t> sums(static_cast<size_t>(threads));
  double seconds = 1e9;
  for (int pass = 0; pass < kPasses; pass++) {
    const auto start = std::chrono::steady_clock::now();
    {
      Joined others;
      for (size_t i = 1; i < sums.size(); i++)
        others.threads.emplace_back([&, i] { sums[i] = sum_of_words(data + i * part, part); });
      sums[0] = sum_of_words(data, part);
    }
    seconds = std::min(seconds, std::chrono::duration<double>(std::chrono::steady_clock::now() - start).count());
  }
  volatile uint64_t kept = 0;  // what nobody looks at may be left out by the compiler
  for (const uint64_t sum : sums) kept = kept + sum;
  return double(all) / seconds;
}

}  // namespace edgeqkv
