# shellcheck shell=bash
# Real, sandboxed Nix as an oracle: what would Nix itself have built?
#
# Source this file, it is no program. The caller runs bash with `set -euo pipefail`, as root, on Debian 12.
#
#   nix_oracle_install                  installs nix-bin and busybox-static when they are absent, makes the build users
#   nix_oracle_open DIR                 makes or reopens a private Nix below DIR and points every nix command of this shell at it;
#                                       calls nix_oracle_install. The store's paths are named /nix/store/… and lie in
#                                       $NIX_ORACLE_STORE_DIR. Of the machine's own /nix only the locks of build users are used
#                                       (/nix/var/nix/userpool): Nix kills what else runs under a user that it takes, so every
#                                       Nix on the machine must see the same locks
#   nix_oracle_close                    undoes the environment of nix_oracle_open (DIR stays: the caller removes it)
#   nix_oracle_instantiate FILE ARG…    as nix-instantiate: prints one .drv path a line
#   nix_oracle_build PATH.drv…          builds in the sandbox without asking any cache; prints one output path a line.
#                                       Takes nix-store's options too (--check, -K, -j N, --keep-going)
#   nix_oracle_build_all FILE ARG…      instantiates, then builds
#   nix_oracle_info PATH…               prints a JSON array sorted by path: {"path", "narHash" (SRI), "narSize" (bytes), "references" (sorted)};
#                                       a .drv path stands for its outputs
#   nix_oracle_real PATH                prints where a store path lies on this machine's disk
#   nix_oracle_verify                   nix-store --verify --check-contents
#   nix_oracle_remove DIR               removes a private Nix, read-only store paths included
#
# Read from the environment: NIX_ORACLE_JOBS (builds at a time, default: the processors), NIX_ORACLE_CORES (NIX_BUILD_CORES of a
# build, default 2, the same for whoever is compared).
#
# Why so: Debian's nix-bin has no daemon, no configuration and no build users. Without `sandbox-fallback = false` a Nix that cannot
# make its sandbox builds outside of it and says nothing. Build users are a machine-wide limit, since they are locked by uid: with
# few of them, builds of other stores wait for each other.

NIX_ORACLE_USERS=32

nix_oracle_say() { printf 'nix-oracle: %s\n' "$*" >&2; }

nix_oracle_die() {
  nix_oracle_say "$*"
  return 1
}

