// Names the paths that the tests run here, so that a machine without an instruction set does not silently test nothing: each
// path that the CPU's own flags promise has to be among them, and each of them has to run and be what AUTO may choose.
#include <cstdlib>
#include <sstream>

#include "problem.h"

#if defined(__linux__) && defined(__aarch64__)
#include <sys/auxv.h>
#endif

namespace {

// What the operating system says, which src/cpu.cc does not read: /proc/cpuinfo on x86. Under qemu-user that file is the host's,
// so that on aarch64 it is the auxiliary vector.
std::vector<int> promised() {
  std::vector<int> list = {EDGEQKV_ISA_SCALAR};
#if defined(__linux__) && defined(__x86_64__)
  std::string flags = " ", word;
  if (FILE* file = std::fopen("/proc/cpuinfo", "r")) {
    char line[8192];
    while (std::fgets(line, sizeof line, file))
      if (!std::strncmp(line, "flags", 5)) flags = std::strchr(line, ':') + 1;
    std::fclose(file);
  }
  auto has = [&](const char* names) {
    std::istringstream wanted(names);
    bool all = true;
    while (wanted >> word) {
      std::istringstream have(flags);
      bool found = false;
      for (std::string flag; have >> flag;) found = found || flag == word;
      all = all && found;
    }
    return all;
  };
  if (has("avx2 fma f16c")) list.push_back(EDGEQKV_ISA_AVX2);
#if defined(EDGEQKV_AVXVNNI) && !defined(EDGEQKV_AVXVNNI_AS_AVX512)
  if (has("avx2 fma f16c avx_vnni")) list.push_back(EDGEQKV_ISA_AVXVNNI);
#elif defined(EDGEQKV_AVXVNNI)
  if (has("avx512vl avx512_vnni")) list.push_back(EDGEQKV_ISA_AVXVNNI);
#endif
  if (has("avx2 fma f16c avx512f avx512bw avx512dq avx512vl avx512_vnni")) list.push_back(EDGEQKV_ISA_AVX512);
#elif defined(__aarch64__)
  list.push_back(EDGEQKV_ISA_NEON);
#if defined(__linux__)
  if (getauxval(AT_HWCAP) & (1ul << 20)) list.push_back(EDGEQKV_ISA_NEON_DOT);
  if (getauxval(AT_HWCAP2) & (1ul << 13)) list.push_back(EDGEQKV_ISA_NEON_I8MM);
#endif
#endif
  return list;
}

}  // namespace

int main() {
  for (int isa : promised()) {
    Result r = run(random_problem(4, 2, 32, 10, 3, 2, EDGEQKV_INT8, false, 1), isa);
    CHECK(r.error == EDGEQKV_OK, "%s: error %d", edgeqkv_attention_isa_name(isa), r.error);
  }
  for (int isa = EDGEQKV_ISA_SCALAR; isa < EDGEQKV_ISA_COUNT; isa++) {
    bool runs = edgeqkv_attention_isa(isa) == isa;
    std::printf("%-9s %s\n", edgeqkv_attention_isa_name(isa), runs ? "tested here" : "not on this machine: NOT tested");
  }
  // Each of them is better than those before it, and AUTO is the best, unless the environment says otherwise.
  int best = EDGEQKV_ISA_SCALAR;
  for (int isa : {EDGEQKV_ISA_AVX2, EDGEQKV_ISA_AVXVNNI, EDGEQKV_ISA_AVX512, EDGEQKV_ISA_NEON, EDGEQKV_ISA_NEON_DOT,
                  EDGEQKV_ISA_NEON_I8MM})
    if (edgeqkv_attention_isa(isa) == isa) best = isa;
  int automatic = edgeqkv_attention_isa(EDGEQKV_ISA_AUTO);
  const char *forced = std::getenv("EDGEQKV_ISA"), *name = edgeqkv_attention_isa_name(automatic);
  std::printf("auto      %s\n", name);
  CHECK(forced ? automatic < 0 || !std::strcmp(forced, name) : automatic == best, "AUTO is %s", name);
  // EDGEQKV_EXPECT_PATH names a path that must be among them: a continuous build knows its machine.
  if (const char* name = std::getenv("EDGEQKV_EXPECT_PATH")) {
    bool found = false;
    for (int isa : paths()) found = found || !std::strcmp(name, edgeqkv_attention_isa_name(isa));
    CHECK(found, "path %s was to be tested", name);
  }
  return finish("paths");
}
