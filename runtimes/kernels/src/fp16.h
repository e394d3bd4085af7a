// IEEE binary16 <-> binary32 in integer arithmetic, for the scalar path; the others use instructions that do the same.
#pragma once

#include <cstdint>
#include <cstring>

namespace edgeqkv {

static inline float from_fp16(uint16_t h) {
  uint32_t sign = uint32_t(h & 0x8000u) << 16, exponent = (h >> 10) & 31u, mantissa = h & 0x3ffu;
  if (exponent == 0) {  // zero or subnormal: mantissa * 2^-24 is exact
    float magnitude = float(mantissa) * 5.9604644775390625e-8f;
    return sign ? -magnitude : magnitude;
  }
  uint32_t bits = sign | (exponent == 31 ? 0x7f800000u : (exponent + 112) << 23) | mantissa << 13;
  float x;
  std::memcpy(&x, &bits, 4);
  return x;
}

static inline uint16_t to_fp16(float x) {
  uint32_t bits;
  std::memcpy(&bits, &x, 4);
  uint32_t sign = bits >> 16 & 0x8000u, magnitude = bits & 0x7fffffffu;
  if (magnitude > 0x7f800000u) return uint16_t(sign | 0x7e00u);   // NaN
  if (magnitude >= 0x477ff000u) return uint16_t(sign | 0x7c00u);  // rounds to 65536 or more
  if (magnitude < 0x38800000u) {                                  // subnormal in fp16: the spacing of 0.5f is 2^-24 there
    float shifted;
    std::memcpy(&shifted, &magnitude, 4);
    shifted += 0.5f;  // the addition rounds half to even
    std::memcpy(&magnitude, &shifted, 4);
    return uint16_t(sign | (magnitude - 0x3f000000u));
  }
  magnitude += 0xfffu + (magnitude >> 13 & 1u);  // half to even
  return uint16_t(sign | ((magnitude - 0x38000000u) >> 13));
}

}  // namespace edgeqkv
