# What a set says about itself: derivations that read other outputs' closures, in both of the ways that Nix offers.
{ system, package, packages, toolchain, ... }:
let
  subjects = { inherit (packages) lua zstd xz libpng; };
  # The small set's programs in one directory of links: a path whose closure is the set.
  environment = derivation {
    name = "environment";
    inherit system;
    builder = "${toolchain.tools}/bin/sh";
    args = [ "-euc" ''
      mkdir -p $out/bin
      for package in $programs; do ln -s $package/bin/* $out/bin/; done
    '' ];
    PATH = "${toolchain.tools}/bin";
    programs = with packages; [ bzip2 dash ed expat lua lz4 make mawk pkgconf tree xxhash xz zstd ];
  };
in
{
  inherit environment;

  # exportReferencesGraph: the closures of some packages as text files in the build directory.
  closure-info = derivation {
    name = "closure-info";
    inherit system;
    builder = "${packages.dash}/bin/dash";
    args = [ "-euc" ''
      mkdir $out
      for graph in environment compiler; do sort -u $graph | grep "^$NIX_STORE/" >$out/$graph; done
    '' ];
    PATH = "${toolchain.tools}/bin";
    exportReferencesGraph = [ "environment" environment "compiler" toolchain.cc ];
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
