"""Starts a farm with something to look at, and has a browser look at it. See ops/prove/dashboard."""

import os
import pathlib
import subprocess
import sys

import kiln
import nix

ATTRIBUTES = ("program", "broken", "behind")


def main():
    script, shots = sys.argv[1], pathlib.Path(sys.argv[2])
    kiln.on_signals_exit()
    shots.mkdir(parents=True, exist_ok=True)
    work = pathlib.Path(os.environ["PROVE_DIR"])
    expression = pathlib.Path(__file__).with_name("dashboard.nix")
    arguments = [part for attribute in ATTRIBUTES for part in ("-A", attribute)]
    drvs = nix.instantiate(expression, *arguments, "--argstr", "seed", f"run-{os.getpid()}")
    with kiln.Up(work / "farm", work / "farm.log") as farm:
        built = kiln.run(farm.client("build", "--keep-going", *map(nix.real, drvs)), work / "client.log")
        if built.code != 1:
            raise kiln.Failed(f"a build with a failure ended with {built.code}, not 1\n{kiln.tail(work / 'client.log')}")
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
