#!/bin/sh
# sh runtimes/android/jvm.sh BUILD PYTHON [OPTION...]: the Kotlin library and its tests on this machine's JVM, over
# libedgeqkv_jni.so in BUILD/jni and the ONNX Runtime of PYTHON. Results are in BUILD/maven/surefire-reports; options are Maven's.
set -eu
mkdir -p "$1"
build=$(cd "$1" && pwd) python=$2 here=$(cd "$(dirname "$0")" && pwd)
shift 2
for program in cmake g++ javac mvn; do
  command -v $program >/dev/null || {
    echo "this needs the Debian packages cmake, g++, openjdk-17-jdk-headless and maven:" \
      "apt-get install cmake g++ openjdk-17-jdk-headless maven" >&2
    exit 3
  }
done
JAVA_HOME=${JAVA_HOME:-$(dirname "$(dirname "$(readlink -f "$(command -v javac)")")")}
export JAVA_HOME
cmake -S "$here/src/main/cpp" -B "$build/jni" >/dev/null
cmake --build "$build/jni" --target edgeqkv_jni --parallel 2 >/dev/null
"$python" "$here/../../tests/runtimes/android/prepare.py" "$build/data"
onnxruntime=$("$python" -c "import onnxruntime, pathlib
print(next(pathlib.Path(onnxruntime.__file__).parent.glob('capi/libonnxruntime.so*')))")
# ONNX Runtime would leave files in the home folder, if its telemetry were on.
rm -rf "$build/home" "$build/maven/surefire-reports"
mkdir "$build/home"
mvn --batch-mode --no-transfer-progress --quiet --file "$here/pom.xml" verify "-Dedgeqkv.build=$build" \
  "-Dedgeqkv.onnxruntime=$onnxruntime" "$@"
# What -Xcheck:jni says of a call that JNI forbids.
if grep -h 'JNI\|native method' "$build"/maven/surefire-reports/*.dumpstream 2>/dev/null; then exit 1; fi
