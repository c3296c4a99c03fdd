# Libraries above the base set.
{ source, package, packages, ... }:
let
  inherit (packages) zlib bzip2 xz lz4 zstd expat libpng gmp nettle ncurses libxml2 pkgconf m4;
in
{
  gmp = package {
    pname = "gmp";
    version = "6.2.1";
    src = source "gmp";
    programs = [ m4 ];
    # Debian took out the manual. There is no nm to find out how the assembler writes words, nor is one needed without assembly.
    prepare = "mkdir -p doc && printf 'all install check clean:\n' >doc/Makefile.in";
    configure = ''gmp_cv_asm_w32=.long ./configure --prefix=$out --disable-shared --disable-assembly'';
  };

  mpfr = package {
    pname = "mpfr";
    version = "4.2.0";
    src = source "mpfr4";
    libs = [ gmp ];
    # The manual needs makeinfo.
    prepare = "mkdir -p doc && printf 'all install check clean:\n' >doc/Makefile.in";
  };

  nettle = package {
    pname = "nettle";
    version = "3.8.1";
    src = source "nettle";
    libs = [ gmp ];
    programs = [ m4 ];
    configure = ''
      ./configure --prefix=$out --libdir=$out/lib --disable-shared --disable-assembler --disable-documentation --disable-openssl \
        --disable-dependency-tracking
    '';
    check = "echo kiln | $out/bin/nettle-hash -a sha256 | grep -q '^[0-9a-f]'";
  };

  libtasn1 = package {
    pname = "libtasn1";
    version = "4.19.0";
    src = source "libtasn1-6";
    debian = { archive = source "libtasn1-6-debian"; wanted = "asn1"; };
    configureFlags = [ "--disable-doc" "--disable-valgrind-tests" ];
  };

  # No terminal database: the common terminals are compiled in.
  ncurses = package {
    pname = "ncurses";
    version = "6.4";
    src = source "ncurses";
    # Its own choice of archiver flags keeps times.
    configure = ''
      cf_cv_ar_flags=-curD ./configure --prefix=$out --without-ada --without-cxx --without-cxx-binding --without-manpages --without-tests \
        --without-debug --without-progs --disable-db-install --enable-widec --enable-overwrite --with-default-terminfo-dir=/usr/share/terminfo \
        --with-termlib=no
    '';
    # Others look for it under its short names.
    install = ''
      make install.libs install.includes
      for name in ncurses curses tinfo; do ln -s libncursesw.a $out/lib/lib$name.a; done
    '';
  };

  readline = package {
    pname = "readline";
    version = "8.2";
    src = source "readline";
    libs = [ ncurses ];
    configureFlags = [ "--with-curses" "--disable-install-examples" ];
    install = "make install-static install-headers";
  };

  pcre2 = package {
    pname = "pcre2";
    version = "10.42";
    src = source "pcre2";
    configureFlags = [ "--enable-jit" ];
    cflags = "-DPCRE2_STATIC";
  };

  nghttp2 = package {
    pname = "nghttp2";
    version = "1.52.0";
    src = source "nghttp2";
    configure = ''
      cd lib
      sed -e 's/@PACKAGE_VERSION@/1.52.0/' -e 's/@PACKAGE_VERSION_NUM@/0x013400/' includes/nghttp2/nghttp2ver.h.in >includes/nghttp2/nghttp2ver.h
    '';
    build = ''
      compile '-DNGHTTP2_STATICLIB -DHAVE_ARPA_INET_H -DHAVE_NETINET_IN_H -Iincludes' *.c
      $AR rcsD libnghttp2.a *.o
    '';
    install = ''
      put $out/lib libnghttp2.a
      put $out/include/nghttp2 includes/nghttp2/nghttp2.h includes/nghttp2/nghttp2ver.h
      describe $out libnghttp2 -lnghttp2
    '';
  };

  c-ares = package {
    pname = "c-ares";
    version = "1.18.1";
    src = source "c-ares";
    configureFlags = [ "--disable-tests" ];
  };

  libuv = package {
    pname = "libuv";
    version = "1.44.2";
    src = source "libuv1";
    configure = "";
    build = ''
      unix=
      for part in async core dl fs getaddrinfo getnameinfo loop-watcher loop pipe poll process random-devurandom signal stream tcp thread tty udp \
        linux-core linux-inotify linux-syscalls procfs-exepath random-getrandom random-sysctl-linux epoll proctitle; do
        unix="$unix src/unix/$part.c"
      done
      compile '-D_GNU_SOURCE -D_FILE_OFFSET_BITS=64 -D_POSIX_C_SOURCE=200112 -Iinclude -Isrc' src/*.c $unix
      $AR rcsD libuv.a src/*.o src/unix/*.o
    '';
    install = ''
      put $out/lib libuv.a
      mkdir -p $out/include
      cp -R include/* $out/include/
      describe $out libuv "-luv -lpthread"
    '';
  };

  libyaml = package {
    pname = "libyaml";
    version = "0.2.5";
    src = source "libyaml";
    configure = "";
    build = ''
      compile '-Iinclude -DYAML_VERSION_MAJOR=0 -DYAML_VERSION_MINOR=2 -DYAML_VERSION_PATCH=5 -DYAML_VERSION_STRING="0.2.5"' src/*.c
      $AR rcsD libyaml.a src/*.o
    '';
    install = ''
      put $out/lib libyaml.a
      put $out/include include/yaml.h
      describe $out yaml-0.1 -lyaml
    '';
  };

  libxml2 = package {
    pname = "libxml2";
    version = "2.9.14";
    src = source "libxml2";
    debian = { archive = source "libxml2-debian"; wanted = "^(CVE-|schemas-|Reset-|Also-reset-|00[0-9][0-9]-)"; };
    libs = [ zlib xz ];
    programs = [ pkgconf ];
    configureFlags = [ "--without-python" "--with-zlib" "--with-lzma" "--without-debug" ];
    check = "echo '<a><b/></a>' | $out/bin/xmllint --xpath 'count(//b)' - | grep -q 1";
  };

  libarchive = package {
    pname = "libarchive";
    version = "3.6.2";
    src = source "libarchive";
    libs = [ zlib bzip2 xz lz4 zstd nettle libxml2 ];
    configureFlags = [ "--without-expat" "--without-openssl" "--with-nettle" "--disable-acl" "--disable-xattr" "--enable-bsdtar=static" "--enable-bsdcpio=static" ];
    programs = [ pkgconf ];
    check = "$out/bin/bsdtar --version | grep -q zstd";
  };

  freetype = package {
    pname = "freetype";
    version = "2.12.1";
    src = source "freetype";
    libs = [ zlib bzip2 libpng ];
    programs = [ pkgconf ];
    configure = "./configure --prefix=$out --disable-shared --with-zlib=yes --with-bzip2=yes --with-png=yes --without-harfbuzz --without-brotli";
  };

  mbedtls = package {
    pname = "mbedtls";
    version = "2.28.3";
    src = source "mbedtls";
    configure = "";
    build = ''make -j"$cores" -C library static CC="$CC" AR="$AR" CFLAGS="$CFLAGS"'';
    install = ''
      put $out/lib library/libmbedtls.a library/libmbedx509.a library/libmbedcrypto.a
      mkdir -p $out/include
      cp -R include/* $out/include/
    '';
  };

  libdeflate = package {
    pname = "libdeflate";
    version = "1.14";
    src = source "libdeflate";
    configure = "";
    build = ''make -j"$cores" CC="$CC" AR="$AR" CFLAGS="$CFLAGS" PREFIX=$out libdeflate.a gzip'';
    install = ''
      put $out/bin gzip
      mv $out/bin/gzip $out/bin/libdeflate-gzip
      put $out/lib libdeflate.a
      put $out/include libdeflate.h
      describe $out libdeflate -ldeflate
    '';
  };

  lzo = package {
    pname = "lzo";
    version = "2.10";
    src = source "lzo2";
  };

  libevent = package {
    pname = "libevent";
    version = "2.1.12";
    src = source "libevent";
    configureFlags = [ "--disable-openssl" "--disable-samples" "--disable-libevent-regress" ];
  };
}
