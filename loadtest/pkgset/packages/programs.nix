# Programs above the base set.
{ source, package, packages, toolchain, ... }:
let
  inherit (packages) zlib bzip2 xz zstd gmp mpfr ncurses readline pcre2 nghttp2 c-ares libarchive libxml2 nettle mbedtls lzo tcl file libevent byacc pkgconf lua;
in
{
  hello = package {
    pname = "hello";
    version = "2.10";
    src = source "hello";
    check = ''[ "$($out/bin/hello)" = "Hello, world!" ]'';
  };

  which = package {
    pname = "which";
    version = "2.21";
    src = source "gnu-which";
    # Debian took out the manual.
    build = "make -C tilde && make which";
    install = "put $out/bin which";
    check = "$out/bin/which --version | grep -q 2.21";
  };

  less = package {
    pname = "less";
    version = "590";
    src = source "less";
    libs = [ ncurses ];
  };

  sed = package {
    pname = "sed";
    version = "4.9";
    src = source "sed";
    configureFlags = [ "--disable-acl" "--disable-i18n" "--without-selinux" ];
    check = ''[ "$(echo kiln | $out/bin/sed s/l/L/)" = kiLn ]'';
  };

  grep = package {
    pname = "grep";
    version = "3.8";
    src = source "grep";
    libs = [ pcre2 ];
    programs = [ pkgconf ];
    configureFlags = [ "--enable-perl-regexp" ];
    check = ''[ "$(echo kiln | $out/bin/grep -P '^k(?=i)')" = kiln ]'';
  };

  gawk = package {
    pname = "gawk";
    version = "5.2.1";
    src = source "gawk";
    libs = [ mpfr gmp readline ];
    # Debian took out the manual, from which the library of examples is cut.
    prepare = "edit Makefile.in 's/^SUBDIRS = support .*/SUBDIRS = support ./'";
    configureFlags = [ "--disable-extensions" "--disable-nls" ];
    check = ''[ "$($out/bin/gawk -M 'BEGIN { print 2 ^ 100 }')" = 1267650600228229401496703205376 ]'';
  };

  bash = package {
    pname = "bash";
    version = "5.2.15";
    src = source "bash";
    libs = [ readline ];
    configure = ''
      bash_cv_func_strtoimax=no ./configure --prefix=$out --without-bash-malloc --with-installed-readline --disable-nls --with-curses
    '';
    check = ''[ "$($out/bin/bash -c 'a=(1 2 3); echo ''${#a[@]}')" = 3 ]'';
  };

  gzip = package {
    pname = "gzip";
    version = "1.12";
    src = source "gzip";
  };

  patch = package {
    pname = "patch";
    version = "2.7.6";
    src = source "patch";
  };

  m4 = package {
    pname = "m4";
    version = "1.4.19";
    src = source "m4";
    check = ''[ "$(echo 'define(a,kiln)a' | $out/bin/m4)" = kiln ]'';
  };

  byacc = package {
    pname = "byacc";
    version = "2.0.20221106";
    src = source "byacc";
    configure = "./configure --prefix=$out";
  };

  file = package {
    pname = "file";
    version = "5.44";
    src = source "file";
    libs = [ zlib bzip2 xz zstd ];
    configureFlags = [ "--disable-libseccomp" ];
    check = ''$out/bin/file -m $out/share/misc/magic.mgc $src | grep -q gzip'';
  };

  tcc = package {
    pname = "tcc";
    version = "0.9.27";
    src = source "tcc";
    inherit (toolchain) sysroot;
    configure = ''
      ./configure --prefix=$out --cc="$CC" --ar="$AR" --extra-cflags="$CFLAGS" --config-musl --sysincludepaths="$sysroot/include" \
        --libpaths="$sysroot/lib" --crtprefix="$sysroot/lib"
    '';
    build = ''make -j"$cores" tcc libtcc.a'';
    install = ''
      put $out/bin tcc
      put $out/lib libtcc.a
      put $out/include libtcc.h
      mkdir -p $out/lib/tcc/include
      cp include/*.h $out/lib/tcc/include/
    '';
    check = "$out/bin/tcc -v";
  };

  pixz = package {
    pname = "pixz";
    version = "1.0.7";
    src = source "pixz";
    libs = [ libarchive xz ];
    configure = ": >src/config.h";
    build = ''
      compile '-DPACKAGE_NAME="pixz" -DPACKAGE_VERSION="1.0.7" -DHAVE_DECL_HTOLE64=1 -DHAVE_DECL_LE64TOH=1 -DHAVE_ENDIAN_H' src/*.c
      $CC src/*.o $LDFLAGS -larchive -lxml2 -lnettle -llzma -lzstd -llz4 -lbz2 -lz -lpthread -o pixz
    '';
    install = "put $out/bin pixz";
    check = "echo kiln | $out/bin/pixz -t | $out/bin/pixz -d -t | grep -q kiln";
  };

  lzop = package {
    pname = "lzop";
    version = "1.04";
    src = source "lzop";
    libs = [ lzo ];
  };

  curl = package {
    pname = "curl";
    version = "7.88.1";
    src = source "curl";
    libs = [ zlib zstd nghttp2 c-ares mbedtls ];
    programs = [ pkgconf ];
    configureFlags = [
      "--with-mbedtls" "--with-nghttp2" "--enable-ares" "--with-zlib" "--with-zstd" "--without-brotli" "--without-libpsl" "--without-libidn2"
      "--disable-manual" "--disable-ldap" "--with-ca-bundle=/etc/ssl/certs/ca-certificates.crt"
    ];
    check = "$out/bin/curl --version | grep -q HTTP2";
  };

  tcl = package {
    pname = "tcl";
    version = "8.6.13";
    src = source "tcl8.6";
    libs = [ zlib ];
    configure = "cd unix && ./configure --prefix=$out --disable-shared --enable-threads --with-tzdata=no";
    installTargets = [ "install-binaries" "install-libraries" "install-headers" ];
    check = ''ln -s tclsh8.6 $out/bin/tclsh; [ "$(echo 'puts [expr 6*7]' | $out/bin/tclsh)" = 42 ]'';
  };

  sqlite = package {
    pname = "sqlite";
    version = "3.40.1";
    src = source "sqlite3";
    libs = [ readline zlib ];
    programs = [ tcl ];
    # The archive is the source tree, whose one-file form Tcl scripts write first.
    configure = ''
      ./configure --prefix=$out --disable-shared --disable-tcl --enable-readline --with-readline-lib="$LDFLAGS -lreadline -lncurses" \
        --with-readline-inc="$include"
    '';
    check = ''[ "$($out/bin/sqlite3 :memory: 'select sum(value) from generate_series(1, 4)')" = 10 ]'';
  };

  jimtcl = package {
    pname = "jimtcl";
    version = "0.81";
    src = source "jimtcl";
    libs = [ zlib ];
    configure = ''./configure --prefix=$out --disable-docs --disable-ssl'';
    build = ''make -j"$cores" AR="$AR" RANLIB="$RANLIB"'';
    install = ''make install AR="$AR" RANLIB="$RANLIB"'';
  };

  tmux = package {
    pname = "tmux";
    version = "3.3a";
    src = source "tmux";
    libs = [ libevent ncurses ];
    programs = [ byacc pkgconf ];
    configure = ''YACC="byacc -o y.tab.c" ./configure --prefix=$out --enable-static --disable-dependency-tracking'';
    check = "$out/bin/tmux -V";
  };
}
