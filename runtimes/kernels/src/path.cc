// Which path runs: what was compiled, and what this CPU has.
#include "path.h"

#include "cpu.h"

namespace edgeqkv {

const Path* path_of(int isa) {
  switch (isa) {
    case EDGEQKV_ISA_SCALAR: return &kScalarPath;
#if defined(EDGEQKV_X86)
    case EDGEQKV_ISA_AVX2: return &kAvx2Path;
    case EDGEQKV_ISA_AVX512: return &kAvx512Path;
#elif defined(EDGEQKV_ARM64)
    case EDGEQKV_ISA_NEON: return &kNeonPath;
    case EDGEQKV_ISA_NEON_DOT: return &kNeonDotPath;
#endif
  }
  return nullptr;
}

int resolve_isa(int isa) {
  // Asked once: under a hypervisor each CPUID costs microseconds.
  static const unsigned available = available_isas();
  if (isa == EDGEQKV_ISA_AUTO)
    for (isa = EDGEQKV_ISA_NEON_DOT; !(available >> isa & 1u);) isa--;  // later is better
  return path_of(isa) && (available >> isa & 1u) ? isa : -1;
}

}  // namespace edgeqkv
