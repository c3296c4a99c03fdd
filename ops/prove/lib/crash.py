"""Kills a farm, or half of it, in the middle of builds, and checks what is left and what follows. See ops/prove/crash."""

import argparse
import hashlib
import os
import pathlib
import random
import re
import subprocess
import time

import kiln
import nix

VICTIMS = ("farm", "worker", "coordinator")
# The coordinator says at this level which attempts start; the driver's own lines stay as they are.
LOGGING = {"KILN_LOG": "info,openraft=warn,kiln_coordinator=debug"}


class Run:
    """One farm from a copy of the seed farm, and what it builds."""

    def __init__(self, work, name, seed_farm, drvs, recipes):
        self.work, self.drvs, self.recipes = work, drvs, recipes
        self.logs = work / f"logs-{name}"
        self.dir = work / f"farm-{name}"
        if seed_farm:
            subprocess.run(["cp", "-a", "--reflink=auto", "--", str(seed_farm), str(self.dir)], check=True)
        self.farm = kiln.Daemons(self.dir, self.logs, LOGGING)

    def remove(self):
        subprocess.run(["rm", "-rf", "--", str(self.dir)], check=True)

    def build_command(self):
        return self.farm.client("build", *map(nix.real, self.drvs))

    def start_client(self):
        return kiln.Process("kiln build", self.build_command(), self.logs / "client.log")

    def build(self):
        log = self.logs / "client.log"
        return kiln.need(kiln.run(self.build_command(), log), "kiln build", log)

    # --- what the store holds, read from its files: what any web server would serve ---

    def store(self):
        return self.dir / "coordinator" / "store"

    def narinfos(self):
        """Returns {hash part: (fields, inode and time of the narinfo, inode and time of its NAR)}."""
        found = {}
        for file in self.store().glob("*.narinfo"):
            fields = dict(line.split(": ", 1) for line in file.read_text().splitlines() if ": " in line)
            blob = self.store() / fields["URL"]
            found[file.stem] = (fields, identity(file), identity(blob) if blob.exists() else None)
        return found

    def committed(self):
        """Returns the derivations whose outputs are all readable in the cache, or which the farm calls built."""
        built = {job["derivation"] for job in self.farm.json("jobs") if job["state"] == "built"}
        parts = {file.stem for file in self.store().glob("*.narinfo")}
        return built | {drv for drv, outputs in self.recipes.items() if all(hash_part(path) in parts for path in outputs.values())}

    def broken(self, known):
        """Returns words about every narinfo whose NAR is absent or is not what it says. `known` (paths checked before) is extended."""
        words = []
        for part, (fields, _, blob) in self.narinfos().items():
            if (part, blob) in known:
                continue
            if blob is None:
                words.append(f"{fields['StorePath']}: its NAR is absent")
            elif wrong := wrong_nar(self.store() / fields["URL"], fields):
                words.append(f"{fields['StorePath']}: {wrong}")
            else:
                known.add((part, blob))
        return words

    def hashes(self):
        """Returns {output path: NAR hash} of every derivation of the set."""
        paths = [path for outputs in self.recipes.values() for path in outputs.values()]
        return {info["path"]: info["narHash"] for info in self.farm.json("path-info", *paths)}

    def started(self):
        """Returns how often the coordinator's log says of a derivation that an attempt of it started, since the coordinator did."""
        counts = {}
        for line in self.farm.coordinator.said().splitlines():
            if '"started"' in line and (found := re.search(r'"derivation":"([^"]+)"', line)):
                counts[found[1]] = counts.get(found[1], 0) + 1
        return counts

    def wait_for_end(self, seconds):
        """Waits until no build is live, asking nobody to build: what was accepted must end by itself."""

        def ended():
            self.farm.coordinator.must_live()
            self.farm.worker.must_live()
            return all(build["state"] != "active" for build in self.farm.json("status")["builds"])

        kiln.wait_until("the build ends by itself after the restart", seconds, ended, pause=0.3)


def identity(file):
    status = file.stat()
    return (status.st_ino, status.st_mtime_ns, status.st_size)


def hash_part(path):
    return pathlib.PurePath(path).name.split("-")[0]


def wrong_nar(blob, fields):
    """Returns what is wrong with a stored NAR, decompressed by another program than the farm."""
    with subprocess.Popen(["zstd", "-dcq", str(blob)], stdout=subprocess.PIPE, stderr=subprocess.DEVNULL) as reader:
        hasher, size = hashlib.sha256(), 0
        while piece := reader.stdout.read(1 << 20):
            hasher.update(piece)
            size += len(piece)
    if reader.returncode != 0:
        return "its NAR does not decompress"
    if (hasher.hexdigest(), str(size)) != (nix.sha256_hex(fields["NarHash"]), fields["NarSize"]):
        return "its NAR has another hash or size"
    return None


def sets(pkgset, micro):
    """Returns what every round builds and what is built beforehand, as .drv paths, and the latter's name."""
    if micro:
        layered = [f"{pkgset}/micro.nix", "--argstr", "shape", "layered", "--arg", "refs", "true", "--arg", "n"]
        return nix.instantiate(*layered, str(micro)), nix.instantiate(*layered, "4", "--argstr", "seed", "warm"), "four derivations"
    # `tools` needs every other part of the toolchain.
    return nix.instantiate(pkgset, "-A", "small"), nix.instantiate(pkgset, "-A", "toolchain.tools"), "the toolchain"


def seed_farm(work, drvs, name):
    """Builds what is built beforehand and nothing else, and returns the run of the stopped farm."""
    run = Run(work, "seed", None, drvs, nix.derivations(drvs))
    with run.farm:
        ran = run.build()
    print(f"       built beforehand: {name} ({len(run.recipes)} derivations), in {ran.wall:.0f} s")
    return run


