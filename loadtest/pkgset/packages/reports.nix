# What a set says about itself: derivations that read other outputs' closures, in both of the ways that Nix offers.
{ system, package, packages, toolchain, ... }:
let
  subjects = { inherit (packages) lua zstd xz libpng; };
in
{
  # exportReferencesGraph: the closures of some packages as text files in the build directory.
  closure-info = derivation {
    name = "closure-info";
    inherit system;
    builder = "${packages.dash}/bin/dash";
    args = [ "-euc" ''
      mkdir $out
      sort -u zstd | grep "^$NIX_STORE/" >$out/zstd
      grep -c . libpng >$out/libpng-lines
    '' ];
    PATH = "${toolchain.tools}/bin";
    exportReferencesGraph = [ "zstd" packages.zstd "libpng" packages.libpng ];
  };

  # __structuredAttrs: the derivation's attributes, and the closure graph, as JSON; read by the set's own Lua.
  index = derivation {
    name = "index";
    inherit system;
    builder = "${packages.lua}/bin/lua";
    args = [ ../build/index.lua ];
    __structuredAttrs = true;
    exportReferencesGraph.graph = builtins.attrValues subjects;
    subjects = builtins.mapAttrs (_: subject: { inherit (subject) pname version outputs; path = subject.outPath; }) subjects;
    limits = { entries = 100; nested = [ 1 [ true null "quote\"d" ] ]; };
  };
}
