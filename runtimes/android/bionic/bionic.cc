// What objects compiled for glibc's headers, Debian's static C++ library and libgcc ask of glibc, in terms of bionic.
#include <cstdarg>
#include <cstddef>
#include <cstdint>
#include <cstdio>
#include <cstdlib>
#include <cstring>

extern "C" {

int* __errno();
char* __gnu_strerror_r(int, char*, size_t);
int __cxa_thread_atexit_impl(void (*)(void*), void*, void*);
int posix_memalign(void**, size_t, size_t);
int pthread_key_create(int*, void (*)(void*));
int pthread_once(int*, void (*)());
int pthread_setspecific(int, const void*);
void* pthread_getspecific(int);
int bionic_vsscanf(const char*, const char*, va_list) __asm__("vsscanf");  // glibc's header renames it
unsigned long getauxval(unsigned long);
long __real_sysconf(int);

int* __errno_location() { return __errno(); }
int __cxa_thread_atexit(void (*f)(void*), void* o, void* d) { return __cxa_thread_atexit_impl(f, o, d); }
unsigned long __getauxval(unsigned long type) { return getauxval(type); }
int __pthread_key_create(int* key, void (*f)(void*)) { return pthread_key_create(key, f); }  // libgcc: are there threads?

// By glibc's numbers _SC_PAGESIZE and _SC_NPROCESSORS_ONLN.
long __wrap_sysconf(int name) { return __real_sysconf(name == 30 ? 39 : name == 84 ? 97 : name); }

// glibc's own strerror_r returns a text, POSIX's and bionic's a number.
char* __wrap_strerror_r(int error, char* buffer, size_t size) { return __gnu_strerror_r(error, buffer, size); }

// Not in bionic of API 24.
void* aligned_alloc(size_t alignment, size_t size) {
  void* memory = nullptr;
  return posix_memalign(&memory, alignment < sizeof memory ? sizeof memory : alignment, size) ? nullptr : memory;
}
int bcmp(const void* a, const void* b, size_t size) { return memcmp(a, b, size); }

// What glibc's headers make of common functions.
int __vfprintf_chk(FILE* file, int, const char* format, va_list list) { return vfprintf(file, format, list); }
int __fprintf_chk(FILE* file, int, const char* format, ...) {
  va_list list;
  va_start(list, format);
  const int n = vfprintf(file, format, list);
  va_end(list);
  return n;
}
int __isoc99_sscanf(const char* text, const char* format, ...) {
  va_list list;
  va_start(list, format);
  const int n = bionic_vsscanf(text, format, list);
  va_end(list);
  return n;
}
[[noreturn]] void __assert_fail(const char*, const char*, unsigned, const char*) { abort(); }

// The exceptions of each thread. libc++abi's own are ELF TLS.
static int once, exceptions;
void* __cxa_get_globals_fast() {
  pthread_once(&once, [] {
    if (pthread_key_create(&exceptions, free)) abort();
  });
  return pthread_getspecific(exceptions);
}
void* __cxa_get_globals() {
  void* globals = __cxa_get_globals_fast();
  if (!globals) {
    globals = calloc(2, sizeof(void*));
    if (!globals) abort();
    pthread_setspecific(exceptions, globals);
  }
  return globals;
}

}  // extern "C"
