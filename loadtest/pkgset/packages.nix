# The packages. Each says what Debian's sources want on a static musl system, and no more; order is that of need.
{ system, source, toolchain, patched, contentAddressed, commented }:
let
  mk = import ./package.nix { inherit system toolchain patched contentAddressed commented; };
  package = mk packages.make;

  groups = {
    inherit system source toolchain patched package packages;
    # Before there is a make.
    bare = mk null;
  };

  base = import ./packages/base.nix groups;
  libraries = import ./packages/libraries.nix groups;
  programs = import ./packages/programs.nix groups;
  reports = import ./packages/reports.nix groups;

  packages = base // libraries // programs // reports;
in
packages // {
  sets = {
    small = base // { inherit (reports) closure-info environment index; };
    all = packages;
  };
}
