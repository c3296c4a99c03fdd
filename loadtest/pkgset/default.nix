# A real package set, built hermetically from distribution sources. See README.md.
#
#   nix-instantiate loadtest/pkgset -A small        about a dozen packages (an attribute each), minutes
#   nix-instantiate loadtest/pkgset -A all          everything
#   nix-instantiate loadtest/pkgset -A packages.lua one package
#
# `sources`: the directory that ./fetch filled. `patched`: with Debian's patches in some base libraries, so that what needs them is rebuilt.
# `contentAddressed`: the packages' outputs are named by what they hold (Nix's experimental feature ca-derivations). `commented`: the name of a
# package whose source gets a comment more, so that it is built anew and comes out the same.
{ sources ? null
, patched ? false
, contentAddressed ? false
, commented ? null
, system ? builtins.currentSystem
}:
let
  cache = if sources != null then toString sources else import ./cache.nix;

  rows = builtins.listToAttrs (map (row: { inherit (row) name; value = row; }) (builtins.fromJSON (builtins.readFile ./sources.json)));

  # An input source: one file, checked by its hash, so that its store path needs no trust in the cache directory.
  source = name:
    let row = rows.${name}; in
    builtins.path {
      path = present (cache + "/files/" + row.file) "${row.set}";
      name = builtins.replaceStrings [ "~" ] [ "_" ] row.file;
      recursive = false;
      inherit (row) sha256;
    };

  busybox = import ./busybox.nix { path = present (cache + "/bootstrap/busybox") "small"; };

  # Says what to do about an absent source.
  present = path: set:
    if builtins.pathExists path then path
    else throw "the package set's source ${path} is absent: run loadtest/pkgset/fetch ${set}";

  toolchain = import ./toolchain.nix { inherit system source busybox; };

  packages = import ./packages.nix { inherit system source toolchain patched contentAddressed commented; };
in
assert system == "x86_64-linux" || throw "the package set's toolchain runs on x86_64-linux only, not on ${system}";
{
  inherit packages toolchain;
  inherit (packages.sets) small all;
}
