# The package builder's Nix side: fills in what a package does not say and works out what it needs, directly and through its libraries.
{ system, toolchain, patched, contentAddressed, commented }:
let
  inherit (toolchain) cc tools;

  # Keeps the first of each, in order: the order of -I and -L is part of the build.
  unique = builtins.foldl' (seen: x: if builtins.elem x seen then seen else seen ++ [ x ]) [ ];

  # Libraries are linked statically, so whoever links one also needs what it needs.
  closure = libs: unique (builtins.concatMap (lib: [ (develop lib) ] ++ (lib.needs or [ ])) libs);

  # The output that holds headers and archives.
  develop = lib: lib.dev or lib;

  defaults = {
    outputs = [ "out" ];
    programs = [ ];
    libs = [ ];
    configure = "autoconf";
    configureFlags = [ ];
    makeFlags = [ ];
    build = "make";
    install = "make";
    installTargets = [ "install" ];
    optimise = "-O2";
    cflags = "";
    cppflags = "";
    ldflags = "";
    prepare = "";
    check = "";
  };

  # Debian's patches, when asked for: { archive; wanted; } with `wanted` an extended regular expression over the names of the series.
  patching = debian:
    if patched && debian != null then { patches = debian.archive; patchesWanted = debian.wanted; } else { patches = ""; patchesWanted = ""; };
  # Named by what they hold, when asked for.
  addressing = if contentAddressed then { __contentAddressed = true; outputHashMode = "recursive"; outputHashAlgo = "sha256"; } else { };

  # A change that changes nothing that is compiled: a comment below the last line of every C source.
  commenting = pname: prepare:
    if pname == commented
    then { prepare = prepare + "\nfor file in $(find . -name '*.c'); do echo '/* reviewed */' >>\"$file\"; done\n"; }
    else { };
in
make: args:
let
  all = defaults // args;
  needs = closure all.libs;
  drv = derivation (
    builtins.removeAttrs all [ "pname" "debian" ]
    // patching (args.debian or null)
    // addressing
    // commenting all.pname all.prepare
    // {
      name = "${all.pname}-${all.version}";
      inherit system cc tools;
      programs = (if make == null then [ ] else [ make ]) ++ all.programs;
      libs = needs;
      builder = "${tools}/bin/sh";
      args = [ "-eu" ./build/package.sh ];
    }
  );
in
drv // { inherit needs; inherit (all) pname version; }
