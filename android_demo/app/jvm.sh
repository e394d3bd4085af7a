#!/bin/sh
# sh android_demo/app/jvm.sh BUILD PYTHON: the app's classes compiled, and their tests run, on this machine's JVM, over the library
# that runtimes/android/jvm.sh builds in the same folder. Results are in BUILD/app/surefire-reports; what the tests measured is in
# BUILD/app-results.
set -eu
mkdir -p "$1"
build=$(cd "$1" && pwd) python=$2 here=$(cd "$(dirname "$0")" && pwd)
framework=/usr/share/android-framework-res/framework-res.apk
if ! command -v aapt2 >/dev/null || [ ! -f $framework ]; then
  echo "this needs the Debian packages aapt and android-framework-res: apt-get install aapt android-framework-res" >&2
  exit 3
fi
JAVA_HOME=${JAVA_HOME:-$(dirname "$(dirname "$(readlink -f "$(command -v javac)")")")}
export JAVA_HOME
sh "$here/../../runtimes/android/jvm.sh" "$build" "$python" -DskipTests
# R.java; the build of an APK adds the package likewise.
rm -rf "$build/app-resources" "$build/app-results" "$build/app/surefire-reports"
mkdir -p "$build/app-resources" "$build/app-results"
work=$(mktemp -d)
trap 'rm -rf "$work"' EXIT
sed 's/<manifest /<manifest package="io.github.edgeqkv.demo" /' "$here/src/main/AndroidManifest.xml" >"$work/AndroidManifest.xml"
aapt2 compile --dir "$here/src/main/res" -o "$work/resources.zip"
aapt2 link -I $framework --manifest "$work/AndroidManifest.xml" --min-sdk-version 24 --target-sdk-version 35 \
  -o "$work/resources.apk" --java "$build/app-resources" "$work/resources.zip"
onnxruntime=$("$python" -c "import onnxruntime, pathlib
print(next(pathlib.Path(onnxruntime.__file__).parent.glob('capi/libonnxruntime.so*')))")
runner=$("$python" -c "from edgeqkv.native import RUNNER, native_file; print(native_file(RUNNER))")
mvn --batch-mode --no-transfer-progress --quiet --file "$here/pom.xml" verify "-Dedgeqkv.build=$build" \
  "-Dedgeqkv.onnxruntime=$onnxruntime" "-Dedgeqkv.runner=$runner"
# What -Xcheck:jni says of a call that JNI forbids.
if grep -h 'JNI\|native method' "$build"/app/surefire-reports/*.dumpstream 2>/dev/null; then exit 1; fi
