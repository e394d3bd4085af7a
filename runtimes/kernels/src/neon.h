// NEON: two registers make one vector of 8 floats, so that every head_dim is whole vectors and int8 loads are 8 bytes.
#pragma once

#include <arm_neon.h>

#include "kernel.h"

namespace edgeqkv {
namespace {

struct NeonBase {
  struct F {
    float32x4_t lo, hi;
  };
  static constexpr int W = 8, kRows = 8, kAccRows = 4, kAccVecs = 2;

  static F load(const float* p) { return {vld1q_f32(p), vld1q_f32(p + 4)}; }
  static F load(const uint16_t* p) {
    float16x8_t h = vreinterpretq_f16_u16(vld1q_u16(p));
    return {vcvt_f32_f16(vget_low_f16(h)), vcvt_high_f32_f16(h)};
  }
  static F load(const int8_t* p) {
    int16x8_t h = vmovl_s8(vld1_s8(p));
    return {vcvtq_f32_s32(vmovl_s16(vget_low_s16(h))), vcvtq_f32_s32(vmovl_high_s16(h))};
  }
  static void store(float* p, F x) {
    vst1q_f32(p, x.lo);
    vst1q_f32(p + 4, x.hi);
  }
  static void store_fp16(uint16_t* p, F x) { vst1q_u16(p, vreinterpretq_u16_f16(vcvt_high_f16_f32(vcvt_f16_f32(x.lo), x.hi))); }
  static F set1(float x) { return {vdupq_n_f32(x), vdupq_n_f32(x)}; }
  static F add(F a, F b) { return {vaddq_f32(a.lo, b.lo), vaddq_f32(a.hi, b.hi)}; }
  static F sub(F a, F b) { return {vsubq_f32(a.lo, b.lo), vsubq_f32(a.hi, b.hi)}; }
  static F mul(F a, F b) { return {vmulq_f32(a.lo, b.lo), vmulq_f32(a.hi, b.hi)}; }
  static F div(F a, F b) { return {vdivq_f32(a.lo, b.lo), vdivq_f32(a.hi, b.hi)}; }
  static F fma(F a, F b, F c) { return {vfmaq_f32(c.lo, a.lo, b.lo), vfmaq_f32(c.hi, a.hi, b.hi)}; }
  // FMAXNM returns the other one in place of a NaN, FMAX the NaN.
  static F max(F a, F b) { return {vmaxnmq_f32(a.lo, b.lo), vmaxnmq_f32(a.hi, b.hi)}; }
  static F at_least(F x, F low) { return {vmaxq_f32(x.lo, low.lo), vmaxq_f32(x.hi, low.hi)}; }
  static F abs(F a) { return {vabsq_f32(a.lo), vabsq_f32(a.hi)}; }
  static F round(F a) { return {vrndnq_f32(a.lo), vrndnq_f32(a.hi)}; }
  static float32x4_t pow2(float32x4_t n) {
    return vreinterpretq_f32_s32(vshlq_n_s32(vaddq_s32(vcvtq_s32_f32(n), vdupq_n_s32(127)), 23));
  }
  static F pow2(F n) { return {pow2(n.lo), pow2(n.hi)}; }
  static void store_words(int16_t* p, F x) {
    vst1q_s16(p, vqmovn_high_s32(vqmovn_s32(vcvtnq_s32_f32(x.lo)), vcvtnq_s32_f32(x.hi)));
  }
  // acc[0 .. 4) += unit * x
  static void add_integers(int32x4_t x, float unit, float* acc) {
    vst1q_f32(acc, vfmaq_n_f32(vld1q_f32(acc), vcvtq_f32_s32(x), unit));
  }
  static float32x4_t sums4(const F* x) {
    float32x4_t ab = vpaddq_f32(vaddq_f32(x[0].lo, x[0].hi), vaddq_f32(x[1].lo, x[1].hi));
    float32x4_t cd = vpaddq_f32(vaddq_f32(x[2].lo, x[2].hi), vaddq_f32(x[3].lo, x[3].hi));
    return vpaddq_f32(ab, cd);
  }
  static F sums(const F* x) { return {sums4(x), sums4(x + 4)}; }
};

}  // namespace
}  // namespace edgeqkv
