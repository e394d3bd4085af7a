// AVX2 with AVX-VNNI: dot products of int8 in 256-bit vectors, on CPUs without AVX-512.
#include "avx2.h"

namespace edgeqkv {
namespace {

struct AvxVnni : Avx2Base {
  // integer.h. VPDPBUSD multiplies unsigned bytes by signed ones. Keys are the unsigned ones, offset by 128, and a tile's weights,
  // the bytes of a positive 16-bit integer.
  static constexpr bool kIntegerTile = true, kKeyQuads = true, kTwoTensorsByRow = true;
  static constexpr float kFloatProduct = 2.5f;  // as measured with AVX-512: one product of floats for four of bytes there too
  static constexpr int kTileKeys = 4, kTileVecs = 2, kKeyOffset = 128;
  using I = __m256i;

  static I multiply_add(I sum, I of_unsigned, I of_signed) {
#if defined(EDGEQKV_AVXVNNI_AS_AVX512)  // the same instruction in AVX-512's encoding, so that tests run on CPUs with that
    return _mm256_dpbusd_epi32(sum, of_unsigned, of_signed);
#else
    return _mm256_dpbusd_avx_epi32(sum, of_unsigned, of_signed);
#endif
  }
  static constexpr int kStep = 4;
  static int place(int group, int row) { return group * W + row; }
  static I zero() { return _mm256_setzero_si256(); }
  static I load_integers(const int32_t* p) { return load256(p); }
  static void store_integers(int32_t* p, I x) { _mm256_storeu_si256(reinterpret_cast<I*>(p), x); }
  static I dot(I sum, I x, const char* y) { return multiply_add(sum, four_bytes(y), x); }
  static I dot_keys(I sum, I x, const char* y) { return multiply_add(sum, x, four_bytes(y)); }
  static I set1_integer(int32_t x) { return _mm256_set1_epi32(x); }
  static I times_256(I x) { return _mm256_slli_epi32(x, 8); }
  static I add_integers(I a, I b) { return _mm256_add_epi32(a, b); }
  static I sub_integers(I a, I b) { return _mm256_sub_epi32(a, b); }
  static F to_float(I x) { return _mm256_cvtepi32_ps(x); }
  static int32_t sum_integers(I x) {
    int32_t lanes[W], sum = 0;
    store_integers(lanes, x);
    for (int32_t lane : lanes) sum += lane;
    return sum;
  }

  static void split(const int16_t* x, int n, int8_t* high, int8_t* low) {
    for (int i = 0; i < n; i++) {
      high[i] = int8_t((x[i] + 128) >> 8);
      low[i] = int8_t(x[i] & 255);
    }
  }

  static void round_group(const F* x, int32_t* high, int32_t* low) {
    I y[4];
    EDGEQKV_UNROLL
    for (int i = 0; i < 4; i++) y[i] = _mm256_cvtps_epi32(x[i]);
    // Two 16-bit integers to a lane; then one takes the even bytes and the other the odd ones.
    const I ac = _mm256_or_si256(y[0], _mm256_slli_epi32(y[2], 16)), bd = _mm256_or_si256(y[1], _mm256_slli_epi32(y[3], 16));
    const I even = _mm256_set1_epi16(255);
    store_integers(high, _mm256_or_si256(_mm256_and_si256(even, _mm256_srli_epi32(ac, 8)), _mm256_andnot_si256(even, bd)));
    store_integers(low, _mm256_or_si256(_mm256_and_si256(even, ac), _mm256_slli_epi16(bd, 8)));
  }

  static const int8_t* key_groups(const int8_t* rows, int n, int dim, ptrdiff_t* stride, int8_t* to) {
    for (int j = 0; j < n; j++) {
      const int8_t* row = rows + j * *stride;
      int8_t* at = to + j * kMaxPart;
      int d = 0;
      for (; d + 32 <= dim; d += 32)
        _mm256_storeu_si256(reinterpret_cast<I*>(at + d), _mm256_xor_si256(load256(row + d), _mm256_set1_epi8(-128)));
      for (; d < dim; d += 8)
        _mm_storel_epi64(reinterpret_cast<__m128i*>(at + d), _mm_xor_si128(load_eight(row + d), _mm_set1_epi8(-128)));
    }
    *stride = kMaxPart;
    return to;
  }

  // to[b, j / 4] for 8 B channels; the last row's instead of rows from n on, whose weights are 0.
  template <int B>
  static void interleave(const int8_t* v, ptrdiff_t stride, int n, int32_t* to) {
    static_assert(B <= 2);
    for (int j = 0; j < n; j += 4, to += W) {
      __m128i x[4];
      EDGEQKV_UNROLL
      for (int i = 0; i < 4; i++) {
        const int8_t* row = v + (j + i < n ? j + i : n - 1) * stride;
        x[i] = B == 2 ? load128(row) : load_eight(row);
      }
      const __m128i ab = _mm_unpacklo_epi8(x[0], x[1]), AB = _mm_unpackhi_epi8(x[0], x[1]);
      const __m128i cd = _mm_unpacklo_epi8(x[2], x[3]), CD = _mm_unpackhi_epi8(x[2], x[3]);
      const __m128i y[4] = {_mm_unpacklo_epi16(ab, cd), _mm_unpackhi_epi16(ab, cd), _mm_unpacklo_epi16(AB, CD),
                            _mm_unpackhi_epi16(AB, CD)};
      EDGEQKV_UNROLL
      for (int i = 0; i < 2 * B; i++)
        _mm_storeu_si128(reinterpret_cast<__m128i*>(to + i / 2 * kBlockGroups * W + i % 2 * 4), y[i]);
    }
  }

