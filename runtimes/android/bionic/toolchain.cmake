# arm64 Android (API 24) without an NDK. EDGEQKV_BIONIC is the folder that build.sh has prepared: README.md says what is in it.
#
# Objects are compiled for Debian's aarch64 headers, whose types are bionic's where we use them, and linked as Android's.
set(CMAKE_SYSTEM_NAME Linux)  # not Android, for which CMake looks for an NDK
set(CMAKE_SYSTEM_PROCESSOR aarch64)
set(CMAKE_C_COMPILER clang-19)
set(CMAKE_CXX_COMPILER clang++-19)
set(CMAKE_TRY_COMPILE_TARGET_TYPE STATIC_LIBRARY)
set(CMAKE_TRY_COMPILE_PLATFORM_VARIABLES EDGEQKV_BIONIC)
set(CMAKE_FIND_ROOT_PATH ${EDGEQKV_BIONIC}/sysroot)

set(llvm ${EDGEQKV_BIONIC}/sysroot/usr/lib/llvm-19)
# Android has ELF TLS from 10 on; outline atomics ask glibc for the processor's features.
set(CMAKE_CXX_FLAGS_INIT "--target=aarch64-linux-gnu -nostdinc++ -isystem \"${llvm}/include/c++/v1\" -fPIC -femulated-tls \
-mno-outline-atomics -ffunction-sections -fdata-sections -U_FORTIFY_SOURCE")
set(link "--target=aarch64-linux-android24 -nostdlib -fuse-ld=lld-19 -Wno-unused-command-line-argument -Wl,-z,defs \
-Wl,--error-limit=0 -Wl,-z,now -Wl,-z,relro -Wl,-z,text -Wl,-z,max-page-size=16384 -Wl,--gc-sections -Wl,--build-id \
-Wl,--strip-all -Wl,--no-dependent-libraries -Wl,--wrap=sysconf -Wl,--wrap=strerror_r -Wl,--exclude-libs,ALL \
-L\"${EDGEQKV_BIONIC}/stubs\" \"${EDGEQKV_BIONIC}/objects/bionic.o\"")
set(CMAKE_SHARED_LINKER_FLAGS_INIT "${link} \"${EDGEQKV_BIONIC}/objects/shared.o\"")
set(CMAKE_MODULE_LINKER_FLAGS_INIT "${CMAKE_SHARED_LINKER_FLAGS_INIT}")
set(CMAKE_EXE_LINKER_FLAGS_INIT "${link} \"${EDGEQKV_BIONIC}/objects/program.o\"")
set(CMAKE_CXX_STANDARD_LIBRARIES_INIT "\"${llvm}/lib/libc++.a\" \"${llvm}/lib/libc++abi.a\" \"${llvm}/lib/libunwind.a\" \
\"${EDGEQKV_BIONIC}/libgcc.a\" \"${EDGEQKV_BIONIC}/libgcc_eh.a\" -lc -lm -ldl")
