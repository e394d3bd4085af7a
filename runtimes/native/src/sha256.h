// SHA-256 (FIPS 180-4).
#pragma once

#include <array>
#include <cstddef>
#include <cstdint>
#include <string>

namespace edgeqkv {

class Sha256 {
 public:
  using Digest = std::array<uint8_t, 32>;

  void update(const void* data, size_t bytes);
  // Ends the message; the object is not for use afterwards.
  Digest finish();

 private:
  void block(const uint8_t* data);

  uint32_t state_[8] = {0x6a09e667, 0xbb67ae85, 0x3c6ef372, 0xa54ff53a, 0x510e527f, 0x9b05688c, 0x1f83d9ab, 0x5be0cd19};
  uint8_t rest_[64];
  size_t in_rest_ = 0;
  uint64_t bytes_ = 0;
};

// 64 small hexadecimal digits, as manifests have it.
std::string hex(const Sha256::Digest& digest);

}  // namespace edgeqkv
