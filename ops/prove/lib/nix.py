"""The private, sandboxed Nix that `prove_nix` opened in the shell above: what it is asked here, it is asked as nix-oracle.sh does."""

import json
import os
import subprocess

from kiln import Failed

BASE32 = "0123456789abcdfghijklmnpqrsvwxyz"


def env(root=None):
    """The environment of Nix's commands; `root` names another private store than the oracle's."""
    home = os.environ["NIX_ORACLE_HOME"]
    made = {**os.environ, "HOME": home, "XDG_CONFIG_HOME": f"{home}/.config", "XDG_CACHE_HOME": f"{home}/.cache"}
    if root:
        made["NIX_REMOTE"] = f"local?root={root}"
    return made


def output(*command, root=None):
    """Returns what a command prints."""
    done = subprocess.run(command, stdin=subprocess.DEVNULL, capture_output=True, env=env(root), check=False)
    if done.returncode != 0:
        raise Failed(f"{' '.join(command[:4])}…: exit code {done.returncode}: {done.stderr.decode(errors='replace').strip()[-2000:]}")
    return done.stdout.decode()


def instantiate(*args):
    """Evaluates, and returns the .drv paths."""
    sources = os.environ.get("KILN_PKGSET_SOURCES") or os.path.join(
        os.environ.get("XDG_CACHE_HOME") or os.path.expanduser("~/.cache"), "kiln/pkgset"
    )
    done = subprocess.run(
        ["nix-instantiate", *args],
        stdin=subprocess.DEVNULL,
        capture_output=True,
        env={**env(), "KILN_PKGSET_SOURCES": sources},
        check=False,
    )
    if done.returncode != 0:
        raise Failed(f"nix-instantiate {' '.join(args)}: {done.stderr.decode(errors='replace').strip()}")
    paths = [line.split("!")[0] for line in done.stdout.decode().split()]
    return list(dict.fromkeys(paths))


def real(path):
    """Where a store path of the oracle lies on this machine's disk."""
    return os.environ["NIX_ORACLE_ROOT"] + path


def path_infos(paths, root=None):
    """Returns {path: info} as `nix path-info --json` says, for valid paths only; narHash is SRI or nix32, as that Nix writes it."""
    infos = {}
    paths = list(paths)
    for start in range(0, len(paths), 500):
        rows = json.loads(output("nix", "path-info", "--json", *paths[start : start + 500], root=root))
        infos.update({row["path"]: row for row in rows if row.get("narHash")})
    return infos


def derivations(drvs):
    """Returns {drv path: {output: path}} of the whole closure of derivations."""
    shown = json.loads(output("nix", "show-derivation", "--recursive", *drvs))
    return {drv: {name: made.get("path") for name, made in recipe["outputs"].items()} for drv, recipe in shown.items()}


def sha256_hex(text):
    """Reads `sha256:<nix32 or hex>`, `sha256-<base64>` or bare nix32, and returns hexadecimal digits."""
    import base64

    if text.startswith("sha256-"):
        return base64.b64decode(text[7:]).hex()
    text = text.removeprefix("sha256:")
    if len(text) == 64:
        return text
    number = 0
    for char in text:
        number = number * 32 + BASE32.index(char)
    return number.to_bytes(32, "little").hex()
