// AVX-512 with VNNI: 16 floats a register, int8 dot products in 16-bit integers.
#include <immintrin.h>

#include "kernel.h"

namespace edgeqkv {
namespace {

struct Avx512 {
  using F = __m512;
  static constexpr int W = 16, kRows = 24, kAccRows = 4, kAccVecs = 4;
  static constexpr bool kIntegerDot = true;

  static F load(const float* p) { return _mm512_loadu_ps(p); }
  static F load(const uint16_t* p) { return _mm512_cvtph_ps(_mm256_loadu_si256(reinterpret_cast<const __m256i*>(p))); }
  static F load(const int8_t* p) {
    return _mm512_cvtepi32_ps(_mm512_cvtepi8_epi32(_mm_loadu_si128(reinterpret_cast<const __m128i*>(p))));
  }
  static void store(float* p, F x) { _mm512_storeu_ps(p, x); }
  static void store_fp16(uint16_t* p, F x) {
    _mm256_storeu_si256(reinterpret_cast<__m256i*>(p), _mm512_cvtps_ph(x, _MM_FROUND_TO_NEAREST_INT | _MM_FROUND_NO_EXC));
  }
  static F set1(float x) { return _mm512_set1_ps(x); }
  static F add(F a, F b) { return _mm512_add_ps(a, b); }
  static F sub(F a, F b) { return _mm512_sub_ps(a, b); }
  static F mul(F a, F b) { return _mm512_mul_ps(a, b); }
  static F div(F a, F b) { return _mm512_div_ps(a, b); }
  static F fma(F a, F b, F c) { return _mm512_fmadd_ps(a, b, c); }
  static F max(F a, F b) { return _mm512_max_ps(a, b); }
  static F abs(F a) { return _mm512_abs_ps(a); }
  static F round(F a) { return _mm512_roundscale_ps(a, _MM_FROUND_TO_NEAREST_INT | _MM_FROUND_NO_EXC); }
  static F pow2(F n) {
    return _mm512_castsi512_ps(_mm512_slli_epi32(_mm512_add_epi32(_mm512_cvtps_epi32(n), _mm512_set1_epi32(127)), 23));
  }

  // A tree of shuffles: at each level two registers fold into one, and lanes end up in the order of the arguments.
  static F sums(const F* x) {
    F quad[4];
    for (int i = 0; i < 4; i++) {
      const F* y = x + 4 * i;
      F ab = add(_mm512_unpacklo_ps(y[0], y[1]), _mm512_unpackhi_ps(y[0], y[1]));
      F cd = add(_mm512_unpacklo_ps(y[2], y[3]), _mm512_unpackhi_ps(y[2], y[3]));
      quad[i] = add(_mm512_shuffle_ps(ab, cd, 0x44), _mm512_shuffle_ps(ab, cd, 0xee));
    }
    F lo = add(_mm512_shuffle_f32x4(quad[0], quad[1], 0x88), _mm512_shuffle_f32x4(quad[0], quad[1], 0xdd));
    F hi = add(_mm512_shuffle_f32x4(quad[2], quad[3], 0x88), _mm512_shuffle_f32x4(quad[2], quad[3], 0xdd));
    return add(_mm512_shuffle_f32x4(lo, hi, 0x88), _mm512_shuffle_f32x4(lo, hi, 0xdd));
  }

  // Integer d of the query, as 16-bit integers side by side.
  static void pack(float* packed, int, int d, int value) { reinterpret_cast<int16_t*>(packed)[d] = int16_t(value); }

  // The 32-bit sums hold: 32512 * 127 * 1024 < 2^32, and it is spread over 16 lanes.
  static F dot_rows(const float* packed, const int8_t* const* row, int dim) {
    const int16_t* q = reinterpret_cast<const int16_t*>(packed);
    __m512i acc[W];
    EDGEQKV_UNROLL
    for (int i = 0; i < W; i++) acc[i] = _mm512_setzero_si512();
    int d = 0;
    for (; d + 32 <= dim; d += 32) {
      __m512i x = _mm512_loadu_si512(q + d);
      EDGEQKV_UNROLL
      for (int i = 0; i < W; i++) {
        __m256i k = _mm256_loadu_si256(reinterpret_cast<const __m256i*>(row[i] + d));
        acc[i] = _mm512_dpwssd_epi32(acc[i], x, _mm512_cvtepi8_epi16(k));
      }
    }
    if (d < dim) {  // 16 left
      __m512i x = _mm512_castsi256_si512(_mm256_loadu_si256(reinterpret_cast<const __m256i*>(q + d)));
      EDGEQKV_UNROLL
      for (int i = 0; i < W; i++) {
        __m128i k = _mm_loadu_si128(reinterpret_cast<const __m128i*>(row[i] + d));
        acc[i] = _mm512_dpwssd_epi32(acc[i], x, _mm512_zextsi256_si512(_mm256_cvtepi8_epi16(k)));
      }
    }
    F sum[W];
    EDGEQKV_UNROLL
    for (int i = 0; i < W; i++) sum[i] = _mm512_cvtepi32_ps(acc[i]);
    return sums(sum);
  }
};

}  // namespace

const Path kAvx512Path = {append<Avx512>, attend<Avx512>, scratch_floats<Avx512>};

}  // namespace edgeqkv
