#!/bin/sh
# sh stubs.sh NAMES OUT: a library with nothing but names for each in NAMES, to link against. Whatever else a library of ours wants is
# an undefined symbol, which the linker names.
set -eu
mkdir -p "$2"
sed 's/#.*//' "$1" | awk -v out="$2" '
  /^[^ ]/ { library = $1; printf "" > (out "/" library ".s"); next }
  { for (i = 1; i <= NF; i++) {
      kind = sub(/\*$/, "", $i) ? "object" : "function"
      printf ".globl %s\n.type %s, %%%s\n.size %s, 8\n%s:\n", $i, $i, kind, $i, $i > (out "/" library ".s") } }'
echo 'LIBC { global: *; };' >"$2/LIBC.map"
for source in "$2"/*.s; do
  library=$(basename "$source" .s)
  clang-19 --target=aarch64-linux-android24 -fuse-ld=lld-19 -nostdlib -shared -Wl,-soname,"$library" \
    -Wl,--version-script="$2/LIBC.map" -o "$2/$library" "$source"
done
