"""What a trivial derivation costs over each face, beside Nix alone, its remote store and its remote builders.

What counts: the client from its start to its end, and the processor time of everything that worked for it. Everybody gets derivations
that lie in the client's own store; a client that has them built elsewhere evaluates once more, which is part of its figures.
"""

import time

import kiln
from faces import Asked, Faces, log_of
from sshd import Sshd

SHAPES = ("wide", "deep")
BUILDERS_RATIO_MAX = 0.1


def prove(claims, args, work):
    micro = f"{args.pkgset}/micro.nix"
    here = work / "overhead"
    here.mkdir()
    seed = str(time.time_ns())
    with kiln.Up(here / "farm", here / "farm.log") as farm, Sshd(here / "sshd") as sshd, Faces(farm, sshd, here) as faces:
        ways = {
            "nix, local": (faces.nix_local, args.n),
            "nix, remote store (ssh-ng)": (faces.nix_remote_store, args.n),
            "nix, --builders ssh": (faces.nix_builders_ssh, args.builders_n),
            "nix, --builders ssh-ng": (faces.nix_builders_ssh_ng, args.builders_n),
            "farm, --store unix": (faces.farm_socket, args.n),
            "farm, --store ssh-ng": (faces.farm_ssh_ng, args.n),
            "farm, build hook": (faces.farm_hook, args.n),

        }
        # Everybody has what every build needs, and a database with tables, before the clock runs.
        for number, (build, _) in enumerate(ways.values()):
            build(Asked(micro, "wide", 2, f"{seed}-warm-{number}"), log_of(here, "warm"))
        for shape in SHAPES:
            costs = {}
            for number, (name, (build, count)) in enumerate(ways.items()):
                cost = build(Asked(micro, shape, count, f"{seed}-{number}"), log_of(here, f"{shape}-{number}"))
                costs[name] = cost.wall * 1000 / count
                claims.tell(f"{shape}, {name}, {count} derivations", f"{costs[name]:.1f} ms wall, {cost.cpu * 1000 / count:.1f} ms CPU a derivation")
            judge(claims, shape, costs)


def judge(claims, shape, costs):
    for name, ours in costs.items():
        if not name.startswith("farm"):
            continue
        builders = costs["nix, --builders ssh-ng"]
        ratio = ours / builders
        goal = f"goal: at most {BUILDERS_RATIO_MAX}"
        claims.check(f"{shape}: {name} beside --builders ssh-ng", f"{ours:.1f} / {builders:.0f} ms = {ratio:.3f}", goal, ratio <= BUILDERS_RATIO_MAX)
        for rival in ("nix, remote store (ssh-ng)", "nix, local"):
            theirs = costs[rival]
            claims.check(f"{shape}: {name} beside {rival}", f"{ours:.1f} / {theirs:.1f} ms = {ours / theirs:.2f}", "goal: under 1", ours < theirs)
