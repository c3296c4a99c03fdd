# Makes an ordinary sysroot: start files, static libc and compiler runtime, headers. `zig cc` builds them once into its cache; its
# cache manifests hold inode numbers and times, so only the finished objects are taken. Stripped (-s), or else the runtime's debug
# information would name its sources, and every package's closure would hold them.
# shellcheck shell=sh disable=SC2154 # the environment is the derivation
export HOME="$NIX_BUILD_TOP/home" ZIG_LIB_DIR="$lib"
export ZIG_GLOBAL_CACHE_DIR="$HOME/cache" ZIG_LOCAL_CACHE_DIR="$HOME/cache"
mkdir -p "$HOME" "$out/lib" "$out/include" "$out/res/lib/linux"
echo 'int main(void) { return 0; }' >probe.c
"$zig/bin/zig" cc -target x86_64-linux-musl -static -s -v probe.c -o probe 2>log
link=$(grep 'ld.lld' log | tail -n 1)
for file in crt1.o crti.o crtn.o libc.a libcompiler_rt.a; do
  path=$(printf '%s\n' "$link" | tr ' ' '\n' | grep "/$file\$" | head -n 1)
  [ -f "$path" ] || { echo "zig cc linked without $file: $link" >&2; exit 1; }
  cp "$path" "$out/lib/$file"
done

# clang looks for its runtime under names of its own.
runtime=$out/res/lib/linux
mv "$out/lib/libcompiler_rt.a" "$runtime/libclang_rt.builtins-x86_64.a"
echo 'void *__dso_handle __attribute__((visibility("hidden"))) = 0;' >begin.c
: >end.c
for part in begin end; do
  "$zig/bin/zig" clang --target=x86_64-linux-musl -ffreestanding -c "$part.c" -o "$runtime/clang_rt.crt$part-x86_64.o"
done
# musl keeps all of libc in one archive; these names exist for linkers that ask.
for name in m pthread rt dl util crypt resolv xnet; do
  "$zig/bin/zig" ar rcsD "$out/lib/lib$name.a"
done
# Earlier directories win, as they do in zig's own search order, so they are copied last.
for dir in any-linux-any x86-linux-any generic-musl x86_64-linux-musl; do
  [ -d "$lib/libc/include/$dir" ] || continue
  cp -R "$lib/libc/include/$dir/." "$out/include/"
  chmod -R u+w "$out/include"
done
cp -R "$lib/include" "$out/res/include"