nix_oracle_install() {
  [ "$(id -u)" = 0 ] || nix_oracle_die "the Nix sandbox with build users needs root; run this as root" || return 1
  local missing=()
  command -v nix-store >/dev/null || missing+=(nix-bin)
  nix_oracle_busybox >/dev/null || missing+=(busybox-static)
  command -v flock >/dev/null || missing+=(util-linux)
  command -v groupadd >/dev/null || missing+=(passwd)
  python3 -c 'import json' 2>/dev/null || missing+=(python3)
  if [ ${#missing[@]} -gt 0 ]; then
    nix_oracle_say "installing ${missing[*]}"
    if ! DEBIAN_FRONTEND=noninteractive apt-get install -qq -y --no-install-recommends "${missing[@]}" </dev/null >/dev/null 2>&1; then
      apt-get update -qq >/dev/null
      DEBIAN_FRONTEND=noninteractive apt-get install -qq -y --no-install-recommends "${missing[@]}" </dev/null >/dev/null
    fi
  fi
  nix_oracle_users
}

# Makes the group and its users; one process at a time, since provers run side by side.
nix_oracle_users() {
  (
    flock 9
    getent group nixbld >/dev/null || groupadd --system nixbld
    local n members
    members=",$(getent group nixbld | cut -d: -f4),"
    for n in $(seq 1 "$NIX_ORACLE_USERS"); do
      if ! getent passwd "nixbld$n" >/dev/null; then
        useradd --system --no-create-home --home-dir /var/empty --shell /usr/sbin/nologin --gid nixbld --groups nixbld "nixbld$n"
      elif [[ $members != *",nixbld$n,"* ]]; then
        usermod --append --groups nixbld "nixbld$n"
      fi
    done
  ) 9>/run/lock/nix-oracle-users
}

# Prints the path of a static busybox (no loader is named in its first page): the sandbox's /bin/sh, where no loader exists.
nix_oracle_busybox() {
  local path
  for path in "${KILN_BUSYBOX:-}" /usr/bin/busybox /bin/busybox; do
    if [ -n "$path" ] && [ -x "$path" ] && ! head -c 4096 "$path" | LC_ALL=C grep -qa '/ld-linux'; then
      readlink -f "$path"
      return 0
    fi
  done
  return 1
}

nix_oracle_open() {
  local dir=${1:?nix_oracle_open DIR} busybox
  nix_oracle_install || return 1
  awk '$5 == "/" { found = 1 } END { exit !found }' /proc/self/mountinfo ||
    nix_oracle_die "Nix's sandbox needs / to be a mount point; for a chroot, run \`mount --bind DIR DIR\` before entering DIR" || return 1
  busybox=$(nix_oracle_busybox) || nix_oracle_die "no static busybox found; apt-get install busybox-static" || return 1
  mkdir -p "$dir"/{conf,home,root/nix/store,root/nix/var/nix}
  dir=$(cd "$dir" && pwd -P)
  chmod 755 "$dir" "$dir/root"
  # Nix sets this mode once; given from the start, the store is never seen with another.
  chgrp nixbld "$dir/root/nix/store" && chmod 1775 "$dir/root/nix/store"
  cat >"$dir/conf/nix.conf" <<CONF
sandbox = true
sandbox-fallback = false
sandbox-paths = /bin/sh=$busybox
build-users-group = nixbld
substituters =
max-jobs = ${NIX_ORACLE_JOBS:-$(nproc)}
cores = ${NIX_ORACLE_CORES:-2}
experimental-features = nix-command
CONF
  NIX_ORACLE_SAVED=$(export -p | grep -E '^declare -x (HOME|NIX_[A-Z_]*|XDG_[A-Z_]*)=' || true)
  unset NIX_PATH NIX_STORE_DIR NIX_STATE_DIR NIX_LOG_DIR NIX_USER_CONF_FILES
  export NIX_CONF_DIR=$dir/conf NIX_REMOTE="local?root=$dir/root"
  NIX_ORACLE_HOME=$dir/home
  NIX_ORACLE_ROOT=$dir/root
  # shellcheck disable=SC2034 # for the caller
  NIX_ORACLE_STORE_DIR=$dir/root/nix/store
}

nix_oracle_close() {
  unset NIX_CONF_DIR NIX_REMOTE NIX_ORACLE_ROOT NIX_ORACLE_HOME NIX_ORACLE_STORE_DIR
  eval "${NIX_ORACLE_SAVED:-}"
}

# Runs a nix command with a home of its own, so that no user's configuration or cache takes part.
nix_oracle_run() {
  [ -n "${NIX_ORACLE_ROOT:-}" ] || nix_oracle_die "call nix_oracle_open DIR first" || return 1
  HOME=$NIX_ORACLE_HOME XDG_CONFIG_HOME=$NIX_ORACLE_HOME/.config XDG_CACHE_HOME=$NIX_ORACLE_HOME/.cache "$@"
}

# The package set looks for its sources below the caller's cache directory: said once, before HOME changes. Nothing here collects garbage,
# so Nix's hint about roots is left out.
nix_oracle_instantiate() {
  KILN_PKGSET_SOURCES=${KILN_PKGSET_SOURCES:-${XDG_CACHE_HOME:-$HOME/.cache}/kiln/pkgset} nix_oracle_run nix-instantiate "$@" \
    2> >(grep -v 'add-root' >&2) | sed 's/!.*//'
}

nix_oracle_build() {
  nix_oracle_run nix-store --realise --no-gc-warning "$@"
}

nix_oracle_build_all() {
  local drvs
  drvs=$(nix_oracle_instantiate "$@") || return 1
  # shellcheck disable=SC2086 # store paths hold no blanks
  nix_oracle_build $drvs
}

nix_oracle_info() {
  nix_oracle_run nix path-info --json "$@" | python3 -c '
import base64, json, sys
def sri(text):
    kind, value = text.split(":", 1)
    if len(value) == 64:
        return kind + "-" + base64.b64encode(bytes.fromhex(value)).decode()
    number = 0
    for char in value:
        number = number * 32 + "0123456789abcdfghijklmnpqrsvwxyz".index(char)
    return kind + "-" + base64.b64encode(number.to_bytes(32, "little")).decode()
rows = json.load(sys.stdin)
for row in rows:
    if "narHash" not in row:
        sys.exit("nix-oracle: %s is not valid in the oracle store" % row["path"])
rows = [{"path": r["path"], "narHash": r["narHash"] if "-" in r["narHash"][:8] else sri(r["narHash"]),
         "narSize": r["narSize"], "references": sorted(r["references"])} for r in rows]
json.dump(sorted(rows, key=lambda r: r["path"]), sys.stdout, indent=0)
print()'
}

nix_oracle_real() { printf '%s\n' "${NIX_ORACLE_ROOT:?call nix_oracle_open DIR first}$1"; }

nix_oracle_verify() { nix_oracle_run nix-store --verify --check-contents; }

nix_oracle_remove() {
  local dir=${1:?nix_oracle_remove DIR}
  [ -d "$dir/root/nix" ] || nix_oracle_die "$dir holds no private Nix" || return 1
  chmod -R u+w "$dir" 2>/dev/null || true
  rm -rf -- "$dir"
}
