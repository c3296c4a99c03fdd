"""Measures what a sandbox costs in CPU and wall time, and what the bytes of an output cost. See ops/prove/sandbox-cost.

What counts, from set-up to a static program executed and reaped: user and system time of the launcher's whole process, background threads
included, and of all its children, as the kernel's own accounts give it. Kiln is asked for many sandboxes by one process, as a worker is;
so is the floor. Network namespaces that wait for later builds are made before the floor's clock runs, and are told apart for Kiln, whose
thread makes them meanwhile. Bubblewrap is a process for each sandbox. Nix is one
`nix-store --realise` for each derivation, with all its children: its database, and the output's way into the store, are part of it.
What kernel threads do later (freeing namespaces and groups) counts for nobody.
"""

import argparse
import ctypes
import json
import os
import pathlib
import statistics
import subprocess
import time

import kiln
import nix

COUNTS = (0, 100, 1000)
# Inputs that differ from one round to the next, where Kiln is asked for sets that change.
DRIFT = 10
CPU_MS_MAX = 4.0
FLOOR_RATIO_MAX = 1.5
BWRAP_ROUNDS = {0: 20, 100: 10, 1000: 2}
NIX_ROUNDS = {0: 5, 100: 5, 1000: 3}
CANDIDATES = 100


class Spent:
    """Median CPU and wall milliseconds of one way to start a sandbox; one entry a pass."""

    def __init__(self):
        self.cpu, self.wall = [], []

    def add(self, cpu, wall):
        self.cpu.append(cpu)
        self.wall.append(wall)

    def show(self):
        return f"{statistics.median(self.cpu):.2f} ms CPU, {statistics.median(self.wall):.2f} ms wall"


def printed(command):
    """Returns the JSON that a program prints."""
    done = subprocess.run(list(map(str, command)), stdin=subprocess.DEVNULL, capture_output=True, text=True, check=False)
    if done.returncode != 0:
        raise kiln.Failed(f"{command[0]}: exit code {done.returncode}: {done.stderr.strip()}")
    return json.loads(done.stdout)


def make_inputs(work, count):
    inputs = work / "inputs"
    for number in range(count):
        (inputs / str(number)).mkdir(parents=True)
        (inputs / str(number) / "file").write_text(f"{number}\n")
    return inputs


def floor(spent, work, count, rounds):
    got = printed([work / "floor", count, rounds, work / "noop", work / "inputs"])
    spent.add(got["cpu_ms"], got["wall_ms"])


def launcher(spent, work, count, rounds, groups, drift):
    got = printed([kiln.KILN, count, rounds, groups, drift, work / "noop", work / "inputs"])
    spent.add(got["cpu_ms"], got["wall_ms"])
    return got


def bubblewrap(spent, work, count):
    inputs = [arg for number in range(count) for arg in ("--ro-bind", f"{work}/inputs/{number}", f"/nix/store/{number}")]
    command = ["bwrap", "--unshare-all", "--proc", "/proc", "--dev", "/dev", "--ro-bind", f"{work}/noop", "/program", *inputs, "/program"]
    log = work / "bwrap.log"
    for _ in range(BWRAP_ROUNDS[count]):
        ran = kiln.need(kiln.run(command, log), "bwrap", log)
        spent.add((ran.cpu + cpu_of_orphans()) * 1000, ran.wall * 1000)


def adopt_orphans():
    """Makes what a child leaves running a child of ours: bubblewrap ends without waiting for the process that it started."""
    PR_SET_CHILD_SUBREAPER = 36
    if ctypes.CDLL(None, use_errno=True).prctl(PR_SET_CHILD_SUBREAPER, 1, 0, 0, 0) != 0:
        raise kiln.Failed(f"adopt orphans: {os.strerror(ctypes.get_errno())}")


def cpu_of_orphans():
    """Waits for all children that are left, and returns their CPU seconds."""
    seconds = 0.0
    while True:
        try:
            _, _, usage = os.wait3(0)
        except ChildProcessError:
            return seconds
        seconds += usage.ru_utime + usage.ru_stime


def nix_build(spent, work, count):
    log = work / "nix.log"
    source = pathlib.Path(__file__).parent / "sandbox-cost" / "inputs.nix"
    for _ in range(NIX_ROUNDS[count]):
        args = ["--arg", "dir", str(work / "inputs"), "--arg", "noop", str(work / "noop"), "--arg", "count", str(count)]
        drvs = nix.instantiate(str(source), *args, "--argstr", "seed", f"{count}-{time.time_ns()}")
        build = ["nix-store", "--realise", "--no-gc-warning", *drvs]
        ran = kiln.need(kiln.run(build, log, env=nix.env()), "nix-store --realise", log)
        spent.add(ran.cpu * 1000, ran.wall * 1000)


