"""Ways to have derivations built that Nix's own store has: Nix by itself, Nix on another store or machine, and a farm over each face.

A way is `build(asked, log)`, which returns wall and CPU seconds: of the client, and of everything that worked for it, until that rests.
"""

import os
import pathlib
import subprocess

import kiln
import nix


class Asked:
    """Trivial derivations that nobody has built, evaluated: the client's own store has them."""

    def __init__(self, micro, shape, count, seed):
        self.micro, self.count = micro, count
        self.args = ["--argstr", "shape", shape, "--arg", "n", str(count), "--argstr", "seed", seed]
        self.drvs = nix.instantiate(micro, *self.args)


class Cost:
    """What a build took, in seconds."""

    def __init__(self, wall, cpu):
        self.wall, self.cpu = wall, cpu


class Faces:
    """Everything that is measured, ready to use until the block ends."""

    def __init__(self, farm, sshd, work):
        self.farm, self.sshd, self.work = farm, sshd, work
        self.daemon = None
        self.own = f"local?root={os.environ['NIX_ORACLE_ROOT']}"

    def __enter__(self):
        self.socket, self.root = self.work / "socket", self.work / "daemon-root"
        command = self.farm.client("daemon", "--socket", str(self.socket), "--to", str(self.root))
        self.daemon = kiln.Process("kiln daemon", command, self.work / "daemon.log")
        kiln.wait_until("kiln daemon listens", 20, self.socket.exists)
        self.farm_program = self._program("kiln-stdio", " ".join(self.farm.client("daemon", "--stdio")))
        self.hook = self._program("kiln-hook", " ".join([*self.farm.client("build-hook"), "--locks", str(self.work / "locks")]) + ' "$@"')
        # The other machine: another store of the same Nix, made with a database before any clock runs.
        self.remote_root = self.work / "remote"
        (self.remote_root / "nix/store").mkdir(parents=True)
        subprocess.run(["chgrp", "nixbld", self.remote_root / "nix/store"], check=True)
        (self.remote_root / "nix/store").chmod(0o1775)
        environment = f"NIX_REMOTE='local?root={self.remote_root}' NIX_CONF_DIR='{os.environ['NIX_CONF_DIR']}' HOME='{os.environ['NIX_ORACLE_HOME']}'"
        self.nix_daemon = self._program("nix-daemon", f'{environment} exec nix-daemon "$@"')
        self.nix_serve = self._program("nix-store", f'{environment} exec nix-store "$@"')
        return self

    def __exit__(self, *_):
        if self.daemon:
            self.daemon.stop()

    def _program(self, name, line):
        path = self.work / f"program-{name}"
        path.write_text(f"#!/bin/sh\n{line if 'exec' in line else 'exec ' + line}\n")
        path.chmod(0o755)
        return path

    def _run(self, command, log, environment=None, servants=()):
        before = sum(kiln.settled_cpu(process.pid) for process in servants)
        ran = kiln.need(kiln.run(command, log, env={**nix.env(), **(environment or {})}), " ".join(map(str, command[:4])), log)
        served = sum(kiln.settled_cpu(process.pid) for process in servants) - before
        return Cost(ran.wall, ran.cpu + served)

    def _build_on(self, store, asked, log, environment=None, servants=()):
        # This Nix looks for a derivation that is named by its path in the other store; of an expression it knows where it is.
        command = ["nix", "build", "--eval-store", self.own, "--store", store, "--no-link", "-j2", "-f", asked.micro, *asked.args]
        return self._run(command, log, environment, servants)

    def _realise(self, asked, log, options, environment=None, servants=()):
        return self._run(["nix-store", "--realise", "--no-gc-warning", *options, *asked.drvs], log, environment, servants)

    # --- Nix alone

    def nix_local(self, asked, log):
        return self._realise(asked, log, ["-j2"])

    def nix_remote_store(self, asked, log):
        return self._build_on(self.sshd.store("ssh-ng", self.nix_daemon), asked, log, self.sshd.environment, [self.sshd.process])

    def _nix_builders(self, scheme, program, asked, log):
        state = self.work / "state"
        (state / "current-load").mkdir(parents=True, exist_ok=True)
        builders = f"{self.sshd.store(scheme, program)} x86_64-linux - 2"
        environment = {**self.sshd.environment, "NIX_STATE_DIR": str(state)}
        return self._realise(asked, log, ["-j0", "--option", "builders", builders], environment, [self.sshd.process])

    def nix_builders_ssh(self, asked, log):
        return self._nix_builders("ssh", self.nix_serve, asked, log)

    def nix_builders_ssh_ng(self, asked, log):
        return self._nix_builders("ssh-ng", self.nix_daemon, asked, log)

    # --- the farm

    def farm_socket(self, asked, log):
        return self._build_on(f"unix://{self.socket}?root={self.root}", asked, log, None, [self.farm.process, self.daemon])

    def farm_ssh_ng(self, asked, log):
        store = self.sshd.store("ssh-ng", self.farm_program)
        return self._build_on(store, asked, log, self.sshd.environment, [self.farm.process, self.sshd.process])

    def farm_hook(self, asked, log):
        options = ["-j0", "--option", "build-hook", str(self.hook), "--option", "builders", "farm"]
        before = sum(kiln.cpu_of_tree(agent) for agent in self._hook_agents())
        cost = self._realise(asked, log, options, None, [self.farm.process])
        cost.cpu += sum(kiln.settled_cpu(agent) for agent in self._hook_agents()) - before
        return cost

    def _hook_agents(self):
        """What hooks share is kept by a process that is nobody's child."""
        return [int(file.read_text()) for file in (self.work / "locks").glob("*.pid")]


def log_of(work, name):
    return pathlib.Path(work) / f"{name}.log"
