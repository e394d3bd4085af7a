// AVX-512 with VNNI: 16 floats a register, int8 dot products in 16-bit integers.
#include <immintrin.h>

#include "kernel.h"

namespace edgeqkv {
namespace {

struct Avx512 {
  using F = __m512;
  static constexpr int W = 16, kRows = 24, kAccRows = 4, kAccVecs = 4;

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
  static F at_least(F x, F low) { return max(low, x); }
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

  static void store_words(int16_t* p, F x) {
    _mm256_storeu_si256(reinterpret_cast<__m256i*>(p), _mm512_cvtsepi32_epi16(_mm512_cvtps_epi32(x)));
  }
  static void pack(const int16_t* q, int dim, float* packed) { std::memcpy(packed, q, size_t(dim) * 2); }

  // The 32-bit sums hold: 32512 * 127 * 512 < 2^31.
  static F dot_rows(const float* packed, const int8_t* k, ptrdiff_t stride, int dim) {
    const int16_t* q = reinterpret_cast<const int16_t*>(packed);
    F sum[W];
    EDGEQKV_UNROLL
    for (int i = 0; i < W; i += 4) {
      const int8_t* row = k + i * stride;
      __m512i acc[4];
      EDGEQKV_UNROLL
      for (int r = 0; r < 4; r++) acc[r] = _mm512_setzero_si512();
      int d = 0;
      for (; d + 32 <= dim; d += 32) {
        __m512i x = _mm512_loadu_si512(q + d);
        EDGEQKV_UNROLL
        for (int r = 0; r < 4; r++) {
          __m256i y = _mm256_loadu_si256(reinterpret_cast<const __m256i*>(row + r * stride + d));
          acc[r] = _mm512_dpwssd_epi32(acc[r], x, _mm512_cvtepi8_epi16(y));
        }
      }
      if (d < dim) {  // 16 left
        __m512i x = _mm512_maskz_loadu_epi16(0xffff, q + d);
        EDGEQKV_UNROLL
        for (int r = 0; r < 4; r++) {
          __m256i y = _mm256_maskz_loadu_epi8(0xffff, row + r * stride + d);
          acc[r] = _mm512_dpwssd_epi32(acc[r], x, _mm512_cvtepi8_epi16(y));
        }
      }
      EDGEQKV_UNROLL
      for (int r = 0; r < 4; r++) sum[i + r] = _mm512_cvtepi32_ps(acc[r]);
    }
    return sums(sum);
  }

  // Of each 128 bits: y[i] has bytes 4 i .. 4 i + 3 of the four rows x, a byte of each side by side.
  static void interleave(const __m512i* x, __m512i* y) {
    __m512i ab = _mm512_unpacklo_epi8(x[0], x[1]), AB = _mm512_unpackhi_epi8(x[0], x[1]);
    __m512i cd = _mm512_unpacklo_epi8(x[2], x[3]), CD = _mm512_unpackhi_epi8(x[2], x[3]);
    y[0] = _mm512_unpacklo_epi16(ab, cd), y[1] = _mm512_unpackhi_epi16(ab, cd);
    y[2] = _mm512_unpacklo_epi16(AB, CD), y[3] = _mm512_unpackhi_epi16(AB, CD);
  }

  struct PackedWeights {
    float unit;  // 0: not packed, the floats are to be used
    alignas(64) uint8_t high[kBlockKeys], low[kBlockKeys];
  };

  static void pack_weights(const float* weight, int n, PackedWeights& packed) {
    WordWeights rounded;
    round_weights<Avx512>(weight, n, rounded);
    packed.unit = rounded.unit;
    for (int j = 0; j < n; j += W) {
      const __m512i w = _mm512_cvtepi16_epi32(_mm256_load_si256(reinterpret_cast<const __m256i*>(rounded.word + j)));
      _mm_store_si128(reinterpret_cast<__m128i*>(packed.high + j), _mm512_cvtepi32_epi8(_mm512_srli_epi32(w, 8)));
      _mm_store_si128(reinterpret_cast<__m128i*>(packed.low + j), _mm512_cvtepi32_epi8(w));
    }
  }

