"""A real sshd on loopback, with keys of its own, for one user: who runs the prover."""

import pathlib
import socket
import subprocess
import sys

import kiln

ADOPTER = str(pathlib.Path(__file__).with_name("adopter.py"))


class Sshd:
    """Listens on a free port of loopback until the block ends. `environment` is what Nix needs to reach it without questions."""

    def __init__(self, directory):
        self.dir, self.process = pathlib.Path(directory), None

    def __enter__(self):
        self.dir.mkdir(parents=True)
        for name in ("host", "user"):
            subprocess.run(["ssh-keygen", "-q", "-t", "ed25519", "-N", "", "-f", self.dir / name], check=True, stdin=subprocess.DEVNULL)
        (self.dir / "authorized").write_text((self.dir / "user.pub").read_text())
        port = kiln.free_port(socket.SOCK_STREAM)
        (self.dir / "config").write_text(
            f"ListenAddress 127.0.0.1\nPort {port}\nHostKey {self.dir}/host\nAuthorizedKeysFile {self.dir}/authorized\nPidFile none\n"
            "UsePAM no\nStrictModes no\nPasswordAuthentication no\nPermitRootLogin prohibit-password\nMaxStartups 100\nMaxSessions 100\n"
        )
        # Debian's sshd wants it; its service would make it.
        pathlib.Path("/run/sshd").mkdir(mode=0o755, exist_ok=True)
        self.process = kiln.Process("sshd", [sys.executable, ADOPTER, "/usr/sbin/sshd", "-D", "-e", "-f", str(self.dir / "config")], self.dir / "log")
        host = (self.dir / "host.pub").read_text().split()
        (self.dir / "known").write_text(f"[127.0.0.1]:{port} {host[0]} {host[1]}\n")
        self.environment = {
            "NIX_SSHOPTS": f"-F none -p {port} -i {self.dir}/user -o UserKnownHostsFile={self.dir}/known -o IdentitiesOnly=yes -o BatchMode=yes"
        }
        kiln.wait_until("sshd listens", 20, lambda: self.process.listens(port))
        return self

    def __exit__(self, *_):
        if self.process:
            self.process.stop()

    def store(self, scheme, program):
        """Returns the URL of a store behind it that `program` serves."""
        return f"{scheme}://root@127.0.0.1?remote-program={program}"
