// 256-bit vectors: 8 floats a register, sums over int8 in 16-bit integers by VPMADDWD.
#pragma once

#include <immintrin.h>

#include "kernel.h"

namespace edgeqkv {
namespace {

struct Avx2Base {
  using F = __m256;
  static constexpr int W = 8, kRows = 12, kAccRows = 4, kAccVecs = 2;

  static F load(const float* p) { return _mm256_loadu_ps(p); }
  static F load(const uint16_t* p) { return _mm256_cvtph_ps(_mm_loadu_si128(reinterpret_cast<const __m128i*>(p))); }
  static F load(const int8_t* p) {
    return _mm256_cvtepi32_ps(_mm256_cvtepi8_epi32(_mm_loadl_epi64(reinterpret_cast<const __m128i*>(p))));
  }
  static void store(float* p, F x) { _mm256_storeu_ps(p, x); }
  static void store_fp16(uint16_t* p, F x) {
    _mm_storeu_si128(reinterpret_cast<__m128i*>(p), _mm256_cvtps_ph(x, _MM_FROUND_TO_NEAREST_INT));
  }
  static F set1(float x) { return _mm256_set1_ps(x); }
  static F add(F a, F b) { return _mm256_add_ps(a, b); }
  static F sub(F a, F b) { return _mm256_sub_ps(a, b); }
  static F mul(F a, F b) { return _mm256_mul_ps(a, b); }
  static F div(F a, F b) { return _mm256_div_ps(a, b); }
  static F fma(F a, F b, F c) { return _mm256_fmadd_ps(a, b, c); }
  static F max(F a, F b) { return _mm256_max_ps(a, b); }
  static F at_least(F x, F low) { return max(low, x); }
  static F abs(F a) { return _mm256_andnot_ps(_mm256_set1_ps(-0.0f), a); }
  static F round(F a) { return _mm256_round_ps(a, _MM_FROUND_TO_NEAREST_INT | _MM_FROUND_NO_EXC); }
  static F pow2(F n) {
    return _mm256_castsi256_ps(_mm256_slli_epi32(_mm256_add_epi32(_mm256_cvtps_epi32(n), _mm256_set1_epi32(127)), 23));
  }
  static F sums(const F* x) {
    F a = _mm256_hadd_ps(_mm256_hadd_ps(x[0], x[1]), _mm256_hadd_ps(x[2], x[3]));
    F b = _mm256_hadd_ps(_mm256_hadd_ps(x[4], x[5]), _mm256_hadd_ps(x[6], x[7]));
    return add(_mm256_permute2f128_ps(a, b, 0x20), _mm256_permute2f128_ps(a, b, 0x31));
  }

  // 32 bytes become two registers of 16-bit integers: the even ones plus 128 (which costs less than to extend their sign), and
  // the odd ones. What the 128 add to a sum is known beforehand, and its accumulator starts at minus that.
  static __m256i even_plus_128(__m256i x) {
    return _mm256_and_si256(_mm256_xor_si256(x, _mm256_set1_epi8(-128)), _mm256_set1_epi16(255));
  }
  static __m256i odd(__m256i x) { return _mm256_srai_epi16(x, 8); }

  static __m256i load256(const void* p) { return _mm256_loadu_si256(static_cast<const __m256i*>(p)); }
  static __m128i load128(const void* p) { return _mm_loadu_si128(static_cast<const __m128i*>(p)); }
  static __m128i load_words(const int8_t* p) { return _mm_cvtepi8_epi16(_mm_loadl_epi64(reinterpret_cast<const __m128i*>(p))); }

  // First what the accumulators start at, 8 32-bit integers; then of every 32 integers the even ones before the odd ones; then
  // those that are left as they are.
  static void pack(const int16_t* q, int dim, float* packed) {
    int32_t* start = reinterpret_cast<int32_t*>(packed);
    int16_t* to = reinterpret_cast<int16_t*>(start + 8);
    for (int i = 0; i < 8; i++) start[i] = 0;
    int d = 0;
    for (; d + 32 <= dim; d += 32)
      for (int i = 0; i < 16; i++) {
        to[d + i] = q[d + 2 * i], to[d + 16 + i] = q[d + 2 * i + 1];
        start[i / 2] -= 128 * q[d + 2 * i];
      }
    for (; d < dim; d++) to[d] = q[d];
  }

