"""The parts of ops/prove/clients."""

import argparse
import os
import pathlib
import subprocess
import sys

sys.path.insert(0, str(pathlib.Path(__file__).parent))

import cache
import cutoff
import kiln
import overhead

PARTS = {"overhead": overhead.prove, "cutoff": cutoff.prove, "cache": cache.prove}


def prove():
    parser = argparse.ArgumentParser(prog="ops/prove/clients")
    parser.add_argument("pkgset", help=argparse.SUPPRESS)
    parser.add_argument("parts", nargs="*", metavar="PART", help=", ".join(PARTS))
    parser.add_argument("--n", type=int, default=1000, help="derivations of each shape")
    parser.add_argument("--builders-n", type=int, default=50, help="derivations of each shape for Nix's own remote builders")
    parser.add_argument("--path-mib", type=int, default=1024, help="size of the large path")
    parser.add_argument("--paths", type=int, default=1000, help="small paths")
    args = parser.parse_args()
    work = pathlib.Path(os.environ["PROVE_DIR"])
    version = [subprocess.run([program, "--version"], capture_output=True, text=True, check=True).stdout.strip() for program in (kiln.KILN, "nix")]
    print(f"clients: {kiln.machine()}; {', '.join(version)}")
    claims = kiln.Claims()
    for part in args.parts or PARTS:
        print(f"{part}:")
        PARTS[part](claims, args, work)
    print(f"load at the end: {', '.join(f'{value:.1f}' for value in os.getloadavg())}")
    return claims.code()


if __name__ == "__main__":
    kiln.main(prove)
