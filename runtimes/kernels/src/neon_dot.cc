// NEON with the ARMv8.2 dot product of int8: a 16-bit query is two 8-bit halves.
#include "neon.h"

namespace edgeqkv {
namespace {

struct NeonDot : NeonBase {
  static constexpr bool kIntegerDot = true;

  // Integer d of the query as 256 * high + low, high within -127 .. 127: all highs, then all lows.
  static void pack(float* packed, int dim, int d, int value) {
    int high = (value + 128) >> 8;
    int8_t* q = reinterpret_cast<int8_t*>(packed);
    q[d] = int8_t(high);
    q[dim + d] = int8_t(value - 256 * high);
  }

  static F dot_rows(const float* packed, const int8_t* k, int dim) {
    const int8_t *high = reinterpret_cast<const int8_t*>(packed), *low = high + dim;
    int32x4_t h[W], l[W];
    EDGEQKV_UNROLL
    for (int i = 0; i < W; i++) h[i] = l[i] = vdupq_n_s32(0);
    int d = 0;
    for (; d + 16 <= dim; d += 16) {
      int8x16_t qh = vld1q_s8(high + d), ql = vld1q_s8(low + d);
      EDGEQKV_UNROLL
      for (int i = 0; i < W; i++) {
        int8x16_t x = vld1q_s8(k + ptrdiff_t(i) * dim + d);
        h[i] = vdotq_s32(h[i], qh, x);
        l[i] = vdotq_s32(l[i], ql, x);
      }
    }
    if (d < dim) {  // 8 left
      int8x8_t zero = vdup_n_s8(0);
      int8x16_t qh = vcombine_s8(vld1_s8(high + d), zero), ql = vcombine_s8(vld1_s8(low + d), zero);
      EDGEQKV_UNROLL
      for (int i = 0; i < W; i++) {
        int8x16_t x = vcombine_s8(vld1_s8(k + ptrdiff_t(i) * dim + d), zero);
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
};

}  // namespace

const Path kNeonDotPath = {append<NeonDot>, attend<NeonDot>, scratch_floats<NeonDot>};

}  // namespace edgeqkv
