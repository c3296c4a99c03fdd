# The toolchain, from two foreign programs: the `zig` wheel (a clang with a musl libc in source form) and a static busybox.
# Everything is static musl; C only.
{ system, source, busybox }:
let
  # A stage before there is a package builder: one script, run by busybox itself.
  stage = name: attrs: script: derivation ({
    inherit name system;
    builder = "${busybox}/busybox";
    args = [ "sh" "-eu" script ];
  } // attrs);
in
rec {
  zig = stage "zig-0.13.0" { outputs = [ "out" "lib" ]; wheel = source "zig"; } ./toolchain/zig.sh;

  sysroot = stage "sysroot-musl-1.2.5" { zig = zig.out; lib = zig.lib; } ./toolchain/sysroot.sh;

  cc = stage "cc-18.1.6" { zig = zig.out; inherit sysroot; } ./toolchain/cc.sh;

  tools = stage "tools-1.35.0" { bootstrap = busybox; inherit cc; untar = ./toolchain/untar.c; install = ./toolchain/install; } ./toolchain/tools.sh;
}
