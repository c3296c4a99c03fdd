"""Exhausts a worker in every way, a build at a time, beside builds that must not notice. See ops/prove/exhaustion."""

import argparse
import hashlib
import json
import os
import pathlib
import re
import time

import kiln
import nix

SLOTS = 4
LIMITS = {
    "pids_max": 128,
    "disk_bytes_max": 32 << 20,
    "disk_inodes_max": 2000,
    "log_bytes_max": 1 << 20,
    "silence_ms_max": 4000,
    "wall_ms_max": 60_000,
}
MEMORY_MIB = 256
# In the order of exhaustion.nix: what is exhausted, the class, what the message must say.
KINDS = (
    ("memory", "out of memory", r"was killed by its memory limit \(it used up to \d+ MiB\)"),
    ("processes", "limit exceeded", rf"wanted more than {LIMITS['pids_max']} processes and threads at a time"),
    ("disk", "limit exceeded", r"used \d+ bytes of disk, its limit is \d+"),
    ("files", "limit exceeded", r"made \d+ files and directories, its limit is \d+"),
    ("log", "limit exceeded", rf"wrote more than {LIMITS['log_bytes_max']} bytes of log, its limit"),
    ("silence", "limit exceeded", r"timed out: it wrote no log for 4 s, its silence limit"),
)


def knobs(disk):
    """What the worker's configuration has beside the usual. Four builds at a time, whatever the machine."""
    limits = "".join(f"{name} = {value}\n" for name, value in LIMITS.items())
    return f"slots = {SLOTS}\ncores = {SLOTS}\nmemory_mib = {MEMORY_MIB}\ndisk = '{disk}'\n[limits]\n{limits}"


class Client:
    """A `kiln build --json` of some derivations."""

    def __init__(self, farm, drvs, log):
        self.log = log
        self.process = kiln.Process("kiln build", farm.client("build", "--json", *map(nix.real, drvs)), log)

    def lines(self):
        """Waits for its end and returns its exit code, its events and the build."""
        code = self.process.child.wait(300)
        # Its words for people go to the same file.
        lines = [json.loads(line) for line in self.process.said().splitlines() if line.startswith("{")]
        if not lines or "state" not in lines[-1]:
            raise kiln.Failed(f"kiln build printed no build\n{kiln.tail(self.log)}")
        return code, lines[:-1], lines[-1]


def span(events, drv, last):
    """Returns when a derivation's one attempt started and ended; nothing if there was not exactly one."""
    of_drv = [event for event in events if event["derivation"] == drv]
    started = [event["at"] for event in of_drv if event["event"] == "started"]
    ended = [event["at"] for event in of_drv if event["event"] == last]
    return (started[0], ended[0]) if len(started) == 1 and len(ended) == 1 else None


def nar_hash_of_file(content):
    """The SHA-256 of the archive of one file that is not executable."""

    def text(data):
        return len(data).to_bytes(8, "little") + data + bytes(-len(data) % 8)

    parts = [b"nix-archive-1", b"(", b"type", b"regular", b"contents", content, b")"]
    return hashlib.sha256(b"".join(map(text, parts))).hexdigest()


def expected(name):
    return nar_hash_of_file(f"{name}\n".encode() * 5000)


def wrong_end(index, code, events, drv):
    """Returns what is wrong with how the exhausting build ended."""
    what, wanted, words = KINDS[index % len(KINDS)]
    failed = [event for event in events if event["event"] == "failed" and event["derivation"] == drv]
    if code != 1 or len(failed) != 1:
        return f"{what}: exit code {code}, {len(failed)} failures"
    if failed[0]["class"] != wanted or not re.search(words, failed[0]["message"]):
        return f"{what}: {failed[0]['class']}: {failed[0]['message']}"
    if not span(events, drv, "failed"):
        return f"{what}: tried several times"
    return None


class Tally:
    """What all rounds together showed."""

    def __init__(self):
        self.ended = {what: [0, 0] for what, _, _ in KINDS}
        self.unharmed = self.beside = self.neighbours = 0