def prove_count(claims, work, count, args):
    ways = {name: Spent() for name in ("floor", "none", "all", "drift", "bwrap", "nix")}
    parts = []
    for _ in range(args.passes):
        floor(ways["floor"], work, count, args.rounds)
        parts.append(launcher(ways["none"], work, count, args.rounds, "none", 0))
        described = launcher(ways["all"], work, count, args.rounds, "all", 0)["groups"]
        if count:
            launcher(ways["drift"], work, count, args.rounds, "none", DRIFT)
    bubblewrap(ways["bwrap"], work, count)
    nix_build(ways["nix"], work, count)
    launching, child, ahead = (statistics.median(part[key] for part in parts) for key in ("launcher_ms", "child_ms", "ahead_ms"))
    label = f"{count:,} inputs"
    claims.tell(f"{label}: floor", ways["floor"].show())
    claims.tell(f"{label}: Kiln without control groups", f"{ways['none'].show()} (launching thread {launching:.2f}, child {child:.2f}; apart: made ahead {ahead:.2f})")
    claims.tell(f"{label}: Kiln with control groups, {described}", ways["all"].show())
    if count:
        claims.tell(f"{label}: Kiln without control groups, {DRIFT} of them others each time", ways["drift"].show())
    claims.tell(f"{label}: bubblewrap", ways["bwrap"].show())
    claims.tell(f"{label}: nix-build", ways["nix"].show())
    return {name: statistics.median(way.cpu) for name, way in ways.items() if way.cpu}


def judge(claims, cpu):
    for name, words in (("none", "without"), ("all", "with")):
        spent = cpu[100][name]
        claims.check(f"100 inputs, {words} control groups: CPU", f"{spent:.2f} ms", f"goal: at most {CPU_MS_MAX:.0f} ms", spent <= CPU_MS_MAX)
    ours, least = cpu[1000]["none"], cpu[1000]["floor"]
    goal = f"goal: at most {FLOOR_RATIO_MAX}"
    claims.check("1,000 inputs: CPU beside the floor", f"{ours:.2f} / {least:.2f} ms = {ours / least:.2f}", goal, ours / least <= FLOOR_RATIO_MAX)


def bytes_on_their_way(claims, work, tree):
    """The stages over the same bytes, and sha256sum over the same NAR."""
    got = printed([pathlib.Path(kiln.KILN).with_name("nar_cost"), tree, CANDIDATES, work])
    nar, log = work / "tree.nar", work / "sha256sum.log"
    with open(nar, "wb") as out:
        kiln.need(kiln.run(["nix-store", "--dump", tree], log, env=nix.env(), out=out), "nix-store --dump", log)
    if nar.stat().st_size != got["nar_bytes"]:
        raise kiln.Failed(f"Nix's NAR of {tree} has {nar.stat().st_size} bytes, ours {got['nar_bytes']}")
    runs = [kiln.need(kiln.run(["sha256sum", nar], log), "sha256sum", log) for _ in range(3)]
    rate = lambda seconds: got["nar_bytes"] / 1e9 / seconds  # noqa: E731
    cpu, wall = rate(min(ran.cpu for ran in runs)), rate(min(ran.wall for ran in runs))
    claims.tell(f"bytes of {tree} as a NAR, in memory", f"{got['nar_bytes']}; {CANDIDATES} candidates")
    claims.tell("sha256sum of the same bytes", f"{cpu:.3f} GB/s of CPU, {wall:.3f} of wall time")
    for name, stage in got["stages"].items():
        ratio = f"{stage['cpu'] / cpu:.2f} and {stage['wall'] / wall:.2f} of sha256sum"
        claims.tell(name, f"{stage['cpu']:.3f} GB/s of CPU, {stage['wall']:.3f} of wall time; {ratio}")


def prove():
    parser = argparse.ArgumentParser(prog="ops/prove/sandbox-cost")
    parser.add_argument("--rounds", type=int, default=100, help="sandboxes of each kind in one pass")
    parser.add_argument("--passes", type=int, default=3, help="the kinds take turns so many times; the median pass counts")
    parser.add_argument("--tree", default="/usr/lib/x86_64-linux-gnu", help="the tree whose bytes go the way of an output")
    args = parser.parse_args()
    work = pathlib.Path(os.environ["WORK_DIR"])
    print(f"cost of a sandbox: {kiln.machine()}")
    claims = kiln.Claims()
    adopt_orphans()
    # The examples' warm-up rounds change inputs too.
    make_inputs(work, max(COUNTS) + DRIFT * (args.rounds + 50))
    cpu = {count: prove_count(claims, work, count, args) for count in COUNTS}
    judge(claims, cpu)
    bytes_on_their_way(claims, work, args.tree)
    print(f"load at the end: {', '.join(f'{value:.1f}' for value in os.getloadavg())}")
    return claims.code()


if __name__ == "__main__":
    kiln.main(prove)
