"""Measures wall and CPU time per trivial derivation of a farm and of Nix, and the farm's resident memory. See ops/prove/overhead.

What counts: Nix is one `nix-store --realise -j2` and every process below it. Kiln is the whole farm with every process below it,
until it rests, and the `kiln build` that asks it. Evaluation happens once, before, and is reported apart.
"""

import argparse
import os
import pathlib
import statistics
import subprocess
import time

import kiln
import nix

SHAPES = ("wide", "deep")
RATIO_MAX = 0.5
CPU_MS_MAX = 10.0


class Case:
    """What one shape cost, per derivation, in milliseconds; one entry a round."""

    def __init__(self):
        self.kiln_wall, self.kiln_cpu, self.nix_wall, self.nix_cpu = [], [], [], []


def evaluate(micro, shape, count, seed):
    """Returns the .drv paths that nothing else needs, and the wall milliseconds that evaluating took."""
    started = time.monotonic()
    drvs = nix.instantiate(micro, "--argstr", "shape", shape, "--arg", "n", str(count), "--argstr", "seed", seed)
    return drvs, (time.monotonic() - started) * 1000


def build_with_nix(drvs, work):
    log = work / "nix.log"
    return kiln.need(kiln.run(["nix-store", "--realise", "--no-gc-warning", "-j2", *drvs], log, env=nix.env()), "nix-store --realise", log)


def build_with_kiln(farm, drvs, work):
    """Returns wall seconds, CPU seconds of the farm, and CPU seconds of the client."""
    log, out = work / "client.log", work / "client.out"
    before = kiln.settled_cpu(farm.process.pid)
    with open(out, "wb") as printed:
        client = kiln.run(farm.client("build", *map(nix.real, drvs)), log, out=printed)
    kiln.need(client, "kiln build", log)
    paths = out.read_text().split()
    if len(paths) != len(drvs):
        raise kiln.Failed(f"kiln build printed {len(paths)} output paths for {len(drvs)} derivations")
    return client.wall, kiln.settled_cpu(farm.process.pid) - before, client.cpu


def measure(farm, micro, shape, count, seed, case, work):
    drvs, evaluation_ms = evaluate(micro, shape, count, seed)
    made = build_with_nix(drvs, work)
    wall, farm_cpu, client_cpu = build_with_kiln(farm, drvs, work)
    per = 1000 / count
    case.nix_wall.append(made.wall * per)
    case.nix_cpu.append(made.cpu * per)
    case.kiln_wall.append(wall * per)
    case.kiln_cpu.append((farm_cpu + client_cpu) * per)
    print(
        f"       {shape}, {count} derivations, a derivation: kiln {wall * per:.1f} ms wall, {farm_cpu * per:.2f} + {client_cpu * per:.2f} ms CPU"
        f" (farm + client); nix {made.wall * per:.1f} ms wall, {made.cpu * per:.1f} ms CPU; evaluation {evaluation_ms / count:.2f} ms"
    )


def judge(claims, shape, case):
    kiln_wall, kiln_cpu, nix_wall, nix_cpu = (
        statistics.median(values) for values in (case.kiln_wall, case.kiln_cpu, case.nix_wall, case.nix_cpu)
    )
    goal = f"goal: under {RATIO_MAX}"
    for what, ours, theirs in (("wall time", kiln_wall, nix_wall), ("CPU", kiln_cpu, nix_cpu)):
        ratio = ours / theirs
        claims.check(f"{shape}: {what} per derivation beside Nix", f"{ours:.1f} / {theirs:.1f} ms = {ratio:.2f}", goal, ratio < RATIO_MAX)
    claims.check(f"{shape}: CPU per derivation", f"{kiln_cpu:.2f} ms", f"goal: under {CPU_MS_MAX:.0f} ms", kiln_cpu < CPU_MS_MAX)


def mib(size):
    return f"{size / (1 << 20):.0f} MiB"


def tell_memory(claims, name, pid):
    resident, proportional, largest = kiln.memory(pid)
    claims.tell(f"memory of {name}", f"resident {mib(resident)}, proportional {mib(proportional)}, largest so far {mib(largest)}")


def daemons_memory(claims, micro, count, seed, work):
    """The same work with coordinator and worker apart, for their memory."""
    drvs, _ = evaluate(micro, "wide", count, seed)
    with kiln.Daemons(work / "daemons", work / "daemons-logs") as farm:
        log = work / "client.log"
        kiln.need(kiln.run(farm.client("build", *map(nix.real, drvs)), log), "kiln build", log)
        kiln.settled_cpu(farm.coordinator.pid)
        for process in (farm.coordinator, farm.worker):
            tell_memory(claims, f"the {process.name} after {count} derivations", process.pid)


def prove():
    parser = argparse.ArgumentParser(prog="ops/prove/overhead")
    parser.add_argument("micro", help=argparse.SUPPRESS)
    parser.add_argument("--n", type=int, default=1000, help="derivations of each shape")
    parser.add_argument("--repeat", type=int, default=1, help="rounds; the median counts")
    args = parser.parse_args()
    work = pathlib.Path(os.environ["PROVE_DIR"])
    seed = f"{time.time_ns()}"
    print(f"overhead: {kiln.machine()}; {subprocess.run([kiln.KILN, '--version'], capture_output=True, text=True, check=True).stdout.strip()}")
    claims, cases = kiln.Claims(), {shape: Case() for shape in SHAPES}
    with kiln.Up(work / "farm", work / "farm.log") as farm:
        tell_memory(claims, "an idle farm (kiln up, one process)", farm.process.pid)
        # Both have what every build needs, and a database with tables, before the clock runs.
        warm, _ = evaluate(args.micro, "wide", 4, f"{seed}-warm")
        build_with_nix(warm, work)
        build_with_kiln(farm, warm, work)
        for number in range(args.repeat):
            for shape in SHAPES:
                measure(farm, args.micro, shape, args.n, f"{seed}-{number}", cases[shape], work)
        for shape in SHAPES:
            judge(claims, shape, cases[shape])
        tell_memory(claims, f"the farm after {2 * args.n * args.repeat} derivations", farm.process.pid)
    daemons_memory(claims, args.micro, args.n, f"{seed}-apart", work)
    print(f"load at the end: {', '.join(f'{value:.1f}' for value in os.getloadavg())}")
    return claims.code()


if __name__ == "__main__":
    kiln.main(prove)