  // acc[d] += sum_j weight[j] * v[j, d]. A weight is two bytes and four rows are interleaved, so that one VPDPBUSD multiplies
  // 64 values by a byte of their weights. The 32-bit sums hold: 64 rows * 32512 * 127 < 2^31.
  static void add_values(const int8_t* v, ptrdiff_t stride, const PackedWeights& packed, int n, int dim, float* acc) {
    const F unit = set1(packed.unit);
    for (int d = 0; d < dim; d += 64) {
      const __mmask64 mask = d + 64 <= dim ? ~__mmask64(0) : (__mmask64(1) << (dim - d)) - 1;
      __m512i h[4], l[4], sum[4];
      EDGEQKV_UNROLL
      for (int i = 0; i < 4; i++) h[i] = l[i] = _mm512_setzero_si512();
      int j = 0;
      if (d + 64 <= dim)
        for (; j + 4 <= n; j += 4) four_rows<true>(v + j * stride + d, stride, 4, mask, packed, j, h, l);
      for (; j < n; j += 4) four_rows<false>(v + j * stride + d, stride, n - j, mask, packed, j, h, l);
      EDGEQKV_UNROLL
      for (int i = 0; i < 4; i++) sum[i] = _mm512_add_epi32(_mm512_slli_epi32(h[i], 8), l[i]);
      F x[4];
      channels(sum, x);
      for (int i = 0; i < 4 && d + 16 * i < dim; i++) store(acc + d + 16 * i, fma(unit, x[i], load(acc + d + 16 * i)));
    }
  }

  // Rows from n on, and dimensions outside of the mask, are taken as zeros; kWhole promises that there are none.
  template <bool kWhole>
  static void four_rows(const int8_t* row, ptrdiff_t stride, int n, __mmask64 mask, const PackedWeights& packed, int j,
                        __m512i* h, __m512i* l) {
    __m512i x[4], y[4];
    EDGEQKV_UNROLL
    for (int i = 0; i < 4; i++)
      x[i] = kWhole ? _mm512_loadu_si512(row + i * stride) : _mm512_maskz_loadu_epi8(i < n ? mask : 0, row + i * stride);
    interleave(x, y);
    const __m512i high = four_bytes(packed.high + j), low = four_bytes(packed.low + j);
    EDGEQKV_UNROLL
    for (int i = 0; i < 4; i++) {
      h[i] = _mm512_dpbusd_epi32(h[i], high, y[i]);
      l[i] = _mm512_dpbusd_epi32(l[i], low, y[i]);
    }
  }

  // integer.h. VPDPBUSD multiplies unsigned bytes by signed ones. Keys are the unsigned ones, offset by 128, and
  // a weight's digits, the bytes of a positive 16-bit integer.
  static constexpr bool kIntegerTile = true, kKeyQuads = true, kTwoTensorsByRow = true;
  static constexpr float kFloatProduct = 2.5f;
  static constexpr int kTileKeys = 8, kTileVecs = 4, kKeyOffset = 128;
  using I = __m512i;

  static constexpr int kStep = 4;
  static int place(int group, int row) { return group * W + row; }
  static I zero() { return _mm512_setzero_si512(); }
  static I load_integers(const int32_t* p) { return _mm512_loadu_si512(p); }
  static I dot(I sum, I x, const char* y) { return _mm512_dpbusd_epi32(sum, four_bytes(y), x); }
  static I dot_keys(I sum, I x, const char* y) { return _mm512_dpbusd_epi32(sum, x, four_bytes(y)); }
  static I set1_integer(int32_t x) { return _mm512_set1_epi32(x); }
  static I times_256(I x) { return _mm512_slli_epi32(x, 8); }
  static I sub_integers(I a, I b) { return _mm512_sub_epi32(a, b); }
  static F to_float(I x) { return _mm512_cvtepi32_ps(x); }

  static void split(const int16_t* x, int n, int8_t* high, int8_t* low) {
    for (int i = 0; i < n; i += 16) {
      __m256i y = _mm256_loadu_si256(reinterpret_cast<const __m256i*>(x + i));
      __m256i h = _mm256_srai_epi16(_mm256_add_epi16(y, _mm256_set1_epi16(128)), 8);
      _mm_storeu_si128(reinterpret_cast<__m128i*>(high + i), _mm256_cvtepi16_epi8(h));
      _mm_storeu_si128(reinterpret_cast<__m128i*>(low + i), _mm256_cvtepi16_epi8(y));
    }
  }

