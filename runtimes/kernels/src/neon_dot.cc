#include "neon_dot.h"

namespace edgeqkv {

const Path kNeonDotPath = path_over<NeonDot>();

}  // namespace edgeqkv
