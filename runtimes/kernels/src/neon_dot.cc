// NEON with the ARMv8.2 dot product of int8: 16-bit integers, of the query and of the weights, are two bytes each, 256 * high +
// low with both within -128 .. 127.
#include "neon.h"

namespace edgeqkv {
namespace {

struct NeonDot : NeonBase {
  static void split(int16x8_t x, int8_t* high, int8_t* low) {
    vst1_s8(high, vrshrn_n_s16(x, 8));
    vst1_s8(low, vmovn_s16(x));
  }

  // All highs, then all lows.
  static void pack(const int16_t* q, int dim, float* packed) {
    int8_t* bytes = reinterpret_cast<int8_t*>(packed);
    for (int d = 0; d < dim; d += 8) split(vld1q_s16(q + d), bytes + d, bytes + dim + d);
  }

  static F dot_rows(const float* packed, const int8_t* k, ptrdiff_t stride, int dim) {
    const int8_t *high = reinterpret_cast<const int8_t*>(packed), *low = high + dim;
    int32x4_t h[W], l[W];
    EDGEQKV_UNROLL
    for (int i = 0; i < W; i++) h[i] = l[i] = vdupq_n_s32(0);
    int d = 0;
    for (; d + 16 <= dim; d += 16) {
      int8x16_t qh = vld1q_s8(high + d), ql = vld1q_s8(low + d);
      EDGEQKV_UNROLL
      for (int i = 0; i < W; i++) {
        int8x16_t x = vld1q_s8(k + i * stride + d);
        h[i] = vdotq_s32(h[i], qh, x);
        l[i] = vdotq_s32(l[i], ql, x);
      }
    }
    if (d < dim) {  // 8 left
      int8x8_t zero = vdup_n_s8(0);
      int8x16_t qh = vcombine_s8(vld1_s8(high + d), zero), ql = vcombine_s8(vld1_s8(low + d), zero);
      EDGEQKV_UNROLL
      for (int i = 0; i < W; i++) {
        int8x16_t x = vcombine_s8(vld1_s8(k + i * stride + d), zero);
        h[i] = vdotq_s32(h[i], qh, x);
        l[i] = vdotq_s32(l[i], ql, x);
      }
    }
    return {sums4(h, l), sums4(h + 4, l + 4)};
  }

  static float32x4_t sums4(const int32x4_t* h, const int32x4_t* l) {
    int32x4_t high = vpaddq_s32(vpaddq_s32(h[0], h[1]), vpaddq_s32(h[2], h[3]));
    int32x4_t low = vpaddq_s32(vpaddq_s32(l[0], l[1]), vpaddq_s32(l[2], l[3]));
    return vfmaq_n_f32(vcvtq_f32_s32(low), vcvtq_f32_s32(high), 256.0f);
  }

  struct PackedWeights {
    float unit;
    alignas(16) int8_t high[kBlockKeys], low[kBlockKeys];  // zeros from n on, up to a multiple of 8
  };

  static void pack_weights(const float* weight, int n, PackedWeights& packed) {
    WordWeights rounded;
    round_weights<NeonDot>(weight, n, rounded);
    packed.unit = rounded.unit;
    if (packed.unit != 0)
      for (int j = 0; j < n; j += 8) split(vld1q_s16(rounded.word + j), packed.high + j, packed.low + j);
  }

  static void add_values(const int8_t* v, ptrdiff_t stride, const PackedWeights& packed, int n, int dim, float* acc) {
    int d = 0;
    for (; d + 32 <= dim; d += 32) add_columns<2>(v + d, stride, packed, n, 16, acc + d);
    for (; d + 16 <= dim; d += 16) add_columns<1>(v + d, stride, packed, n, 16, acc + d);
    if (d < dim) add_columns<1>(v + d, stride, packed, n, 8, acc + d);
  }

  // acc[0 .. 16 C) += sum_j weight[j] * v[j], or the first 8 for width 8. Four rows are interleaved, so that one SDOT multiplies
  // 16 values by a byte of their weights. Rows from n on have weight 0: the last one is taken instead of them.
  template <int C>
  static void add_columns(const int8_t* v, ptrdiff_t stride, const PackedWeights& packed, int n, int width, float* acc) {
    int32x4_t high[4 * C], low[4 * C];
    EDGEQKV_UNROLL
    for (int i = 0; i < 4 * C; i++) high[i] = low[i] = vdupq_n_s32(0);
    for (int j = 0; j < n; j += 4) {
      int8x16_t wh = four_bytes(packed.high + j), wl = four_bytes(packed.low + j);
      const int8_t* row[4];
      EDGEQKV_UNROLL
      for (int i = 0; i < 4; i++) row[i] = v + (j + i < n ? j + i : n - 1) * stride;
      EDGEQKV_UNROLL
      for (int c = 0; c < C; c++) {
        int8x16_t x[4], y[4];
        EDGEQKV_UNROLL
        for (int i = 0; i < 4; i++) x[i] = width == 16 ? vld1q_s8(row[i] + 16 * c) : vcombine_s8(vld1_s8(row[i]), vdup_n_s8(0));
        interleave(x, y);
        EDGEQKV_UNROLL
        for (int i = 0; i < 4; i++) {
          high[4 * c + i] = vdotq_s32(high[4 * c + i], y[i], wh);
          low[4 * c + i] = vdotq_s32(low[4 * c + i], y[i], wl);
        }
      }
    }
    EDGEQKV_UNROLL
    for (int i = 0; i < 4 * C; i++)
      if (4 * i < width * C) add_integers(vaddq_s32(vshlq_n_s32(high[i], 8), low[i]), packed.unit, acc + 4 * i);
  }

