# Unpacks the compiler's wheel. out: the one program; lib: what it needs to build a musl C library for x86_64 (read by sysroot.sh only).
# shellcheck shell=sh disable=SC2154 # the environment is the derivation
mkdir -p "$out/bin" "$lib/libc/include"
unzip -q "$wheel" 'ziglang/*'
mv ziglang/zig ziglang/LICENSE "$out/bin/"
chmod 755 "$out/bin/zig"
cd ziglang/lib
mv compiler_rt compiler_rt.zig std include zig.h c.zig compiler libunwind "$lib/"
mv libc/musl "$lib/libc/"
for dir in generic-musl x86_64-linux-musl x86-linux-any any-linux-any; do
  [ ! -d "libc/include/$dir" ] || mv "libc/include/$dir" "$lib/libc/include/"
done
