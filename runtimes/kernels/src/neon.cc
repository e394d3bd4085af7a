// NEON as every aarch64 CPU has it.
#include "neon.h"

namespace edgeqkv {
namespace {

struct Neon : NeonBase {
  static constexpr bool kIntegerDot = false;
};

}  // namespace

const Path kNeonPath = {append<Neon>, attend<Neon>, scratch_floats<Neon>};

}  // namespace edgeqkv
