// NEON with the ARMv8.2 dot product of int8: 16-bit integers, of the query and of the weights, are two bytes each, 256 * high +
// low with both within -128 .. 127.
#pragma once

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
  static constexpr bool kIntegerTile = true, kKeyQuads = true, kTwoTensorsByRow = false;
  static constexpr float kFloatProduct = 2;
  static constexpr int kTileKeys = 4, kTileVecs = 2, kKeyOffset = 0;
  struct I {
    int32x4_t lo, hi;
  };

  static constexpr int kStep = 4;
  static int place(int group, int row) { return group * W + row; }
  static I zero() { return {vdupq_n_s32(0), vdupq_n_s32(0)}; }
  static I load_integers(const int32_t* p) { return {vld1q_s32(p), vld1q_s32(p + 4)}; }
  static I dot(I sum, I x, const char* y) {
    int8x16_t bytes = four_bytes(y);
    return {vdotq_s32(sum.lo, vreinterpretq_s8_s32(x.lo), bytes), vdotq_s32(sum.hi, vreinterpretq_s8_s32(x.hi), bytes)};
  }
  static I dot_keys(I sum, I x, const char* y) { return dot(sum, x, y); }
  static I set1_integer(int32_t x) { return {vdupq_n_s32(x), vdupq_n_s32(x)}; }
  static I times_256(I x) { return {vshlq_n_s32(x.lo, 8), vshlq_n_s32(x.hi, 8)}; }
  static void store_integers(int32_t* p, I x) {
    vst1q_s32(p, x.lo);
    vst1q_s32(p + 4, x.hi);
  }
  static I add_integers(I a, I b) { return {vaddq_s32(a.lo, b.lo), vaddq_s32(a.hi, b.hi)}; }
  static int32_t sum_integers(I x) { return vaddvq_s32(vaddq_s32(x.lo, x.hi)); }
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

  // key_quads.h
  static constexpr int kQueryBytes = 32;

  static void quads(const int8_t* rows, ptrdiff_t stride, I* y) {
    int32x4_t lo[4], hi[4];
    EDGEQKV_UNROLL
    for (int i = 0; i < 4; i++) {
      lo[i] = vreinterpretq_s32_s8(vld1q_s8(rows + i * stride));
      hi[i] = vreinterpretq_s32_s8(vld1q_s8(rows + i * stride + 16));
    }
    transpose(lo), transpose(hi);
    EDGEQKV_UNROLL
    for (int k = 0; k < 4; k++) y[k] = {lo[k], hi[k]};
  }
  static void some_quads(const int8_t* rows, ptrdiff_t stride, int n, int width, I* y) {
    int8_t padded[4 * 32] = {};
    for (int i = 0; i < 4 && i < n; i++) std::memcpy(padded + 32 * i, rows + i * stride, size_t(width < 32 ? width : 32));
    quads(padded, 32, y);
  }
  static void transpose(int32x4_t* x) {
    const int64x2_t a = vreinterpretq_s64_s32(vtrn1q_s32(x[0], x[1])), b = vreinterpretq_s64_s32(vtrn2q_s32(x[0], x[1]));
    const int64x2_t c = vreinterpretq_s64_s32(vtrn1q_s32(x[2], x[3])), d = vreinterpretq_s64_s32(vtrn2q_s32(x[2], x[3]));
    x[0] = vreinterpretq_s32_s64(vzip1q_s64(a, c)), x[1] = vreinterpretq_s32_s64(vzip1q_s64(b, d));
    x[2] = vreinterpretq_s32_s64(vzip2q_s64(a, c)), x[3] = vreinterpretq_s32_s64(vzip2q_s64(b, d));
  }

  static void channel_quads(const int8_t* rows, ptrdiff_t stride, I* y) {
    int8x16_t x[4], lo[4], hi[4];
    EDGEQKV_UNROLL
    for (int i = 0; i < 4; i++) x[i] = vld1q_s8(rows + i * stride);
    interleave(x, lo);
    EDGEQKV_UNROLL
    for (int i = 0; i < 4; i++) x[i] = vld1q_s8(rows + i * stride + 16);
    interleave(x, hi);
    EDGEQKV_UNROLL
    for (int k = 0; k < 4; k++) y[k] = {vreinterpretq_s32_s8(lo[k]), vreinterpretq_s32_s8(hi[k])};
  }

  static void pack_chunk(const int8_t* digits, int8_t* to) { std::memcpy(to, digits, kQueryBytes); }

  static I dot_quads(I sum, const I* y, const int8_t* query) {
    return {dot_by_lane(sum.lo, y[0].lo, y[1].lo, y[2].lo, y[3].lo, vld1q_s8(query)),
            dot_by_lane(sum.hi, y[0].hi, y[1].hi, y[2].hi, y[3].hi, vld1q_s8(query + 16))};
  }
  static int32x4_t dot_by_lane(int32x4_t sum, int32x4_t a, int32x4_t b, int32x4_t c, int32x4_t d, int8x16_t query) {
    sum = vdotq_laneq_s32(sum, vreinterpretq_s8_s32(a), query, 0);
    sum = vdotq_laneq_s32(sum, vreinterpretq_s8_s32(b), query, 1);
    sum = vdotq_laneq_s32(sum, vreinterpretq_s8_s32(c), query, 2);
    return vdotq_laneq_s32(sum, vreinterpretq_s8_s32(d), query, 3);
  }

  static I fold(const I* x) { return {vaddq_s32(x[0].lo, x[0].hi), vaddq_s32(x[1].lo, x[1].hi)}; }

  static I keys_to_channels(I y) {
    static const uint8_t order[16] = {0, 4, 8, 12, 1, 5, 9, 13, 2, 6, 10, 14, 3, 7, 11, 15};
    const uint8x16_t of = vld1q_u8(order);
    return {vreinterpretq_s32_s8(vqtbl1q_s8(vreinterpretq_s8_s32(y.lo), of)),
            vreinterpretq_s32_s8(vqtbl1q_s8(vreinterpretq_s8_s32(y.hi), of))};
  }

  static void channels(const I* x, F* y) {
    y[0] = to_float({x[0].lo, x[1].lo}), y[1] = to_float({x[2].lo, x[3].lo});
    y[2] = to_float({x[0].hi, x[1].hi}), y[3] = to_float({x[2].hi, x[3].hi});
  }

  static I round_digits(F x, int8_t* high, int8_t* low) {
    const I y = {vcvtnq_s32_f32(x.lo), vcvtnq_s32_f32(x.hi)};
    split(vcombine_s16(vmovn_s32(y.lo), vmovn_s32(y.hi)), high, low);
    return y;
  }
};

}  // namespace
}  // namespace edgeqkv
