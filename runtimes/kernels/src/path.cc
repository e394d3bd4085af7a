// Which path runs: what was compiled, what this CPU has, and what the environment asks for.
#include "path.h"

#include <cstdlib>
#include <cstring>

#include "cpu.h"

namespace edgeqkv {
namespace {

constexpr int kBestFirst[] = {EDGEQKV_ISA_AVX512,   EDGEQKV_ISA_AVXVNNI, EDGEQKV_ISA_AVX2,  EDGEQKV_ISA_NEON_I8MM,
                              EDGEQKV_ISA_NEON_DOT, EDGEQKV_ISA_NEON,    EDGEQKV_ISA_SCALAR};

bool runs_here(int isa) {
  // Asked once: under a hypervisor each CPUID costs microseconds.
  static const unsigned available = available_isas();
  return path_of(isa) && (available >> isa & 1u);
}

int automatic() {
  if (const char* name = std::getenv("EDGEQKV_ISA")) {
    for (int isa = EDGEQKV_ISA_SCALAR; isa < EDGEQKV_ISA_COUNT; isa++)
      if (!std::strcmp(name, edgeqkv_attention_isa_name(isa))) return runs_here(isa) ? isa : -1;
    return -1;
  }
  for (int isa : kBestFirst)
    if (runs_here(isa)) return isa;
  return -1;
}

}  // namespace

const Path* path_of(int isa) {
  switch (isa) {
    case EDGEQKV_ISA_SCALAR: return &kScalarPath;
#if defined(EDGEQKV_X86)
    case EDGEQKV_ISA_AVX2: return &kAvx2Path;
    case EDGEQKV_ISA_AVX512: return &kAvx512Path;
#if defined(EDGEQKV_AVXVNNI)
    case EDGEQKV_ISA_AVXVNNI: return &kAvxVnniPath;
#endif
#elif defined(EDGEQKV_ARM64)
    case EDGEQKV_ISA_NEON: return &kNeonPath;
    case EDGEQKV_ISA_NEON_DOT: return &kNeonDotPath;
    case EDGEQKV_ISA_NEON_I8MM: return &kNeonI8mmPath;
#endif
  }
  return nullptr;
}

int resolve_isa(int isa) {
  static const int best = automatic();
  return isa == EDGEQKV_ISA_AUTO ? best : runs_here(isa) ? isa : -1;
}

}  // namespace edgeqkv