  // The 32-bit sums hold: 32512 * 255 * 512 < 2^32, spread over two lanes or more.
  static F dot_rows(const float* packed, const int8_t* k, ptrdiff_t stride, int dim) {
    const int16_t* q = reinterpret_cast<const int16_t*>(packed + 8);
    __m256i quad[2];
    EDGEQKV_UNROLL
    for (int i = 0; i < 2; i++) {
      const int8_t* row = k + 4 * i * stride;
      __m256i acc[4];
      EDGEQKV_UNROLL
      for (int r = 0; r < 4; r++) acc[r] = load256(packed);
      int d = 0;
      for (; d + 32 <= dim; d += 32) {
        __m256i even_q = load256(q + d), odd_q = load256(q + d + 16);
        EDGEQKV_UNROLL
        for (int r = 0; r < 4; r++) {
          __m256i x = load256(row + r * stride + d);
          acc[r] = _mm256_add_epi32(acc[r], _mm256_madd_epi16(even_plus_128(x), even_q));
          acc[r] = _mm256_add_epi32(acc[r], _mm256_madd_epi16(odd(x), odd_q));
        }
      }
      for (; d < dim; d += 8) {
        __m128i x = load128(q + d);
        EDGEQKV_UNROLL
        for (int r = 0; r < 4; r++) {
          __m128i product = _mm_madd_epi16(load_words(row + r * stride + d), x);
          acc[r] = _mm256_add_epi32(acc[r], _mm256_inserti128_si256(_mm256_setzero_si256(), product, 0));
        }
      }
      // Two levels of a tree of shuffles leave the sums of four rows in each 128-bit lane.
      __m256i ab = _mm256_add_epi32(_mm256_unpacklo_epi32(acc[0], acc[1]), _mm256_unpackhi_epi32(acc[0], acc[1]));
      __m256i cd = _mm256_add_epi32(_mm256_unpacklo_epi32(acc[2], acc[3]), _mm256_unpackhi_epi32(acc[2], acc[3]));
      quad[i] = _mm256_add_epi32(_mm256_unpacklo_epi64(ab, cd), _mm256_unpackhi_epi64(ab, cd));
    }
    return add(_mm256_cvtepi32_ps(_mm256_permute2x128_si256(quad[0], quad[1], 0x20)),
               _mm256_cvtepi32_ps(_mm256_permute2x128_si256(quad[0], quad[1], 0x31)));
  }

  static void store_words(int16_t* p, F x) {
    __m256i i = _mm256_cvtps_epi32(x);
    _mm_storeu_si128(reinterpret_cast<__m128i*>(p), _mm_packs_epi32(_mm256_castsi256_si128(i), _mm256_extracti128_si256(i, 1)));
  }

  using PackedWeights = WordWeights;
  static void pack_weights(const float* weight, int n, PackedWeights& packed) { round_weights<Avx2Base>(weight, n, packed); }

  // acc[d] += sum_j weight[j] * v[j, d]. Two rows are interleaved, so that one VPMADDWD multiplies 8 pairs of values by their two
  // weights. The 32-bit sums hold: 64 rows * 32512 * 255 < 2^31.
  static void add_values(const int8_t* v, ptrdiff_t stride, const PackedWeights& packed, int n, int dim, float* acc) {
    F unit = set1(packed.unit);
    int32_t total = 0;
    for (int j = 0; j < n; j++) total += packed.word[j];
    int d = 0;
    for (; d + 32 <= dim; d += 32) {
      __m256i even_lo = _mm256_set1_epi32(-128 * total), even_hi = even_lo;
      __m256i odd_lo = _mm256_setzero_si256(), odd_hi = odd_lo;
      for (int j = 0; j < n; j += 2) {
        const int8_t* row = v + j * stride + d;
        __m256i a = load256(row), b = load256(j + 1 < n ? row + stride : row);  // the last one's weight is 0
        __m256i w = two_words(packed.word + j), lo = _mm256_unpacklo_epi16(a, b), hi = _mm256_unpackhi_epi16(a, b);
        even_lo = _mm256_add_epi32(even_lo, _mm256_madd_epi16(even_plus_128(lo), w));
        odd_lo = _mm256_add_epi32(odd_lo, _mm256_madd_epi16(odd(lo), w));
        even_hi = _mm256_add_epi32(even_hi, _mm256_madd_epi16(even_plus_128(hi), w));
        odd_hi = _mm256_add_epi32(odd_hi, _mm256_madd_epi16(odd(hi), w));
      }
      // 128-bit lane L has dimensions 16 L ..: four from each of these.
      __m256i x0 = _mm256_unpacklo_epi32(even_lo, odd_lo), x1 = _mm256_unpackhi_epi32(even_lo, odd_lo);
      __m256i x2 = _mm256_unpacklo_epi32(even_hi, odd_hi), x3 = _mm256_unpackhi_epi32(even_hi, odd_hi);
      add_integers(_mm256_permute2x128_si256(x0, x1, 0x20), unit, acc + d);
      add_integers(_mm256_permute2x128_si256(x2, x3, 0x20), unit, acc + d + 8);
      add_integers(_mm256_permute2x128_si256(x0, x1, 0x31), unit, acc + d + 16);
      add_integers(_mm256_permute2x128_si256(x2, x3, 0x31), unit, acc + d + 24);
    }
    for (; d < dim; d += 8) {
      __m256i sum = _mm256_setzero_si256();
      for (int j = 0; j < n; j += 2) {
        const int8_t* row = v + j * stride + d;
        __m128i a = load_words(row), b = load_words(j + 1 < n ? row + stride : row);
        __m256i pairs = _mm256_set_m128i(_mm_unpackhi_epi16(a, b), _mm_unpacklo_epi16(a, b));
        sum = _mm256_add_epi32(sum, _mm256_madd_epi16(pairs, two_words(packed.word + j)));
      }
      add_integers(sum, unit, acc + d);
    }
  }

  static void add_integers(__m256i x, F unit, float* acc) { store(acc, fma(unit, _mm256_cvtepi32_ps(x), load(acc))); }

  static __m256i two_words(const int16_t* p) {
    int32_t x;
    std::memcpy(&x, p, 4);
    return _mm256_set1_epi32(x);
  }
};

}  // namespace
}  // namespace edgeqkv
