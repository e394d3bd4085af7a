// The beginning of a program, as the NDK's crtbegin_dynamic.o.
extern "C" {

[[noreturn]] void __libc_init(void* raw, void (*)(), int (*)(int, char**), const void* structors);
int main(int, char**);
__attribute__((visibility("hidden"))) void* __dso_handle = nullptr;

// The linker has run the constructors; no list of others follows, neither where bionic's structure holds three pointers nor
// where it holds lengths too.
__attribute__((used, visibility("hidden"))) void edgeqkv_start(void* raw) {
  static void* const structors[8] = {};
  __libc_init(raw, nullptr, main, structors);
}

__asm__(
    ".globl _start\n"
    ".type _start, %function\n"
    "_start:\n"
    "  mov x29, #0\n"
    "  mov x30, #0\n"
    "  mov x0, sp\n"
    "  b edgeqkv_start\n");
}
