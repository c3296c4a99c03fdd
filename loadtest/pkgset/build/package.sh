# The builder of every package: unpack, patch, configure, build, install, tidy. A package's own steps come in as text ($configure, $build,
# $install and the others) and are run in the source directory.
# shellcheck shell=sh disable=SC2154,SC2086 # the environment is the derivation; lists are split at blanks
export PATH="$tools/bin" HOME="$NIX_BUILD_TOP/home" SOURCE_DATE_EPOCH=315532800 LC_ALL=C
mkdir -p "$HOME"
prefix=${bin:-$out}
cores=${NIX_BUILD_CORES:-1}

# Everything that a package was given, in order: programs before the common tools, headers and archives for compiler and linker.
include= libraries= pkgconfig=
for dep in $programs; do PATH=$dep/bin:$PATH; done
for dep in $libs; do
  include="$include -I$dep/include"
  libraries="$libraries -L$dep/lib"
  pkgconfig=$pkgconfig:$dep/lib/pkgconfig
done
export CC="$cc/bin/cc" AR="$cc/bin/ar" RANLIB="$cc/bin/ranlib" NM="$cc/bin/nm" STRIP="$cc/bin/strip" LD="$cc/bin/ld" CC_FOR_BUILD="$cc/bin/cc"
export CPPFLAGS="$include $cppflags" LDFLAGS="$libraries $ldflags" PKG_CONFIG_PATH="${pkgconfig#:}" PKG_CONFIG_LIBDIR=/none
export CPP="$cc/bin/cc -E $CPPFLAGS" CONFIG_SHELL=/bin/sh GNUMAKE=make PKG_CONFIG="pkg-config --static"

say() { echo "--- $name: $*"; }

# Unpacks an archive into the current directory.
unpack() {
  case $1 in
    *.xz) unxz -c "$1" | untar ;;
    *.bz2) bunzip2 -c "$1" | untar ;;
    *.gz | *.tgz) gunzip -c "$1" | untar ;;
    *.tar) untar <"$1" ;;
    *) echo "$1: no known archive" >&2; return 1 ;;
  esac
}

# A file named in a text, with that file's text replaced: edit FILE SED-EXPRESSION…; refuses an edit that changes nothing.
edit() {
  file=$1
  shift
  for expression; do
    sed -e "$expression" "$file" >"$NIX_BUILD_TOP/edited"
    if cmp -s "$file" "$NIX_BUILD_TOP/edited"; then
      echo "edit of $file changed nothing: $expression" >&2
      return 1
    fi
    cat "$NIX_BUILD_TOP/edited" >"$file"
  done
}

# Puts programs, headers, archives where they belong, for packages without an install step of their own.
put() {
  mkdir -p "$1"
  dir=$1
  shift
  cp "$@" "$dir/"
}

# Compiles C files side by side, each into the object beside it, for packages whose archive has no configure script: compile FLAGS FILE…
compile() {
  flags=$1
  shift
  printf '%s\n' "$@" | CFLAGS="$CFLAGS $CPPFLAGS $flags" xargs -P "$cores" -n 1 sh -c '$CC $CFLAGS -c "$0" -o "${0%.c}.o"'
}

# Writes a library's pkg-config file: describe DIR NAME LIBS
describe() {
  mkdir -p "$1/lib/pkgconfig"
  printf 'Name: %s\nDescription: %s\nVersion: %s\nLibs: -L%s/lib %s\nCflags: -I%s/include\n' "$2" "$2" "$version" "$1" "$3" "$1" \
    >"$1/lib/pkgconfig/$2.pc"
}

say unpack
mkdir "$NIX_BUILD_TOP/source"
cd "$NIX_BUILD_TOP/source"
if [ -d "$src" ]; then
  cp -R "$src/." .
  chmod -R u+w .
else
  unpack "$src"
fi
# An archive with one directory at the top is entered.
set -- *
if [ $# = 1 ] && [ -d "$1" ]; then cd "$1"; fi

if [ -n "$patches" ]; then
  say patch
  mkdir "$NIX_BUILD_TOP/debian"
  (cd "$NIX_BUILD_TOP/debian" && unpack "$patches")
  grep -E "$patchesWanted" "$NIX_BUILD_TOP/debian/debian/patches/series" | while read -r file; do
    echo "applying $file"
    patch -p1 -i "$NIX_BUILD_TOP/debian/debian/patches/$file"
  done
fi
eval "$prepare"
# One time for all files: no make rule may think that a generated file is older than what it was made from.
find . -exec touch -h -d @315532800 {} +

export CFLAGS="$optimise -w -ffile-prefix-map=$PWD=. $cflags"
say configure
if [ "$configure" = autoconf ]; then
  ./configure --prefix="$prefix" --disable-shared --enable-static --disable-dependency-tracking $configureFlags
else
  eval "$configure"
fi
say build
if [ "$build" = make ]; then make -j"$cores" SHELL=/bin/sh $makeFlags; else eval "$build"; fi
say install
if [ "$install" = make ]; then make SHELL=/bin/sh $makeFlags ${installTargets:-install}; else eval "$install"; fi

say tidy
for output in $outputs; do
  eval "dir=\$$output"
  [ -d "$dir" ] || [ -f "$dir" ] || { echo "output $output was not made" >&2; exit 1; }
  find "$dir" -name '*.la' -exec rm -f {} +
  rm -f "$dir/share/info/dir"
  rm -rf "$dir/share/locale"
done
eval "$check"
