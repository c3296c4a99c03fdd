"""Compares what a farm built with what sandboxed Nix built from the same derivations. See ops/prove/parity."""

import os
import pathlib
import subprocess
import sys
import urllib.request

import kiln
import nix

# Programs of the set that are run from what came back: package, arguments, and a word that they must print.
PROGRAMS = (
    ("lua", ["bin/lua", "-v"], "Lua"),
    ("xz", ["bin/xz", "--version"], "xz"),
    ("zstd", ["bin/zstd", "--version"], "Zstandard"),
    ("sqlite", ["bin/sqlite3", "--version"], "3."),
    ("curl", ["bin/curl", "--version"], "curl"),
    ("gawk", ["bin/gawk", "--version"], "GNU Awk"),
    ("bzip2", ["bin/bzip2", "--help"], "bzip2"),
    ("dash", ["bin/dash", "-c", "echo dash runs"], "dash runs"),
)


def build_with_nix(drvs, work):
    log = work / "nix.log"
    command = ["nix-store", "--realise", "--no-gc-warning", *drvs]
    return kiln.need(kiln.run(command, log, env=nix.env()), "nix-store --realise", log)


def build_with_kiln(farm, drvs, work):
    """Returns wall seconds and the CPU seconds of farm and client."""
    log = work / "client.log"
    before = kiln.settled_cpu(farm.process.pid)
    client = kiln.run(farm.client("build", *map(nix.real, drvs)), log)
    kiln.need(client, "kiln build", log)
    return client.wall, kiln.settled_cpu(farm.process.pid) - before + client.cpu


class Facts:
    """What is compared of one output."""

    def __init__(self, nar_hash, nar_size, references):
        self.nar_hash, self.nar_size, self.references = nix.sha256_hex(nar_hash), int(nar_size), tuple(sorted(references))

    def differences(self, other):
        return [name for name in ("nar_hash", "nar_size", "references") if getattr(self, name) != getattr(other, name)]


def facts_of_json(info):
    return Facts(info["narHash"], info["narSize"], info["references"])


def facts_of_narinfo(cache, path):
    """Asks the binary cache, as any Nix client would."""
    hash_part = pathlib.PurePath(path).name.split("-")[0]
    try:
        with urllib.request.urlopen(f"{cache}/{hash_part}.narinfo", timeout=60) as answer:
            text = answer.read().decode()
    except OSError as error:
        raise kiln.Failed(f"the farm's cache has no narinfo of {path}: {error}") from error
    fields = dict(line.split(": ", 1) for line in text.splitlines() if ": " in line)
    if fields["StorePath"] != path:
        raise kiln.Failed(f"the narinfo of {path} names {fields['StorePath']}")
    references = [f"/nix/store/{name}" for name in fields.get("References", "").split()]
    return Facts(fields["NarHash"], fields["NarSize"], references)


def farm_facts(farm, paths):
    infos = {}
    for start in range(0, len(paths), 500):
        infos.update({info["path"]: info for info in farm.json("path-info", "-r", *paths[start : start + 500])})
    return infos


def compare(made, theirs, ours, cache):
    """Returns {path: words} of every output that differs; `made` are the outputs' paths."""
    differing = {}
    for path in made:
        if path not in theirs:
            raise kiln.Failed(f"Nix did not build {path}, though everything that needs it was built")
        wanted = facts_of_json(theirs[path])
        if path not in ours:
            differing[path] = "the farm does not have it"
            continue
        found = [*wanted.differences(facts_of_json(ours[path])), *(f"{name} in its narinfo" for name in wanted.differences(facts_of_narinfo(cache, path)))]
        if found:
            differing[path] = ", ".join(found)
    return differing


def reproducible(drv, work):
    """Whether Nix, asked to build it again, makes the same."""
    log = work / "check.log"
    return kiln.run(["nix-store", "--realise", "--check", "--no-gc-warning", drv], log, env=nix.env()).code == 0


def judge_differences(claims, differing, made, work):
    ours = 0
    for path, words in differing.items():
        same_again = reproducible(made[path], work)
        ours += same_again
        print(f"       differs: {path}: {words}; under Nix alone it is {'reproducible' if same_again else 'not reproducible'} ({made[path]})")
    claims.check("outputs that differ from Nix's, of those that Nix itself makes alike twice", ours, "goal: 0", ours == 0)
    claims.check("outputs that Nix itself does not make alike twice", len(differing) - ours, "goal: 0, each is listed", len(differing) == ours)


