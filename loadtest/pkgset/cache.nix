# The directory that ./fetch fills, as it finds it itself.
let
  named = builtins.getEnv "KILN_PKGSET_SOURCES";
  xdg = builtins.getEnv "XDG_CACHE_HOME";
in
if named != "" then named
else if xdg != "" then xdg + "/kiln/pkgset"
else builtins.getEnv "HOME" + "/.cache/kiln/pkgset"
