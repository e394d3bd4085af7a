// NEON with the dot product and the ARMv8.6 matrix products of int8: SMMLA multiplies two rows of eight bytes by two, twice as
// many products as SDOT's. In tiles, x is laid out in pairs of lanes by eight bytes, where SDOT has lanes by four.
#include "neon_dot.h"

namespace edgeqkv {
namespace {

struct NeonI8mm : NeonDot {
  static constexpr int kStep = 8;

  // Lane `row` of group `group` in x.
  static int place(int group, int row) { return group / 2 * 2 * W + row / 2 * 4 + row % 2 * 2 + group % 2; }

  // The product of integer.h. Rows a and a + 1 of y are the left factor: of a key, whose groups are side by side, or of weights,
  // where rows are.
  template <int A, int B>
  static void multiply(Lanes x, Groups y, int n, I (&sum)[A][B]) {
    if (y.step == 1)
      multiply_pairs<A, B>(x, y, n, sum, [&](const char* at, int a) {
        const int8_t* row = reinterpret_cast<const int8_t*>(at) + kGroup * a * y.row;
        return vcombine_s8(vld1_s8(row), vld1_s8(a + 1 < A ? row + kGroup * y.row : row));
      });
    else
      multiply_pairs<A, B>(x, y, n, sum, [&](const char* at, int a) {
        const int32_t* group = reinterpret_cast<const int32_t*>(at) + a;
        if constexpr (A == 1)
          return vreinterpretq_s8_s32(vzip1q_s32(vld1q_dup_s32(group), vld1q_dup_s32(group + y.step)));
        else
          return vreinterpretq_s8_s32(
              vzip1q_s32(vcombine_s32(vld1_s32(group), vdup_n_s32(0)), vcombine_s32(vld1_s32(group + y.step), vdup_n_s32(0))));
      });
  }

  template <int A, int B, class Pair>
  static void multiply_pairs(Lanes x, Groups y, int n, I (&sum)[A][B], Pair pair) {
    constexpr int P = (A + 1) / 2;
    int32x4_t c[P][4 * B];  // of two rows of y and two lanes of x: y0 x0, y0 x1, y1 x0, y1 x1
    EDGEQKV_UNROLL
    for (int p = 0; p < P; p++) EDGEQKV_UNROLL
    for (int i = 0; i < 4 * B; i++) c[p][i] = vdupq_n_s32(0);
    for (int digit = 0; digit < 2; digit++) {
      if (digit > 0) EDGEQKV_UNROLL
      for (int p = 0; p < P; p++) EDGEQKV_UNROLL
      for (int i = 0; i < 4 * B; i++) c[p][i] = vshlq_n_s32(c[p][i], 8);
      const int8_t* xd = reinterpret_cast<const int8_t*>(x.x + digit * x.digit);
      const char* yd = static_cast<const char*>(y.y) + kGroup * digit * y.digit;
      for (int g = 0; g < n; g += 2, xd += 2 * kGroup * x.step, yd += 2 * kGroup * y.step) {
        int8x16_t rows[P];
        EDGEQKV_UNROLL
        for (int p = 0; p < P; p++) rows[p] = pair(yd, 2 * p);
        EDGEQKV_UNROLL
        for (int i = 0; i < 4 * B; i++) {
          const int8x16_t lanes = vld1q_s8(xd + i / 4 * kGroup * x.vec + i % 4 * 16);
          EDGEQKV_UNROLL
          for (int p = 0; p < P; p++) c[p][i] = vmmlaq_s32(c[p][i], rows[p], lanes);
        }
      }
    }
    EDGEQKV_UNROLL
    for (int a = 0; a < A; a++) EDGEQKV_UNROLL
    for (int b = 0; b < B; b++) {
      const int32x4_t* of = c[a / 2] + 4 * b;
      sum[a][b] = {half(of[0], of[1], a % 2), half(of[2], of[3], a % 2)};
    }
  }
  static int32x4_t half(int32x4_t a, int32x4_t b, int which) {
    const int64x2_t x = vreinterpretq_s64_s32(a), y = vreinterpretq_s64_s32(b);
    return vreinterpretq_s32_s64(which ? vzip2q_s64(x, y) : vzip1q_s64(x, y));
  }

  // Pairs of channels by eight cached rows.
  template <int B>
  static void interleave(const int8_t* v, ptrdiff_t stride, int n, int32_t* to) {
    for (int j = 0; j < n; j += 8, to += 2 * W) {
      int8x16_t y[2][4];
      EDGEQKV_UNROLL
      for (int half = 0; half < 2; half++) {
        int8x16_t x[4];
        EDGEQKV_UNROLL
        for (int i = 0; i < 4; i++) {
          const int k = j + 4 * half + i;
          const int8_t* row = v + (k < n ? k : n - 1) * stride;
          x[i] = B == 2 ? vld1q_s8(row) : vcombine_s8(vld1_s8(row), vdup_n_s8(0));
        }
        NeonDot::interleave(x, y[half]);
      }
      EDGEQKV_UNROLL
      for (int i = 0; i < 2 * B; i++) {
        const int32x4_t first = vreinterpretq_s32_s8(y[0][i]), second = vreinterpretq_s32_s8(y[1][i]);
        int32_t* at = to + i / 2 * kBlockGroups * W + i % 2 * 8;
        vst1q_s32(at, vzip1q_s32(first, second));
        vst1q_s32(at + 4, vzip2q_s32(first, second));
      }
    }
  }
};

}  // namespace

const Path kNeonI8mmPath = path_over<NeonI8mm>();

}  // namespace edgeqkv