  static void round_group(const F* x, int32_t* high, int32_t* low) {
    __m512i y[4];
    EDGEQKV_UNROLL
    for (int i = 0; i < 4; i++) y[i] = _mm512_cvtps_epi32(x[i]);
    // Two 16-bit integers to a lane; then one takes the even bytes and the other the odd ones.
    __m512i ac = _mm512_or_si512(y[0], _mm512_slli_epi32(y[2], 16)), bd = _mm512_or_si512(y[1], _mm512_slli_epi32(y[3], 16));
    __m512i even = _mm512_set1_epi16(255);
    constexpr int kSelect = 0xca;  // first ? second : third
    _mm512_storeu_si512(high, _mm512_ternarylogic_epi32(even, _mm512_srli_epi32(ac, 8), bd, kSelect));
    _mm512_storeu_si512(low, _mm512_ternarylogic_epi32(even, ac, _mm512_slli_epi32(bd, 8), kSelect));
  }

  static const int8_t* key_groups(const int8_t* rows, int n, int dim, ptrdiff_t* stride, int8_t* to) {
    for (int j = 0; j < n; j++)
      for (int d = 0; d < dim; d += 64) {
        __mmask64 mask = d + 64 <= dim ? ~__mmask64(0) : (__mmask64(1) << (dim - d)) - 1;
        __m512i x = _mm512_maskz_loadu_epi8(mask, rows + j * *stride + d);
        _mm512_storeu_si512(to + j * kMaxPart + d, _mm512_xor_si512(x, _mm512_set1_epi8(-128)));
      }
    *stride = kMaxPart;
    return to;
  }

  // key_quads.h
  static constexpr int kQueryBytes = 256;

  static void store_integers(int32_t* p, I x) { _mm512_storeu_si512(p, x); }
  static I add_integers(I a, I b) { return _mm512_add_epi32(a, b); }
  static int32_t sum_integers(I x) { return _mm512_reduce_add_epi32(x); }

  static void quads(const int8_t* rows, ptrdiff_t stride, I* y) {
    I x[4];
    EDGEQKV_UNROLL
    for (int i = 0; i < 4; i++) x[i] = _mm512_loadu_si512(rows + i * stride);
    transpose_groups(x, y);
  }
  static void some_quads(const int8_t* rows, ptrdiff_t stride, int n, int width, I* y) {
    const __mmask64 mask = width >= 64 ? ~__mmask64(0) : (__mmask64(1) << width) - 1;
    I x[4];
    EDGEQKV_UNROLL
    for (int i = 0; i < 4; i++) x[i] = i < n ? _mm512_maskz_loadu_epi8(mask, rows + i * stride) : zero();
    transpose_groups(x, y);
  }
  static void transpose_groups(I* x, I* y) {
    EDGEQKV_UNROLL
    for (int i = 0; i < 4; i++) x[i] = _mm512_xor_si512(x[i], _mm512_set1_epi8(-128));
    const I ab = _mm512_unpacklo_epi32(x[0], x[1]), AB = _mm512_unpackhi_epi32(x[0], x[1]);
    const I cd = _mm512_unpacklo_epi32(x[2], x[3]), CD = _mm512_unpackhi_epi32(x[2], x[3]);
    y[0] = _mm512_unpacklo_epi64(ab, cd), y[1] = _mm512_unpackhi_epi64(ab, cd);
    y[2] = _mm512_unpacklo_epi64(AB, CD), y[3] = _mm512_unpackhi_epi64(AB, CD);
  }

  static void channel_quads(const int8_t* rows, ptrdiff_t stride, I* y) {
    I x[4];
    EDGEQKV_UNROLL
    for (int i = 0; i < 4; i++) x[i] = _mm512_xor_si512(_mm512_loadu_si512(rows + i * stride), _mm512_set1_epi8(-128));
    interleave(x, y);
  }

