# Compiles for EDGEQKV_PLATFORM (manylinux_2_28_aarch64: glibc 2.28 or newer), whatever glibc is here. EDGEQKV_ZIG is the program zig, of
# the package ziglang: clang, and stubs of each glibc to link against. The C++ library is GCC's, as in ONNX Runtime's and ExecuTorch's
# wheels: ExecuTorch passes its types. Its headers come from Debian's g++ for that machine; what they ask of a newer system than the
# wheel's is in older/. wheels.py uses this.
set(CMAKE_TRY_COMPILE_PLATFORM_VARIABLES EDGEQKV_ZIG EDGEQKV_PLATFORM)
if(NOT EDGEQKV_PLATFORM MATCHES "^manylinux_([0-9]+)_([0-9]+)_(.+)$")
  message(FATAL_ERROR "EDGEQKV_PLATFORM '${EDGEQKV_PLATFORM}' is not manylinux_MAJOR_MINOR_MACHINE")
endif()
set(glibc ${CMAKE_MATCH_1}.${CMAKE_MATCH_2})
set(machine ${CMAKE_MATCH_3})
set(CMAKE_SYSTEM_NAME Linux)
set(CMAKE_SYSTEM_PROCESSOR ${machine})

set(gcc ${machine}-linux-gnu-g++)
execute_process(COMMAND ${gcc} -E -v -x c++ /dev/null OUTPUT_QUIET ERROR_VARIABLE said)
string(REGEX MATCHALL "\n [^\n]+/c\\+\\+/[^\n]+" folders "${said}")
set(libraries)
set(includes "-I\"${CMAKE_CURRENT_LIST_DIR}/older\"")
foreach(folder IN LISTS folders)
  string(STRIP "${folder}" folder)
  string(APPEND includes " -I\"${folder}\"")
endforeach()
foreach(library libstdc++.so libgcc_s.so.1)
  execute_process(COMMAND ${gcc} -print-file-name=${library} OUTPUT_VARIABLE path OUTPUT_STRIP_TRAILING_WHITESPACE)
  string(APPEND libraries " \"${path}\"")
endforeach()

set(CMAKE_CXX_COMPILER ${EDGEQKV_ZIG} c++ -target ${machine}-linux-gnu.${glibc} -nostdinc++ -nostdlib++)
set(CMAKE_CXX_FLAGS_INIT "${includes} -include \"${CMAKE_CURRENT_LIST_DIR}/older/libstdcxx.h\"")
set(CMAKE_CXX_STANDARD_LIBRARIES_INIT "${libraries}")
set(EDGEQKV_DOT_PRODUCT -mcpu=generic+v8_2a+dotprod)
# Stripped (-s) here, because Debian's strip knows this machine alone. So does its ar, which is why zig archives too. Debian's libraries
# ask for a newer glibc than the stubs', those on the wheel's system do not.
foreach(kind SHARED MODULE EXE)
  set(CMAKE_${kind}_LINKER_FLAGS_INIT "-s -Wl,--allow-shlib-undefined")
endforeach()
set(CMAKE_CXX_ARCHIVE_CREATE "\"${EDGEQKV_ZIG}\" ar qc <TARGET> <OBJECTS>")
set(CMAKE_CXX_ARCHIVE_APPEND "\"${EDGEQKV_ZIG}\" ar q <TARGET> <OBJECTS>")
set(CMAKE_CXX_ARCHIVE_FINISH "\"${EDGEQKV_ZIG}\" ranlib <TARGET>")
