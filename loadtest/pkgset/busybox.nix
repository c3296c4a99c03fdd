# The static busybox at `path` as a store directory that holds one file, `busybox`: an applet is chosen by the name a program is
# called by, so the name must stay as it is.
{ path }:
builtins.path {
  name = "busybox";
  path = builtins.dirOf path;
  filter = file: _: builtins.baseNameOf file == "busybox";
}
