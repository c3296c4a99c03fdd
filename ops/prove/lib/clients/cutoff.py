"""What is built after a change of a base library that leaves its output's content as it was: with content-addressed derivations the farm
builds the library again, finds what it has, and builds nothing above it; with derivations addressed by their inputs, everything above.
"""

import json
import subprocess

import kiln
import nix

LIBRARY = "zlib"


def prove(claims, args, work):
    here = work / "cutoff"
    here.mkdir()
    with kiln.Up(here / "farm", here / "farm.log") as farm:
        built = {}
        for kind in ("addressed by inputs", "addressed by content"):
            options = ["--arg", "contentAddressed", "true"] if kind.endswith("content") else []
            first = build(farm, instantiate(args.pkgset, *options), here)
            commented = instantiate(args.pkgset, *options, "--argstr", "commented", LIBRARY)
            built[kind] = build(farm, commented, here)
            claims.tell(f"packages {kind}", f"{first} derivations built; with a comment added to {LIBRARY}'s source, {built[kind]} more")
        with_cutoff, without = built["addressed by content"], built["addressed by inputs"]
        claims.check(
            f"derivations built after a change of {LIBRARY} that changes no output", f"{with_cutoff}, {without} without early cutoff",
            "goal: 1, the library alone", with_cutoff == 1 and without > 1,
        )


def instantiate(pkgset, *args):
    return nix.instantiate(pkgset, "-A", "small", "--option", "experimental-features", "nix-command ca-derivations", *args)


def build(farm, drvs, here):
    """Builds on the farm, and returns how many derivations were really built."""
    done = subprocess.run(
        farm.client("build", "--json", *map(nix.real, drvs)), stdin=subprocess.DEVNULL, capture_output=True, text=True, check=False
    )
    (here / "client.log").write_text(done.stdout + done.stderr)
    if done.returncode != 0:
        raise kiln.Failed(f"kiln build: exit code {done.returncode}\n{kiln.tail(here / 'client.log')}")
    events = [json.loads(line) for line in done.stdout.splitlines() if line.startswith("{")]
    return sum(event.get("event") == "started" for event in events)
