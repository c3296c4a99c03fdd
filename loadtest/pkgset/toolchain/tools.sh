# The programs that builds find on PATH: busybox's applets by name, untar, and an install that does what makefiles ask.
# shellcheck shell=sh disable=SC2154 # the environment is the derivation
mkdir -p "$out/bin"
cp "$bootstrap/busybox" "$out/bin/busybox"
for applet in $(busybox --list); do
  case $applet in
    busybox | ar | strings | tar | make | dpkg | dpkg-deb | rpm | su | login) ;;
    *) ln -s busybox "$out/bin/$applet" ;;
  esac
done
"$cc/bin/cc" -O2 "$untar" -o "$out/bin/untar"
cp "$install" "$out/bin/install"
chmod 755 "$out/bin/install"
