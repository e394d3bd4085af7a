#!/bin/sh
# sh runtimes/android/bionic/build.sh BUILD: in BUILD, what an APK and `edgeqkv bench` carry to arm64 Android, without an NDK.
#   lib/arm64-v8a/libedgeqkv_jni.so, libonnxruntime.so
#   bin/edgeqkv-run
set -eu
build=$1
bionic=$(cd "$(dirname "$0")" && pwd)
ort_package=com.github.asus4.onnxruntime@0.4.9  # carries onnxruntime-android 1.29.0, an AAR (MIT)
ort_sha256=3a602b463d434d20fbf69cd1b8bdfd2f86a2cb67d08de97aec8f62476fa4ab87  # of its libonnxruntime.so for arm64

missing=
need() { command -v "$1" >/dev/null || missing="$missing $2"; }
need clang++-19 clang-19
need ld.lld-19 lld-19
need aarch64-linux-gnu-g++ g++-aarch64-linux-gnu
need cmake cmake
need npm npm
need javac openjdk-17-jdk-headless
if [ -n "$missing" ]; then
  echo "the native libraries for Android need the Debian packages$missing: apt-get install$missing" >&2
  exit 3
fi
mkdir -p "$build"
build=$(cd "$build" && pwd)

# Debian's static C++ library for arm64. With lists of packages of our own: the system's need not know of that architecture.
if [ ! -d "$build/sysroot" ]; then
  rm -rf "$build/apt" "$build/sysroot.part"
  mkdir -p "$build/apt/lists/partial" "$build/apt/cache/archives/partial" "$build/apt/packages"
  : >"$build/apt/status"
  own() {
    apt-get -qq -o APT::Architecture=arm64 -o APT::Architectures::=arm64 -o Dir::State::Lists="$build/apt/lists" \
      -o Dir::State::status="$build/apt/status" -o Dir::Cache="$build/apt/cache" -o APT::Sandbox::User= "$@"
  }
  own update
  (cd "$build/apt/packages" && own download libc++-19-dev libc++abi-19-dev libunwind-19-dev)
  for package in "$build"/apt/packages/*.deb; do dpkg -x "$package" "$build/sysroot.part"; done
  ls "$build/apt/packages" >"$build/sysroot.part/packages.txt"
  mv "$build/sysroot.part" "$build/sysroot"
  rm -rf "$build/apt"
fi

mkdir -p "$build/objects" "$build/bin" "$build/lib/arm64-v8a"
sh "$bionic/stubs.sh" "$bionic/names.txt" "$build/stubs"
for name in libgcc.a libgcc_eh.a; do cp "$(aarch64-linux-gnu-gcc -print-file-name=$name)" "$build/"; done
for part in bionic shared program; do
  clang++-19 --target=aarch64-linux-gnu -std=c++17 -O2 -Wall -Wextra -fPIC -fvisibility=hidden -fno-exceptions -fno-rtti -fno-builtin \
    -U_FORTIFY_SOURCE -c "$bionic/$part.cc" -o "$build/objects/$part.o"
done

java=$(readlink -f "$(command -v javac)")
export JAVA_HOME="${JAVA_HOME:-${java%/bin/javac}}"  # for jni.h
[ "$build/cmake/CMakeCache.txt" -nt "$bionic/toolchain.cmake" ] || rm -rf "$build/cmake"  # it keeps the flags of before
cmake -S "$bionic" -B "$build/cmake" -DCMAKE_TOOLCHAIN_FILE="$bionic/toolchain.cmake" -DEDGEQKV_BIONIC="$build" \
  -DCMAKE_BUILD_TYPE=Release -DCMAKE_LIBRARY_OUTPUT_DIRECTORY="$build/lib/arm64-v8a" -DCMAKE_RUNTIME_OUTPUT_DIRECTORY="$build/bin" \
  >/dev/null
rm -f "$build/lib/arm64-v8a/libedgeqkv_jni.so" "$build/bin/edgeqkv-run"  # cmake does not know what stubs and objects they are of
cmake --build "$build/cmake" --parallel 2 --target edgeqkv_jni edgeqkv-run >"$build/cmake.log" 2>&1 \
  || { cat "$build/cmake.log" >&2; exit 1; }

ort="$build/lib/arm64-v8a/libonnxruntime.so"
if ! echo "$ort_sha256  $ort" | sha256sum --check --status 2>/dev/null; then
  rm -rf "$build/npm" && mkdir -p "$build/npm"
  (cd "$build/npm" && npm pack --silent $ort_package >/dev/null && tar xzf ./*.tgz --wildcards --no-anchored '*/onnxruntime.aar')
  python3 - "$(find "$build/npm" -name onnxruntime.aar)" "$ort.part" <<'END'
import sys, zipfile
open(sys.argv[2], "wb").write(zipfile.ZipFile(sys.argv[1]).read("jni/arm64-v8a/libonnxruntime.so"))
END
  echo "$ort_sha256  $ort.part" | sha256sum --check --quiet - || { echo "$ort_package is not what we know; it is not used" >&2; exit 1; }
  mv "$ort.part" "$ort"
  rm -rf "$build/npm"
fi
cd "$build" && wc -c lib/arm64-v8a/*.so bin/edgeqkv-run
