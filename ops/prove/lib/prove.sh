# shellcheck shell=bash
# What every prover starts with. Sourced, never run; the caller has `set -euo pipefail`.
#
#   prove_open TOPIC PACKAGE…   installs what is missing, builds Kiln in release mode, makes a directory of its own for the run.
#                               Afterwards $KILN is the binary and $PROVE_DIR the directory; at the end of the script what it
#                               started and the directory are gone
#   prove_nix DIR               opens a private, sandboxed Nix below DIR (nix-oracle.sh), for this shell and for prover programs
#
# Read from the environment: KILN (a binary to measure, in place of a build of this tree), PROVE_PARENT (where the run's directory
# is made: a disk, since durable writes are part of what is measured; default /var/tmp), PROVE_KEEP=1 (the directory stays).

PROVE_ROOT=$(cd "$(dirname "${BASH_SOURCE[0]}")/../../.." && pwd)
# shellcheck source=ops/lib/setup.sh
. "$PROVE_ROOT/ops/lib/setup.sh"
# shellcheck source=ops/prove/lib/nix-oracle.sh
. "$PROVE_ROOT/ops/prove/lib/nix-oracle.sh"
export PYTHONPATH=$PROVE_ROOT/ops/prove/lib PYTHONDONTWRITEBYTECODE=1 PYTHONUNBUFFERED=1

prove_open() {
	local topic=${1:?prove_open TOPIC PACKAGE…}
	shift
	need_root
	need_packages python3 "$@"
	if [ -z "${KILN:-}" ]; then
		need_packages gcc libc6-dev
		say "Building Kiln in release mode"
		local here=$PWD
		cd "$PROVE_ROOT"
		need_rust
		cargo build --release --locked --quiet -p kiln
		KILN=$(target_dir)/release/kiln
		cd "$here"
	fi
	[ -x "$KILN" ] || die "there is no program '$KILN'"
	KILN=$(readlink -f "$KILN")
	mkdir -p "${PROVE_PARENT:-/var/tmp}"
	PROVE_DIR=$(mktemp -d "${PROVE_PARENT:-/var/tmp}/kiln-prove-$topic.XXXXXX")
	chmod 755 "$PROVE_DIR"
	trap prove_close EXIT
	trap 'exit 130' INT TERM
	export KILN PROVE_DIR
	unset KILN_FARM KILN_IDENTITY KILN_DIR KILN_LOG
}

prove_close() {
	local status=$?
	[ -z "${PROVE_PID:-}" ] || kill -TERM "$PROVE_PID" 2>/dev/null || true
	[ -z "${PROVE_PID:-}" ] || wait "$PROVE_PID" 2>/dev/null || true
	if [ "${PROVE_KEEP:-}" = 1 ]; then
		say "Kept: $PROVE_DIR"
	else
		chmod -R u+w "$PROVE_DIR" 2>/dev/null || true
		rm -rf -- "$PROVE_DIR"
	fi
	exit "$status"
}

prove_nix() {
	nix_oracle_open "$1"
	export NIX_ORACLE_HOME NIX_ORACLE_ROOT NIX_ORACLE_STORE_DIR
}

# Runs a prover program so that an interrupt reaches it: it stops the farm that it started.
prove_run() {
	python3 "$@" &
	PROVE_PID=$!
	local status=0
	wait "$PROVE_PID" || status=$?
	PROVE_PID=
	return "$status"
}
