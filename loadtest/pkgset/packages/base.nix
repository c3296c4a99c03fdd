# The small set: make, compression, a shell, a language. Light, real, and connected: the rest stands on it.
{ source, bare, package, packages, toolchain, system, ... }:
let
  inherit (packages) zlib xz lz4;
in
{
  # Compiled by hand: Debian's archive has no configure script. Its config.h comes as a file named by an attribute (passAsFile).
  make = bare {
    pname = "make";
    version = "4.3";
    src = source "make-dfsg";
    config = builtins.readFile ../build/make-config.h;
    passAsFile = [ "config" ];
    configure = ''
      cp "$configPath" src/config.h
      for header in fnmatch glob; do cp lib/$header.in.h lib/$header.h; done
    '';
    build = ''
      files=$(ls src/*.c | grep -v -e amiga -e vms -e remote-cstms)
      compile '-DHAVE_CONFIG_H -Isrc -Ilib -DLIBDIR="/usr/lib" -DINCLUDEDIR="/usr/include" -DLOCALEDIR="/none"' $files lib/fnmatch.c lib/glob.c
      $CC src/*.o lib/*.o -o make
    '';
    install = "put $out/bin make";
    check = "echo 'all:; @echo made' >t.mk; [ \"$($out/bin/make -f t.mk)\" = made ]";
  };

  # A flat fixed-output derivation: the archive's tar, whatever packed it. A change of the unpacker that gives the same bytes rebuilds nothing.
  zlib-tar = derivation {
    name = "zlib-1.2.13.tar";
    inherit system;
    builder = "${toolchain.tools}/bin/sh";
    args = [ "-euc" "bunzip2 -c $packed >$out" ];
    PATH = "${toolchain.tools}/bin";
    packed = source "zlib";
    outputHashMode = "flat";
    outputHashAlgo = "sha256";
    outputHash = "sha256-34XTbzeu/eo9X/oio6CWEv5dpzsQrqHwRMDDRBLEX+s=";
  };

  # A recursive fixed-output derivation: a source tree.
  lua-tree = derivation {
    name = "lua-5.4.4-source";
    inherit system;
    builder = "${toolchain.tools}/bin/sh";
    args = [ "-euc" "gunzip -c $packed | untar; mv lua-5.4.4 $out" ];
    PATH = "${toolchain.tools}/bin";
    packed = source "lua5.4";
    outputHashMode = "recursive";
    outputHashAlgo = "sha256";
    outputHash = "sha256-aMFLCKvISGwhve607m1BkyVkvhz33tlofvQMQEDnrgw=";
  };

  zlib = package {
    pname = "zlib";
    version = "1.2.13";
    outputs = [ "out" "dev" ];
    src = packages.zlib-tar;
    configure = ''CFLAGS="$CFLAGS -fPIC" ./configure --static --prefix=$dev'';
    install = ''
      make install
      put $out/share/doc README ChangeLog
      mv $dev/share/man $out/share/man
      rmdir $dev/share
    '';
  };

  bzip2 = package {
    pname = "bzip2";
    version = "1.0.8";
    src = source "bzip2";
    configure = "";
    build = ''make -j"$cores" CC="$CC" AR="$AR" RANLIB="$RANLIB" CFLAGS="$CFLAGS -D_FILE_OFFSET_BITS=64" libbz2.a bzip2 bzip2recover'';
    install = ''
      make install PREFIX=$out CC="$CC" AR="$AR" RANLIB="$RANLIB"
      for link in bzegrep bzfgrep; do ln -sf bzgrep $out/bin/$link; done
      ln -sf bzmore $out/bin/bzless
      ln -sf bzdiff $out/bin/bzcmp
    '';
    check = "echo kiln | $out/bin/bzip2 | $out/bin/bzip2 -d | cmp - /dev/fd/3 3<<END\nkiln\nEND";
  };

  # Three outputs, none called `out`, as larger sets have them.
  xz = package {
    pname = "xz";
    version = "5.4.1";
    outputs = [ "bin" "dev" "doc" ];
    src = source "xz-utils";
    debian = { archive = source "xz-utils-debian"; wanted = "^(liblzma|xz)-"; };
    configure = ''
      ./configure --prefix=$bin --libdir=$dev/lib --includedir=$dev/include --datarootdir=$doc/share --disable-shared --disable-nls \
        --disable-dependency-tracking --disable-lzmainfo --disable-lzma-links
    '';
    check = "echo kiln | $bin/bin/xz | $bin/bin/xz -d | grep -q kiln";
  };

  lz4 = package {
    pname = "lz4";
    version = "1.9.4";
    src = source "lz4";
    configure = "";
    build = ''
      make -j"$cores" -C lib liblz4.a CC="$CC" AR="$AR" CFLAGS="$CFLAGS"
      make -j"$cores" -C programs lz4 CC="$CC" AR="$AR" CFLAGS="$CFLAGS"
    '';
    install = ''
      put $out/bin programs/lz4
      put $out/lib lib/liblz4.a
      put $out/include lib/lz4.h lib/lz4hc.h lib/lz4frame.h
      put $out/share/man/man1 programs/lz4.1
    '';
    check = "echo kiln | $out/bin/lz4 -c | $out/bin/lz4 -dc | grep -q kiln";
  };

  zstd = package {
    pname = "zstd";
    version = "1.5.4";
    outputs = [ "out" "dev" ];
    src = source "libzstd";
    libs = [ zlib xz lz4 ];
    configure = "";
    build = ''
      flags="HAVE_PTHREAD=1 HAVE_ZLIB=1 HAVE_LZMA=1 HAVE_LZ4=1 ZSTD_LEGACY_SUPPORT=0"
      make -j"$cores" -C lib libzstd.a libzstd.pc ZSTD_LEGACY_SUPPORT=0 PREFIX=$dev CC="$CC" AR="$AR" CFLAGS="$CFLAGS"
      # Flags stay in the environment: on the command line they would override what the makefile adds for threads and other formats.
      make -j"$cores" -C programs zstd $flags
    '';
    install = ''
      put $dev/lib lib/libzstd.a
      put $dev/lib/pkgconfig lib/libzstd.pc
      put $dev/include lib/zstd.h lib/zdict.h lib/zstd_errors.h
      put $out/bin programs/zstd
      put $out/share/man/man1 programs/zstd.1
      for link in unzstd zstdcat zstdmt; do ln -s zstd $out/bin/$link; done
    '';
    check = "echo kiln | $out/bin/zstd | $out/bin/zstd -d | grep -q kiln; echo kiln | $out/bin/zstd --format=xz | $out/bin/zstd -d | grep -q kiln";
  };

  xxhash = package {
    pname = "xxhash";
    version = "0.8.1";
    src = source "xxhash";
    configure = "";
    build = ''make -j"$cores" libxxhash.a xxhsum libxxhash.pc prefix=$out CC="$CC" AR="$AR" CFLAGS="$CFLAGS"'';
    install = ''
      put $out/bin xxhsum
      put $out/lib libxxhash.a
      put $out/lib/pkgconfig libxxhash.pc
      put $out/include xxhash.h xxh3.h
    '';
    check = ''[ "$(printf kiln | $out/bin/xxhsum -H64 | cut -c 1-16 | wc -c)" = 17 ]'';
  };

  expat = package {
    pname = "expat";
    version = "2.5.0";
    src = source "expat";
    # No configure script: its three files are compiled by hand.
    configure = ''
      cd expat
      printf '#define XML_NS 1\n#define XML_DTD 1\n#define XML_CONTEXT_BYTES 1024\n#define HAVE_GETRANDOM 1\n#define BYTEORDER 1234\n#define HAVE_UNISTD_H 1\n' >lib/expat_config.h
    '';
    build = ''
      compile -Ilib lib/xmlparse.c lib/xmltok.c lib/xmlrole.c
      $AR rcsD libexpat.a lib/*.o
      $CC $CFLAGS -Ilib -Ixmlwf xmlwf/xmlwf.c xmlwf/xmlfile.c xmlwf/codepage.c xmlwf/unixfilemap.c libexpat.a -o wellformed
    '';
    install = ''
      put $out/lib libexpat.a
      put $out/include lib/expat.h lib/expat_external.h
      put $out/bin wellformed
      mv $out/bin/wellformed $out/bin/xmlwf
      describe $out expat -lexpat
    '';
    check = "echo '<a><b/></a>' >t.xml; [ -z \"$($out/bin/xmlwf t.xml)\" ]";
  };

  libpng = package {
    pname = "libpng";
    version = "1.6.39";
    src = source "libpng1.6";
    libs = [ zlib ];
    makeFlags = [ "AWK=awk" ];
  };

  lua = package {
    pname = "lua";
    version = "5.4.4";
    src = packages.lua-tree;
    debian = { archive = source "lua5.4-debian"; wanted = "cve"; };
    configure = "edit src/luaconf.h \"s|/usr/local/|$out/|\"";
    build = ''make -j"$cores" -C src PLAT=posix CC="$CC" AR="$AR rcD" RANLIB="$RANLIB" MYCFLAGS="$CFLAGS -DLUA_USE_POSIX" posix'';
    install = ''make install INSTALL_TOP=$out INSTALL_LMOD=$out/share/lua/5.4 INSTALL_CMOD=$out/lib/lua/5.4 RANLIB="$RANLIB"'';
    check = ''[ "$($out/bin/lua -e 'print(_VERSION)')" = "Lua 5.4" ]'';
  };

  dash = package {
    pname = "dash";
    version = "0.5.12";
    src = source "dash";
    check = ''[ "$($out/bin/dash -c 'echo $((6 * 7))')" = 42 ]'';
  };

  mawk = package {
    pname = "mawk";
    version = "1.3.4";
    src = source "mawk";
    configure = "./configure --prefix=$out --disable-init-srand";
    check = ''[ "$($out/bin/mawk 'BEGIN { print 6 * 7 }')" = 42 ]'';
  };

  ed = package {
    pname = "ed";
    version = "1.19";
    src = source "ed";
    configure = ''./configure --prefix=$out CC="$CC" CFLAGS="$CFLAGS"'';
  };

  tree = package {
    pname = "tree";
    version = "2.1.0";
    src = source "tree";
    configure = "";
    build = ''make -j"$cores" CC="$CC" CFLAGS="$CFLAGS -D_LARGEFILE64_SOURCE -D_FILE_OFFSET_BITS=64 -DLINUX"'';
    install = "put $out/bin tree && put $out/share/man/man1 doc/tree.1";
  };

  # Hidden behind its old name too: configure scripts look for pkg-config.
  pkgconf = package {
    pname = "pkgconf";
    version = "1.8.1";
    src = source "pkgconf";
    check = "ln -s pkgconf $out/bin/pkg-config; $out/bin/pkg-config --version | grep -q 1.8.1";
  };
}
