# shellcheck shell=bash
# Shell functions that bring a Debian machine to where Kiln can be built and tested. Sourced, never run.
# Every function is idempotent, says what it does, and needs no answer from a person.

# Prints a step that is about to begin.
say() { printf '\n==> %s\n' "$*"; }

# Prints an error that says what to do next, and ends the script.
die() {
	printf 'error: %s\n' "$*" >&2
	exit 1
}

# Runs a command as root: directly, or through sudo where we are not root.
as_root() {
	if [ "$(id -u)" = 0 ]; then
		"$@"
	elif command -v sudo >/dev/null; then
		sudo -n "$@" || die "'$*' needs root: run this script as root, or allow sudo without a password"
	else
		die "'$*' needs root: run this script as root"
	fi
}

# need_packages PACKAGE…: installs the Debian packages that are missing. Their lists are read again only if they do not do.
need_packages() {
	command -v apt-get >/dev/null || die "this script installs Debian packages ($*), and there is no apt-get here: install them yourself and run the cargo commands of README.md"
	local missing=() package
	for package in "$@"; do
		dpkg-query -W -f '${Status}' "$package" 2>/dev/null | grep -q '^install ok installed' || missing+=("$package")
	done
	if [ ${#missing[@]} = 0 ]; then
		echo "Debian packages that are needed are installed: $*"
		return 0
	fi
	say "Installing Debian packages: ${missing[*]}"
	install_packages "${missing[@]}" 2>/dev/null && return 0
	as_root apt-get update -qq </dev/null || die "'apt-get update' failed: see above; the machine's package sources must be reachable"
	install_packages "${missing[@]}" || die "'apt-get install ${missing[*]}' failed: see above"
}

install_packages() {
	as_root env DEBIAN_FRONTEND=noninteractive apt-get install -y -qq --no-install-recommends "$@" </dev/null >/dev/null
}

# need_rust: finds cargo, also where rustup put it without the shell's knowing, and checks that it is new enough.
need_rust() {
	command -v cargo >/dev/null || PATH="${CARGO_HOME:-$HOME/.cargo}/bin:$PATH"
	local wanted found
	wanted=$(sed -n 's/^rust-version = "\(.*\)"/\1/p' Cargo.toml)
	command -v cargo >/dev/null || die "there is no cargo: install Rust $wanted or newer, for example with rustup"
	found=$(cargo --version | cut -d' ' -f2)
	[ "$(printf '%s\n%s\n' "$wanted" "$found" | sort -V | head -n 1)" = "$wanted" ] ||
		die "cargo is $found, Kiln needs Rust $wanted or newer: run 'rustup update', or install it with rustup"
	export PATH
}

# need_root: building in namespaces with limits takes root for now.
need_root() {
	[ "$(id -u)" = 0 ] || die "the sandbox of builds needs root: run this script as root"
}

# Prints where cargo puts what it builds.
target_dir() {
	cargo metadata --format-version 1 --no-deps --locked | sed -n 's/.*"target_directory":"\([^"]*\)".*/\1/p'
}
