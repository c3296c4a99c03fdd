# The C compiler of every package: wrappers around `zig clang`, the plain driver, which keeps no cache and reads no ZIG_ variable.
# shellcheck shell=sh disable=SC2154 # the environment is the derivation
mkdir -p "$out/bin" "$out/ld"
wrap() {
  path=$1
  shift
  { echo '#!/bin/sh'; echo "exec $* \"\$@\""; } >"$path"
  chmod 755 "$path"
}
wrap "$out/ld/ld.lld" "$zig/bin/zig" ld.lld --build-id=none
wrap "$out/bin/cc" "$zig/bin/zig" clang --target=x86_64-linux-musl "--sysroot=$sysroot" -resource-dir "$sysroot/res" "-B$out/ld" \
  -fuse-ld=lld -static --rtlib=compiler-rt --unwindlib=none -Qunused-arguments
wrap "$out/bin/ar" "$zig/bin/zig" ar
wrap "$out/bin/ranlib" "$zig/bin/zig" ranlib
ln -s cc "$out/bin/gcc"
ln -s cc "$out/bin/clang"
ln -s ../ld/ld.lld "$out/bin/ld"
# The wheel has neither; a static program needs no symbol table to run, and configure scripts accept an nm that says nothing.
for name in nm strip; do
  { echo '#!/bin/sh'; echo 'exit 0'; } >"$out/bin/$name"
  chmod 755 "$out/bin/$name"
done