  // Each group of a vector's 128 bits for all four keys.
  static void pack_chunk(const int8_t* digits, int8_t* to) {
    for (int k = 0; k < 4; k++)
      for (int part = 0; part < 4; part++)
        for (int key = 0; key < 4; key++) std::memcpy(to + 64 * k + 16 * part + 4 * key, digits + 16 * part + 4 * k, 4);
  }

  static I dot_quads(I sum, const I* y, const int8_t* query) {
    EDGEQKV_UNROLL
    for (int k = 0; k < 4; k++) sum = _mm512_dpbusd_epi32(sum, y[k], _mm512_loadu_si512(query + 64 * k));
    return sum;
  }

  static I fold(const I* x) {
    const I a = add_integers(_mm512_shuffle_i32x4(x[0], x[1], 0x44), _mm512_shuffle_i32x4(x[0], x[1], 0xee));
    const I b = add_integers(_mm512_shuffle_i32x4(x[2], x[3], 0x44), _mm512_shuffle_i32x4(x[2], x[3], 0xee));
    return add_integers(_mm512_shuffle_i32x4(a, b, 0x88), _mm512_shuffle_i32x4(a, b, 0xdd));
  }

  static I keys_to_channels(I y) {
    return _mm512_shuffle_epi8(y, _mm512_broadcast_i32x4(_mm_setr_epi8(0, 4, 8, 12, 1, 5, 9, 13, 2, 6, 10, 14, 3, 7, 11, 15)));
  }

  static void channels(const I* x, F* y) {
    const I a = _mm512_shuffle_i32x4(x[0], x[1], 0x44), b = _mm512_shuffle_i32x4(x[0], x[1], 0xee);
    const I c = _mm512_shuffle_i32x4(x[2], x[3], 0x44), e = _mm512_shuffle_i32x4(x[2], x[3], 0xee);
    y[0] = to_float(_mm512_shuffle_i32x4(a, c, 0x88)), y[1] = to_float(_mm512_shuffle_i32x4(a, c, 0xdd));
    y[2] = to_float(_mm512_shuffle_i32x4(b, e, 0x88)), y[3] = to_float(_mm512_shuffle_i32x4(b, e, 0xdd));
  }

  static I round_digits(F x, int8_t* high, int8_t* low) {
    const I y = _mm512_cvtps_epi32(x);
    const I h = _mm512_srli_epi32(_mm512_add_epi32(y, _mm512_set1_epi32(128)), 8);
    _mm_store_si128(reinterpret_cast<__m128i*>(high), _mm512_cvtepi32_epi8(h));
    _mm_store_si128(reinterpret_cast<__m128i*>(low), _mm512_cvtepi32_epi8(y));
    return y;
  }

  // to[b, j / 4] for 16 B channels; the last row's instead of rows from n on, whose weights are 0.
  template <int B>
  static void interleave(const int8_t* v, ptrdiff_t stride, int n, int32_t* to) {
    static_assert(B == 1 || B == 4);
    // Unpacking works within 128 bits: each of them is given its quarter of every vector's channels.
    const __m512i quarters = _mm512_setr_epi32(0, 4, 8, 12, 1, 5, 9, 13, 2, 6, 10, 14, 3, 7, 11, 15);
    const __mmask64 mask = B == 4 ? ~__mmask64(0) : 0xffff;
    for (int j = 0; j < n; j += 4, to += W) {
      __m512i x[4], y[4];
      EDGEQKV_UNROLL
      for (int i = 0; i < 4; i++)
        x[i] = _mm512_permutexvar_epi32(quarters, _mm512_maskz_loadu_epi8(mask, v + (j + i < n ? j + i : n - 1) * stride));
      interleave(x, y);
      EDGEQKV_UNROLL
      for (int b = 0; b < B; b++) _mm512_storeu_si512(to + b * kBlockGroups * W, y[b]);
    }
  }

  static __m512i four_bytes(const void* p) {
    int32_t x;
    std::memcpy(&x, p, 4);
    return _mm512_set1_epi32(x);
  }
};

}  // namespace

const Path kAvx512Path = path_over<Avx512>();

}  // namespace edgeqkv