def round_of(farm, index, drvs, work, tally):
    exhausting, *beside = drvs
    logs = work / "logs"
    neighbours = Client(farm, beside, logs / f"beside-{index + 1}.log")
    # All must run before anything is exhausted, whoever takes how long to start.
    kiln.wait_until("three builds start", 60, lambda: neighbours.process.said().count('"started"') == len(beside), pause=0.02)
    one = Client(farm, [exhausting], logs / f"exhausting-{index + 1}.log")
    code, events, _ = one.lines()
    others = neighbours.lines()
    words = []
    count = tally.ended[KINDS[index % len(KINDS)][0]]
    count[1] += 1
    if wrong := wrong_end(index, code, events, exhausting):
        words.append(wrong)
    else:
        count[0] += 1
    own = span(events, exhausting, "failed")
    words += neighbours_of(farm, beside, others, own, tally)
    farm.worker.must_live()
    if words:
        print(f"       round {index + 1}:" + "".join(f"\n         {word}" for word in words))


def neighbours_of(farm, drvs, others, own, tally):
    """Counts the builds that were not harmed, and returns words about those that were."""
    code, events, build = others
    words = [] if code == 0 else [f"the builds beside: exit code {code}"]
    paths = {drv: made.get("out") for drv, made in build["outputs"].items()}
    infos = {info["path"]: nix.sha256_hex(info["narHash"]) for info in farm.json("path-info", *paths.values())} if paths else {}
    for drv in drvs:
        tally.neighbours += 1
        path, ran = paths.get(drv), span(events, drv, "built")
        if not ran or infos.get(path) != expected(pathlib.PurePath(drv).name.split("-", 1)[1].removesuffix(".drv")):
            words.append(f"{drv}: {'other content' if ran else 'not built at its first try'}")
            continue
        tally.unharmed += 1
        tally.beside += bool(own) and ran[0] <= own[1] and own[0] <= ran[1]
    return words


def left_behind(farm):
    """What builds left on the worker: directories, control groups, mounts. Stores that stand ready for the next builds are no build's."""
    worker = farm.dir / "worker"
    found = [str(path) for path in (worker / "build").iterdir()]
    found += [line.split()[4] for line in open("/proc/self/mountinfo") if f" {worker}/" in line]
    found = [path for path in found if not path.startswith(f"{worker}/build/.store-")]
    for home in pathlib.Path("/sys/fs/cgroup").rglob(f"kiln.builds-{kiln.WORKER.replace('-', '_')}-*"):
        found += [str(path) for path in home.iterdir() if path.is_dir()]
    return found


def prove():
    parser = argparse.ArgumentParser(prog="ops/prove/exhaustion")
    parser.add_argument("nix", help=argparse.SUPPRESS)
    parser.add_argument("--rounds", type=int, default=100)
    parser.add_argument("--disk", default="auto", help="how builds are held to their part of the disk")
    args = parser.parse_args()
    work, claims, tally = pathlib.Path(os.environ["PROVE_DIR"]), kiln.Claims(), Tally()
    arguments = ["--argstr", "busybox", os.environ["PROVE_BUSYBOX"], "--argstr", "seed", str(time.time_ns()), "--arg", "rounds", str(args.rounds)]
    drvs = nix.instantiate(args.nix, *arguments)
    with kiln.Daemons(work / "farm", work / "logs", worker_knobs=knobs(args.disk)) as farm:
        guarantees = farm.json("workers")[0]["guarantees"]
        print(f"exhaustion: {kiln.machine()}; {args.rounds} rounds; control groups: {guarantees['cgroup']}; disk: {guarantees['disk']}")
        for index in range(args.rounds):
            round_of(farm, index, drvs[4 * index : 4 * index + 4], work, tally)
        left = kiln.wait_until("what builds left is removed", 60, lambda: left_behind(farm) == [] and ["nothing"])
        sessions = farm.worker.said().count("welcomed")
    for what, (ended, tried) in tally.ended.items():
        claims.check(f"builds that exhausted their {what} and ended with its class and message", f"{ended} of {tried}", "goal: all", ended == tried)
    of = f"of {tally.neighbours}"
    claims.check("builds beside them, built at their first try with the right bytes", f"{tally.unharmed} {of}", "goal: all", tally.unharmed == tally.neighbours)
    claims.check("of these, that ran while it was exhausted", f"{tally.beside} {of}", "goal: all", tally.beside == tally.neighbours)
    claims.check("sessions of the worker with its coordinator", sessions, "goal: 1", sessions == 1)
    claims.check("left by builds: directories, mounts, control groups", left[0], "goal: nothing", left == ["nothing"])
    return claims.code()


if __name__ == "__main__":
    kiln.main(prove)