def copy_back(claims, farm, paths, work):
    """Copies everything from the farm's cache to an empty store that trusts only the farm's key, and verifies it there."""
    root, log = work / "copied", work / "copy.log"
    (root / "nix/store").mkdir(parents=True)
    trust = ["--option", "trusted-public-keys", farm.beacon["public_key"], "--option", "require-sigs", "true"]
    copied = kiln.run(["nix", "copy", *trust, "--from", farm.beacon["cache"], *paths], log, env=nix.env(root))
    kiln.need(copied, "nix copy", log)
    arrived = nix.path_infos(paths, root)
    unsigned = [path for path, info in arrived.items() if not info.get("signatures")]
    claims.check("outputs copied back by `nix copy`, signatures required", f"{len(arrived)} of {len(paths)}", "goal: all", len(arrived) == len(paths))
    claims.check("copied outputs without the farm's signature", len(unsigned), "goal: 0", not unsigned)
    verified = kiln.run(["nix-store", "--verify", "--check-contents"], log, env=nix.env(root))
    words = "clean" if verified.code == 0 else f"exit code {verified.code}\n{kiln.tail(log)}"
    claims.check("nix-store --verify --check-contents of what was copied", words, "goal: clean", verified.code == 0)
    claims.tell("copying back", f"{copied.wall:.1f} s wall, {copied.cpu:.1f} s CPU of the client")
    return root


def run_programs(claims, root, paths):
    """Runs programs of the set where they were copied to, as they would run on any machine: with that directory as root."""
    ran, broken = [], []
    for name, command, word in PROGRAMS:
        found = [path for path in paths if path[44:].startswith(name + "-") and (pathlib.Path(f"{root}{path}") / command[0]).exists()]
        if not found:
            continue
        program = [f"{found[0]}/{command[0]}", *command[1:]]
        done = subprocess.run(["chroot", str(root), *program], stdin=subprocess.DEVNULL, capture_output=True, text=True, errors="replace", check=False)
        (ran if done.returncode == 0 and word in done.stdout + done.stderr else broken).append(name)
    claims.check("programs run from what was copied", f"{len(ran)} ({', '.join(ran)})", "goal: at least 3", len(ran) >= 3)
    claims.check("programs that do not run", ", ".join(broken) or "none", "goal: none", not broken)


def prove():
    pkgset, attribute = sys.argv[1:3]
    work, claims = pathlib.Path(os.environ["PROVE_DIR"]), kiln.Claims()
    print(f"parity of '{attribute}': {kiln.machine()}")
    drvs = nix.instantiate(pkgset, "-A", attribute)
    recipes = nix.derivations(drvs)
    made = {path: drv for drv, outputs in recipes.items() for path in outputs.values()}
    print(f"       {len(drvs)} roots, {len(recipes)} derivations, {len(made)} outputs", flush=True)
    with kiln.Up(work / "farm", work / "farm.log") as farm:
        wall, cpu = build_with_kiln(farm, drvs, work)
        print(f"       the farm built in {wall:.0f} s wall, {cpu:.0f} s CPU", flush=True)
        had = sum(1 for path in made if pathlib.Path(nix.real(path)).exists())
        theirs = build_with_nix(drvs, work)
        print(f"       Nix built in {theirs.wall:.0f} s wall, {theirs.cpu:.0f} s CPU ({had} outputs were there from an earlier run)", flush=True)
        infos, farm_infos = nix.path_infos(made), farm_facts(farm, sorted(made))
        differing = compare(made, infos, farm_infos, farm.beacon["cache"])
        size = sum(info["narSize"] for path, info in farm_infos.items() if path in made)
        compressed = sum(info["downloadSize"] for path, info in farm_infos.items() if path in made)
        claims.check("outputs compared by NAR hash, size and references", len(made), "goal: every output of every derivation", len(made) > 0)
        judge_differences(claims, differing, made, work)
        claims.tell("bytes", f"{size} as NARs, {compressed} as the farm stores them")
        if not had:
            claims.tell("wall time, farm / Nix", f"{wall:.0f} s / {theirs.wall:.0f} s")
            claims.tell("CPU, farm with client / Nix", f"{cpu:.0f} s / {theirs.cpu:.0f} s")
        root = copy_back(claims, farm, sorted(made), work)
        run_programs(claims, root, sorted(made))
    return claims.code()


if __name__ == "__main__":
    kiln.main(prove)