def reference(work, seed, drvs, recipes):
    """The undisturbed run: returns its hashes and wall seconds."""
    run = Run(work, "reference", seed.dir, drvs, recipes)
    with run.farm:
        wall = run.build().wall
        hashes, broken = run.hashes(), run.broken(set())
    run.remove()
    if broken:
        raise kiln.Failed("the undisturbed run left broken objects: " + "; ".join(broken))
    print(f"       undisturbed: {len(set(recipes) - set(seed.recipes))} derivations in {wall:.1f} s")
    return hashes, wall


class Tally:
    """What all rounds together showed."""

    def __init__(self):
        self.ended = self.alike = self.committed = 0
        self.rebuilt, self.changed, self.broken, self.failed = [], [], [], []


def round_of(work, number, victim, fraction, seed, drvs, recipes, expected, wall, tally):
    run = Run(work, f"round-{number}", seed.dir, drvs, recipes)
    known, client = set(), None
    try:
        with run.farm:
            client = run.start_client()
            time.sleep(fraction * wall)
            # Read before the kill: whatever is readable by then was committed.
            committed, objects = run.committed(), run.narinfos()
            counted = run.started()
            run.farm.kill(victim)
            broken = run.broken(known)
            client_left = settle_client(client, victim)
            run.farm.start()
            restarted = time.monotonic()
            run.wait_for_end(wall * 6 + 120)
            took = time.monotonic() - restarted
            # By now the farm has everything, and says so without building.
            log = run.logs / "again.log"
            again = kiln.run(run.build_command(), log)
            kiln.need(again, "kiln build after the end", log)
            rebuilt = rebuilt_of(run, victim, counted, committed)
            tell(run, number, victim, fraction, committed, took, client_left, rebuilt, broken + run.broken(known), objects, expected, tally)
    finally:
        if client:
            client.stop()
        run.remove()


def settle_client(client, victim):
    """A client whose coordinator died says so and ends; one whose worker died stays. Returns what it did, in words."""
    if victim == "worker":
        return "client stays"
    try:
        code = client.child.wait(60)
    except subprocess.TimeoutExpired:
        return "client waits"
    return f"client exit {code}"


def rebuilt_of(run, victim, counted, committed):
    """Returns the committed derivations of which an attempt started after the kill."""
    after = run.started()
    if victim == "worker":
        after = {name: count - counted.get(name, 0) for name, count in after.items()}
    return sorted(drv for drv in committed if after.get(pathlib.PurePath(drv).name, 0) > 0)


def tell(run, number, victim, fraction, committed, took, client_left, rebuilt, broken, objects, expected, tally):
    hashes, now = run.hashes(), run.narinfos()
    changed = [part for part, was in objects.items() if now.get(part, (None, None, None))[1:] != was[1:]]
    alike = hashes == expected
    tally.ended += 1
    tally.alike += alike
    tally.committed += len(committed)
    tally.rebuilt += rebuilt
    tally.changed += changed
    tally.broken += broken
    words = [f"built again: {name}" for name in rebuilt] + [f"written again: {part}" for part in changed] + broken
    words += [f"another hash: {path}" for path in expected if hashes.get(path) != expected[path]]
    print(
        f"       round {number}: {victim} killed at {fraction:.0%} ({len(committed)} of {len(run.recipes)} committed; {client_left});"
        f" ended by itself {took:.1f} s after the restart; {'hashes alike' if alike else 'HASHES DIFFER'}"
        + "".join(f"\n         {word}" for word in words)
    )


def prove():
    parser = argparse.ArgumentParser(prog="ops/prove/crash")
    parser.add_argument("pkgset", help=argparse.SUPPRESS)
    parser.add_argument("--rounds", type=int, default=10)
    parser.add_argument("--seed", type=int, default=random.SystemRandom().randrange(1 << 32), help="chooses the moments")
    parser.add_argument("--micro", type=int, default=0, metavar="N", help="build N trivial derivations in rows, not the small set")
    args = parser.parse_args()
    work, claims, tally = pathlib.Path(os.environ["PROVE_DIR"]), kiln.Claims(), Tally()
    print(f"crash: {kiln.machine()}; {args.rounds} rounds, --seed {args.seed}")
    drvs, before, name = sets(args.pkgset, args.micro)
    recipes = nix.derivations(drvs)
    seed = seed_farm(work, before, name)
    expected, wall = reference(work, seed, drvs, recipes)
    moments = random.Random(args.seed)
    for number in range(1, args.rounds + 1):
        victim, fraction = VICTIMS[(number - 1) % len(VICTIMS)], moments.uniform(0.05, 0.95)
        try:
            round_of(work, number, victim, fraction, seed, drvs, recipes, expected, wall, tally)
        except kiln.Failed as failed:
            tally.failed.append(number)
            print(f"       round {number}: {victim} killed at {fraction:.0%}: {failed}")
    rounds = args.rounds
    claims.check("builds that ended by themselves after a kill -9", f"{tally.ended} of {rounds}", "goal: all", tally.ended == rounds)
    claims.check("rounds with the hashes of the undisturbed run", f"{tally.alike} of {rounds}", "goal: all", tally.alike == rounds)
    claims.check(f"of {tally.committed} committed derivations, built again", len(tally.rebuilt), "goal: 0", not tally.rebuilt)
    claims.check("objects of the cache that were written again", len(tally.changed), "goal: 0", not tally.changed)
    claims.check("narinfos whose NAR is absent, cut or damaged", len(tally.broken), "goal: 0", not tally.broken)
    return claims.code()


if __name__ == "__main__":
    kiln.main(prove)
