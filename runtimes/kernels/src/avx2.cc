// AVX2 with FMA and F16C.
#include "avx2.h"

namespace edgeqkv {
namespace {

struct Avx2 : Avx2Base {
  // Tiles of VPMADDWD and its addition were 5 % slower than floats on Zen 1.
  static constexpr bool kIntegerTile = false, kKeyQuads = false, kTwoTensorsByRow = true;
  static constexpr float kFloatProduct = 1;
};

}  // namespace

const Path kAvx2Path = path_over<Avx2>();

}  // namespace edgeqkv