  // key_quads.h
  static constexpr int kQueryBytes = 128;

  static void quads(const int8_t* rows, ptrdiff_t stride, I* y) {
    I x[4];
    EDGEQKV_UNROLL
    for (int i = 0; i < 4; i++) x[i] = _mm256_xor_si256(load256(rows + i * stride), _mm256_set1_epi8(-128));
    const I ab = _mm256_unpacklo_epi32(x[0], x[1]), AB = _mm256_unpackhi_epi32(x[0], x[1]);
    const I cd = _mm256_unpacklo_epi32(x[2], x[3]), CD = _mm256_unpackhi_epi32(x[2], x[3]);
    y[0] = _mm256_unpacklo_epi64(ab, cd), y[1] = _mm256_unpackhi_epi64(ab, cd);
    y[2] = _mm256_unpacklo_epi64(AB, CD), y[3] = _mm256_unpackhi_epi64(AB, CD);
  }
  static void some_quads(const int8_t* rows, ptrdiff_t stride, int n, int width, I* y) {
    int8_t padded[4 * 32] = {};
    for (int i = 0; i < 4 && i < n; i++) std::memcpy(padded + 32 * i, rows + i * stride, size_t(width < 32 ? width : 32));
    quads(padded, 32, y);
  }

  static void channel_quads(const int8_t* rows, ptrdiff_t stride, I* y) {
    I x[4];
    EDGEQKV_UNROLL
    for (int i = 0; i < 4; i++) x[i] = _mm256_xor_si256(load256(rows + i * stride), _mm256_set1_epi8(-128));
    const I ab = _mm256_unpacklo_epi8(x[0], x[1]), AB = _mm256_unpackhi_epi8(x[0], x[1]);
    const I cd = _mm256_unpacklo_epi8(x[2], x[3]), CD = _mm256_unpackhi_epi8(x[2], x[3]);
    y[0] = _mm256_unpacklo_epi16(ab, cd), y[1] = _mm256_unpackhi_epi16(ab, cd);
    y[2] = _mm256_unpacklo_epi16(AB, CD), y[3] = _mm256_unpackhi_epi16(AB, CD);
  }

  // Each group of a vector's 128 bits for all four keys.
  static void pack_chunk(const int8_t* digits, int8_t* to) {
    for (int k = 0; k < 4; k++)
      for (int part = 0; part < 2; part++)
        for (int key = 0; key < 4; key++) std::memcpy(to + 32 * k + 16 * part + 4 * key, digits + 16 * part + 4 * k, 4);
  }

  static I dot_quads(I sum, const I* y, const int8_t* query) {
    EDGEQKV_UNROLL
    for (int k = 0; k < 4; k++) sum = multiply_add(sum, y[k], load256(query + 32 * k));
    return sum;
  }

  static I fold(const I* x) {
    return add_integers(_mm256_permute2x128_si256(x[0], x[1], 0x20), _mm256_permute2x128_si256(x[0], x[1], 0x31));
  }

  static I keys_to_channels(I y) {
    return _mm256_shuffle_epi8(
        y, _mm256_broadcastsi128_si256(_mm_setr_epi8(0, 4, 8, 12, 1, 5, 9, 13, 2, 6, 10, 14, 3, 7, 11, 15)));
  }

  static void channels(const I* x, F* y) {
    y[0] = to_float(_mm256_permute2x128_si256(x[0], x[1], 0x20)), y[1] = to_float(_mm256_permute2x128_si256(x[2], x[3], 0x20));
    y[2] = to_float(_mm256_permute2x128_si256(x[0], x[1], 0x31)), y[3] = to_float(_mm256_permute2x128_si256(x[2], x[3], 0x31));
  }

  static I round_digits(F x, int8_t* high, int8_t* low) {
    const I y = _mm256_cvtps_epi32(x), h = _mm256_srai_epi32(add_integers(y, _mm256_set1_epi32(128)), 8);
    const I l = _mm256_srai_epi32(_mm256_slli_epi32(y, 24), 24);
    // Within 128 bits: four highs and four lows, as bytes.
    const I bytes = _mm256_packs_epi16(_mm256_packs_epi32(h, l), zero());
    const I in_order = _mm256_permutevar8x32_epi32(bytes, _mm256_setr_epi32(0, 4, 1, 5, 2, 3, 6, 7));
    const __m128i both = _mm256_castsi256_si128(in_order);
    _mm_storel_epi64(reinterpret_cast<__m128i*>(high), both);
    _mm_storel_epi64(reinterpret_cast<__m128i*>(low), _mm_unpackhi_epi64(both, both));
    return y;
  }

 private:
  static __m128i load_eight(const int8_t* p) { return _mm_loadl_epi64(reinterpret_cast<const __m128i*>(p)); }
  static I four_bytes(const char* p) {
    int32_t x;
    std::memcpy(&x, p, 4);
    return _mm256_set1_epi32(x);
  }
};

}  // namespace

const Path kAvxVnniPath = path_over<AvxVnni>();

}  // namespace edgeqkv
