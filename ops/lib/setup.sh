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

# need_packages PACKAGE…: installs the Debian packages that are missing.
need_packages() {
	command -v apt-get >/dev/null || die "this script installs Debian packages ($*), and there is no apt-get here: install them yourself and run the cargo commands of README.md"
	local missing=() package
	for package in "$@"; do
		dpkg-query -W -f '${Status}' "$package" 2>/dev/null | grep -q '^install ok installed' || missing+=("$package")
	done
	[ ${#missing[@]} = 0 ] && return
	say "Installing Debian packages: ${missing[*]}"
	as_root env DEBIAN_FRONTEND=noninteractive apt-get update -qq
	as_root env DEBIAN_FRONTEND=noninteractive apt-get install -y -qq --no-install-recommends "${missing[@]}" >/dev/null
}

# need_rust: finds cargo, also where rustup put it without the shell's knowing.
need_rust() {
	command -v cargo >/dev/null || PATH="$HOME/.cargo/bin:$PATH"
	command -v cargo >/dev/null || die "there is no cargo: install the Rust toolchain named in Cargo.toml (rust-version) or a newer one"
	export PATH
}

# need_root: building in namespaces with limits takes root for now.
need_root() {
	[ "$(id -u)" = 0 ] || die "the sandbox needs root: run this script as root"
}
