#!/bin/sh
# Instructions that the attention kernel executes per decoded token and layer on aarch64, 16 heads of 64: the slope from N to 2N
# tokens, under qemu-user with the plugin next to this file.  sh count_aarch64.sh BUILD  (a build for aarch64; see make count-aarch64)
set -eu
build=$1
plugin=$build/instruction_count.so
cc -O2 -Wall -Wextra -shared -fPIC -o "$plugin" "$(dirname "$0")/instruction_count.c"

count() { # arguments of decode_once
    QEMU_CPU=max qemu-aarch64 -L /usr/aarch64-linux-gnu -plugin "$plugin,out=$build/count" "$build/decode_once" "$@"
    cat "$build/count"
}

tokens=4
printf '%-9s %-6s %-9s %6s %6s %14s\n' variant cache path depth tokens 'instr/token'
for variant in 'QKV kv 16' 'Q-K=V k 16' 'Q-MQA k 1'; do
    set -- $variant
    for dtype in fp32 int8; do
        for path in neon neon+dot neon+i8mm; do
            for depth in 128 1024 2000; do
                once=$(count $path "$2" "$3" $dtype $depth $tokens)
                twice=$(count $path "$2" "$3" $dtype $depth $((2 * tokens)))
                printf '%-9s %-6s %-9s %6d %6d %14d\n' "$1" $dtype $path $depth $tokens $(((twice - once) / tokens))
            done
        done
    done
done
