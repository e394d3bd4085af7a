// The beginning of a shared library, as the NDK's crtbegin_so.o: what it registered to run at the end, runs when it is
// unloaded.
extern "C" {
int __cxa_finalize(void*);
__attribute__((visibility("hidden"))) void* __dso_handle = &__dso_handle;
__attribute__((destructor, used)) static void unload() { __cxa_finalize(&__dso_handle); }
}
