#include "cpu.h"

#if defined(EDGEQKV_X86)
#include <cpuid.h>
#elif defined(EDGEQKV_ARM64) && defined(__APPLE__)
#include <sys/sysctl.h>
#elif defined(EDGEQKV_ARM64)
#include <sys/auxv.h>
#endif

namespace edgeqkv {
namespace {

#if defined(EDGEQKV_X86)

// __builtin_cpu_supports also asks the operating system whether it saves the registers. Not every compiler lets it name F16C.
bool has_avx2() {
  unsigned a, b, c = 0, d;
  bool f16c = __get_cpuid(1, &a, &b, &c, &d) && (c & (1u << 29));
  return f16c && __builtin_cpu_supports("avx2") && __builtin_cpu_supports("fma");
}

bool has_avx512() {
  return has_avx2() && __builtin_cpu_supports("avx512f") && __builtin_cpu_supports("avx512bw") &&
         __builtin_cpu_supports("avx512dq") && __builtin_cpu_supports("avx512vl") && __builtin_cpu_supports("avx512vnni");
}

bool has_avx_vnni() {
#if defined(EDGEQKV_AVXVNNI_AS_AVX512)
  return has_avx512();
#else
  unsigned a = 0, b, c, d;
  return has_avx2() && __get_cpuid_count(7, 1, &a, &b, &c, &d) && (a & (1u << 4));
#endif
}

#elif defined(EDGEQKV_ARM64) && defined(__APPLE__)

bool has(const char* feature) {
  int value = 0;
  size_t size = sizeof value;
  return sysctlbyname(feature, &value, &size, nullptr, 0) == 0 && value == 1;
}
bool has_dot() { return has("hw.optional.arm.FEAT_DotProd"); }
bool has_i8mm() { return has_dot() && has("hw.optional.arm.FEAT_I8MM"); }

#elif defined(EDGEQKV_ARM64)

bool has_dot() { return getauxval(AT_HWCAP) & (1ul << 20); }                   // HWCAP_ASIMDDP, which old kernel headers lack
bool has_i8mm() { return has_dot() && (getauxval(AT_HWCAP2) & (1ul << 13)); }  // HWCAP2_I8MM

#endif

}  // namespace

unsigned available_isas() {
  unsigned isas = 1u << EDGEQKV_ISA_SCALAR;
#if defined(EDGEQKV_X86)
  if (has_avx2()) isas |= 1u << EDGEQKV_ISA_AVX2;
  if (has_avx_vnni()) isas |= 1u << EDGEQKV_ISA_AVXVNNI;
  if (has_avx512()) isas |= 1u << EDGEQKV_ISA_AVX512;
#elif defined(EDGEQKV_ARM64)
  isas |= 1u << EDGEQKV_ISA_NEON;
  if (has_dot()) isas |= 1u << EDGEQKV_ISA_NEON_DOT;
  if (has_i8mm()) isas |= 1u << EDGEQKV_ISA_NEON_I8MM;
#endif
  return isas;
}

}  // namespace edgeqkv