  // y[i] has dimensions 4 i .. 4 i + 3 of the four rows x, a dimension's four bytes side by side.
  static void interleave(const int8x16_t* x, int8x16_t* y) {
    int16x8_t ab = vreinterpretq_s16_s8(vzip1q_s8(x[0], x[1])), AB = vreinterpretq_s16_s8(vzip2q_s8(x[0], x[1]));
    int16x8_t cd = vreinterpretq_s16_s8(vzip1q_s8(x[2], x[3])), CD = vreinterpretq_s16_s8(vzip2q_s8(x[2], x[3]));
    y[0] = vreinterpretq_s8_s16(vzip1q_s16(ab, cd)), y[1] = vreinterpretq_s8_s16(vzip2q_s16(ab, cd));
    y[2] = vreinterpretq_s8_s16(vzip1q_s16(AB, CD)), y[3] = vreinterpretq_s8_s16(vzip2q_s16(AB, CD));
  }

  static int8x16_t four_bytes(const void* p) {
    int32_t x;
    std::memcpy(&x, p, 4);
    return vreinterpretq_s8_s32(vdupq_n_s32(x));
  }

  // integer_tile.h
  static constexpr bool kIntegerTile = true, kKeyTile = false;
  static constexpr float kFloatProduct = 2;
  static constexpr int kTileKeys = 4, kTileVecs = 2, kLargestWeight = kLargestInteger, kKeyOffset = 0;
  struct I {
    int32x4_t lo, hi;
  };

  static I zero() { return {vdupq_n_s32(0), vdupq_n_s32(0)}; }
  static I load_integers(const int32_t* p) { return {vld1q_s32(p), vld1q_s32(p + 4)}; }
  static I dot(I sum, I x, const char* y) {
    int8x16_t bytes = four_bytes(y);
    return {vdotq_s32(sum.lo, vreinterpretq_s8_s32(x.lo), bytes), vdotq_s32(sum.hi, vreinterpretq_s8_s32(x.hi), bytes)};
  }
  static I dot_keys(I sum, I x, const char* y) { return dot(sum, x, y); }
  static I set1_integer(int32_t x) { return {vdupq_n_s32(x), vdupq_n_s32(x)}; }
  static I times_256(I x) { return {vshlq_n_s32(x.lo, 8), vshlq_n_s32(x.hi, 8)}; }
  static I sub_integers(I a, I b) { return {vsubq_s32(a.lo, b.lo), vsubq_s32(a.hi, b.hi)}; }
  static F to_float(I x) { return {vcvtq_f32_s32(x.lo), vcvtq_f32_s32(x.hi)}; }

  static void split(const int16_t* x, int n, int8_t* high, int8_t* low) {
    for (int i = 0; i < n; i += 8) split(vld1q_s16(x + i), high + i, low + i);
  }

  static void round_group(const F* x, int32_t* high, int32_t* low) {
    for (int half = 0; half < 2; half++) {
      int32x4_t h[4], l[4];
      EDGEQKV_UNROLL
      for (int i = 0; i < 4; i++) {
        l[i] = vcvtnq_s32_f32(half ? x[i].hi : x[i].lo);
        h[i] = vrshrq_n_s32(l[i], 8);
      }
      vst1q_s32(high + 4 * half, lowest_bytes(h));
      vst1q_s32(low + 4 * half, lowest_bytes(l));
    }
  }

  // Each lane: the lowest bytes of x[0] .. x[3], side by side.
  static int32x4_t lowest_bytes(const int32x4_t* x) {
    return vsliq_n_s32(vsliq_n_s32(vsliq_n_s32(x[0], x[1], 8), x[2], 16), x[3], 24);
  }

  // In place: SDOT takes them as they are.
  static const int8_t* key_groups(const int8_t* rows, int, int, ptrdiff_t*, int8_t*) { return rows; }

  // to[b, j / 4] for 8 B channels; the last row's instead of rows from n on, whose weights are 0.
  template <int B>
  static void interleave(const int8_t* v, ptrdiff_t stride, int n, int32_t* to) {
    static_assert(B <= 2);
    for (int j = 0; j < n; j += 4, to += W) {
      int8x16_t x[4], y[4];
      EDGEQKV_UNROLL
      for (int i = 0; i < 4; i++) {
        const int8_t* row = v + (j + i < n ? j + i : n - 1) * stride;
        x[i] = B == 2 ? vld1q_s8(row) : vcombine_s8(vld1_s8(row), vdup_n_s8(0));
      }
      interleave(x, y);
      EDGEQKV_UNROLL
      for (int i = 0; i < 2 * B; i++) vst1q_s32(to + i / 2 * kBlockGroups * W + i % 2 * 4, vreinterpretq_s32_s8(y[i]));
    }
  }
};

}  // namespace

const Path kNeonDotPath = path_over<NeonDot>();

}  // namespace edgeqkv
