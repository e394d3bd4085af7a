// NEON as every aarch64 CPU has it, int8 sums in 16-bit integers.
#include "neon.h"

namespace edgeqkv {
namespace {

struct Neon : NeonBase {
  static constexpr bool kIntegerTile = false, kKeyQuads = false, kTwoTensorsByRow = true;
  static constexpr float kFloatProduct = 1;

  static void pack(const int16_t* q, int dim, float* packed) { std::memcpy(packed, q, size_t(dim) * 2); }

  // The 32-bit sums hold: 32512 * 127 * 512 < 2^31.
  static F dot_rows(const float* packed, const int8_t* k, ptrdiff_t stride, int dim) {
    const int16_t* q = reinterpret_cast<const int16_t*>(packed);
    int32x4_t acc[W];
    EDGEQKV_UNROLL
    for (int i = 0; i < W; i++) acc[i] = vdupq_n_s32(0);
    int d = 0;
    for (; d + 16 <= dim; d += 16) {
      int16x8_t lo = vld1q_s16(q + d), hi = vld1q_s16(q + d + 8);
      EDGEQKV_UNROLL
      for (int i = 0; i < W; i++) {
        int8x16_t x = vld1q_s8(k + i * stride + d);
        acc[i] = multiply_add(multiply_add(acc[i], vmovl_s8(vget_low_s8(x)), lo), vmovl_high_s8(x), hi);
      }
    }
    if (d < dim) {  // 8 left
      int16x8_t x = vld1q_s16(q + d);
      EDGEQKV_UNROLL
      for (int i = 0; i < W; i++) acc[i] = multiply_add(acc[i], vmovl_s8(vld1_s8(k + i * stride + d)), x);
    }
    return {sums4(acc), sums4(acc + 4)};
  }

  static int32x4_t multiply_add(int32x4_t acc, int16x8_t x, int16x8_t y) {
    return vmlal_high_s16(vmlal_s16(acc, vget_low_s16(x), vget_low_s16(y)), x, y);
  }

  static float32x4_t sums4(const int32x4_t* x) {
    return vpaddq_f32(vcvtq_f32_s32(vpaddq_s32(x[0], x[1])), vcvtq_f32_s32(vpaddq_s32(x[2], x[3])));
  }

  using PackedWeights = WordWeights;
  static void pack_weights(const float* weight, int n, PackedWeights& packed) { round_weights<Neon>(weight, n, packed); }

  static void add_values(const int8_t* v, ptrdiff_t stride, const PackedWeights& packed, int n, int dim, float* acc) {
    int d = 0;
    for (; d + 64 <= dim; d += 64) add_columns<8>(v + d, stride, packed, n, acc + d);
    for (; d < dim; d += 8) add_columns<1>(v + d, stride, packed, n, acc + d);
  }

  // acc[0 .. 8 C) += sum_j weight[j] * v[j]. The 32-bit sums hold: 64 rows * 32512 * 127 < 2^31.
  template <int C>
  static void add_columns(const int8_t* v, ptrdiff_t stride, const PackedWeights& packed, int n, float* acc) {
    int32x4_t sum[2 * C];
    EDGEQKV_UNROLL
    for (int c = 0; c < 2 * C; c++) sum[c] = vdupq_n_s32(0);
    for (int j = 0; j < n; j++, v += stride) {
      int16x8_t w = vdupq_n_s16(packed.word[j]);
      EDGEQKV_UNROLL
      for (int c = 0; c < C; c++) {
        int16x8_t x = vmovl_s8(vld1_s8(v + 8 * c));
        sum[2 * c] = vmlal_s16(sum[2 * c], vget_low_s16(x), vget_low_s16(w));
        sum[2 * c + 1] = vmlal_high_s16(sum[2 * c + 1], x, w);
      }
    }
    EDGEQKV_UNROLL
    for (int c = 0; c < 2 * C; c++) add_integers(sum[c], packed.unit, acc + 4 * c);
  }
};

}  // namespace

const Path kNeonPath = path_over<Neon>();

}  // namespace edgeqkv
