"""Starts a farm that builds a real package set, and has a browser look at it. See ops/prove/dashboard."""

import contextlib
import os
import pathlib
import subprocess
import sys

import kiln
import nix

ATTRIBUTES = ("program", "broken", "behind")


def instantiate(*attributes):
    expression = pathlib.Path(__file__).with_name("dashboard.nix")
    arguments = [part for attribute in attributes for part in ("-A", attribute)]
    return [nix.real(drv) for drv in nix.instantiate(expression, *arguments, "--argstr", "seed", f"run-{os.getpid()}")]


def main():
    script, shots, pkgset = sys.argv[1], pathlib.Path(sys.argv[2]), sys.argv[3]
    kiln.on_signals_exit()
    shots.mkdir(parents=True, exist_ok=True)
    work = pathlib.Path(os.environ["PROVE_DIR"])
    drvs, talker = instantiate(*ATTRIBUTES), instantiate("talker")
    real = [nix.real(drv) for drv in nix.instantiate(pkgset, "-A", "small")]
    with kiln.Up(work / "farm", work / "farm.log") as farm, contextlib.ExitStack() as building:
        # Both are cancelled when the browser has seen enough.
        building.callback(kiln.Process("a talking build", farm.client("build", *talker), work / "talker.log").stop)
        building.callback(kiln.Process("the package set's build", farm.client("build", *real), work / "set.log").stop)
        built = kiln.run(farm.client("build", "--keep-going", *drvs), work / "client.log")
        if built.code != 1:
            raise kiln.Failed(f"a build with a failure ended with {built.code}, not 1\n{kiln.tail(work / 'client.log')}")
        # Its sources come first; much of it waits for its toolchain.
        kiln.wait_until("the package set is being built", 120, lambda: farm.json("status")["jobs"]["blocked"])
        token = (farm.dir / "admin-token").read_text().strip()
        environment = {**os.environ, "KILN_URL": farm.beacon["cache"], "KILN_TOKEN": token, "KILN_SHOTS": str(shots)}
        looked = subprocess.run(["node", script], env=environment, check=False)
    print(f"Pictures: {shots}")
    sys.exit(looked.returncode)


try:
    main()
except kiln.Failed as failed:
    print(f"error: {failed}", file=sys.stderr)
    sys.exit(1)
