// glibc under bionic's names: with this as libc.so, libm.so and libdl.so, glibc's dynamic linker runs what was linked for
// Android. FUNCTIONS, a header that the test makes of runtimes/android/bionic/names.txt, says F(library, name) for each
// function.
#include <stdint.h>
#include <stdlib.h>

// What is asked of glibc itself: by version, since the bare names are ours below.
#define GLIBC(version, type, name) \
  extern type glibc_##name;        \
  __asm__(".symver glibc_" #name ", " #name "@GLIBC_" #version)
GLIBC(2.17, void*, stdout);
GLIBC(2.17, void*, stderr);
#undef GLIBC
#define GLIBC(version, type, name, arguments) \
  extern type glibc_##name arguments;         \
  __asm__(".symver glibc_" #name ", " #name "@GLIBC_" #version)
GLIBC(2.34, void*, dlopen, (const char*, int));
GLIBC(2.34, void*, dlsym, (void*, const char*));
GLIBC(2.17, long, sysconf, (int));
GLIBC(2.17, char*, strerror_r, (int, char*, size_t));
GLIBC(2.17, int*, __errno_location, (void));

// A jump to glibc's function of that name, whatever its arguments are.
#define F(library, name)                                                             \
  static void* to_##name;                                                            \
  __attribute__((naked, visibility("default"))) void bionic_##name(void) {           \
    __asm__("adrp x16, to_" #name "\n ldr x16, [x16, :lo12:to_" #name "]\n br x16"); \
  }                                                                                  \
  __asm__(".symver bionic_" #name ", " #name "@@LIBC");
#include FUNCTIONS
#undef F

#define BIONIC(type, name)                              \
  __asm__(".symver bionic_" #name ", " #name "@@LIBC"); \
  __attribute__((visibility("default"))) type bionic_##name
BIONIC(void*, stdout);
BIONIC(void*, stderr);
BIONIC(uintptr_t, __stack_chk_guard) = 0x5ca1ab1e0ddba110;
BIONIC(int*, __errno)(void) { return glibc___errno_location(); }
BIONIC(char*, __gnu_strerror_r)(int error, char* text, size_t size) { return glibc_strerror_r(error, text, size); }

// bionic's numbers of the two that ours asks for.
BIONIC(long, sysconf)(int name) {
  if (name != 39 && name != 97) __builtin_trap();
  return glibc_sysconf(name == 39 ? 30 : 84);
}

// The linker has run constructors; what is left is main, whose arguments lie where the kernel put them.
BIONIC(void, __libc_init)(void* raw, void (*at_exit)(void), int (*slingshot)(int, char**, char**), void* const* structors) {
  (void)at_exit;
  for (int i = 0; i < 6; i++)
    if (structors[i]) __builtin_trap();
  const int count = (int)*(long*)raw;
  char** arguments = (char**)raw + 1;
  exit(slingshot(count, arguments, arguments + count + 1));
}

__attribute__((constructor)) static void find(void) {
  bionic_stdout = glibc_stdout;
  bionic_stderr = glibc_stderr;
#define F(library, name) \
  if (!(to_##name = glibc_dlsym(glibc_dlopen(library, 2), #name))) __builtin_trap();
#include FUNCTIONS
}
