#!/bin/sh
# sh runtimes/run/aarch64.sh BUILD PYTHON: the runner for aarch64 in BUILD/run, and in BUILD/root what qemu-user's -L needs for it.
set -eu
build=$1 python=$2
installed() { "$python" -c "from importlib.metadata import version; print(version('$1').split('+')[0])"; }
onnxruntime=$(installed onnxruntime) executorch=$(installed executorch)
here=$(dirname "$0")
mkdir -p "$build/root/proc"
ln -sfn /usr/aarch64-linux-gnu/lib "$build/root/lib"
# ONNX Runtime reads this when it is loaded and dies on an x86-64 one; this is a Neoverse N1, once for each core.
for core in $(seq 0 $(($(nproc) - 1))); do
  printf 'processor\t: %s\nFeatures\t: fp asimd evtstrm aes pmull sha1 sha2 crc32 atomics fphp asimdhp cpuid asimdrdm lrcpc ' "$core"
  printf 'dcpop asimddp\nCPU implementer\t: 0x41\nCPU architecture: 8\nCPU variant\t: 0x3\nCPU part\t: 0xd0c\nCPU revision\t: 1\n\n'
done >"$build/root/proc/cpuinfo"
wheels="$build/wheels-$onnxruntime-$executorch"
if [ ! -d "$wheels" ]; then
  rm -rf "$wheels.part"
  "$python" -m pip download --quiet --no-deps --only-binary=:all: --platform manylinux_2_28_aarch64 --dest "$wheels.part" \
    "onnxruntime==$onnxruntime" "executorch==$executorch"
  for wheel in "$wheels".part/*.whl; do "$python" -m zipfile -e "$wheel" "$wheels.part"; done
  mv "$wheels.part" "$wheels"
fi
cp "$wheels"/onnxruntime/capi/libonnxruntime.so.* "$build/root/libonnxruntime.so"
cmake -S "$here/.." -B "$build" -DCMAKE_TOOLCHAIN_FILE="$(cd "$here" && pwd)/../kernels/cmake/aarch64-linux-gnu.cmake" \
  -DEDGEQKV_EXECUTORCH=ON -DEXECUTORCH_DIR="$(cd "$wheels" && pwd)/executorch" -DEDGEQKV_NATIVE_TESTS=ON >/dev/null
cmake --build "$build" --parallel 2 >/dev/null
