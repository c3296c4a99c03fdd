"""How fast paths come out of the farm's binary cache and go into it, beside a static file server and a directory.

Out: `nix copy --from` into an empty store, from the farm and from nginx, which serves a directory with the same paths at the same
compression. Into: `nix copy --to` the farm, beside `nix copy --to file://` with the same compression. Disk and processor are shared by
both ends, so processor time of client and server is told beside the wall time. What goes into the farm is unpacked, checked and synced there before
it is visible, which a directory does not do: of that the figures are told, without a goal.
"""

import pathlib
import socket
import subprocess

import kiln
import nix

# What the farm's cache stores; the directory is made with the same.
COMPRESSION = "zstd"
RATIO_MAX = 1.5


def prove(claims, args, work):
    here = work / "cache"
    here.mkdir()
    paths = {f"one path of {args.path_mib} MiB": large(here, args.path_mib), f"{args.paths} small paths": small(args.pkgset, args.paths)}
    directory = here / "files"
    with Uploads(here) as farm, Nginx(here / "nginx", directory) as nginx:
        for number, (name, some) in enumerate(paths.items()):
            costs = {
                "nix copy --to file://": copy(["--to", f"file://{directory}?compression={COMPRESSION}"], some, here, f"to-file-{number}"),
                "nix copy --to the farm": farm.upload(some, here, f"to-farm-{number}"),
            }
            tell(claims, name, costs)
        for number, (name, some) in enumerate(paths.items()):
            costs = {}
            for kind, url, server in (("nginx", nginx.url, nginx.process), ("the farm", farm.url, farm.process)):
                root = here / f"copied-{number}-{server.name}"
                (root / "nix/store").mkdir(parents=True)
                costs[f"nix copy --from {kind}"] = copy(["--no-check-sigs", "--from", url], some, here, root.name, server, root)
            judge(claims, name, costs)


def tell(claims, name, costs):
    """Tells both costs."""
    for way, cost in costs.items():
        claims.tell(f"{way}, {name}", f"{cost.wall:.2f} s wall, {cost.client:.2f} + {cost.server:.2f} s CPU (client + server)")


def judge(claims, name, costs):
    """Tells both costs, and holds the second, the farm's, against the first."""
    tell(claims, name, costs)
    (rival, theirs), (way, ours) = costs.items()
    ratio = ours.wall / theirs.wall
    claims.check(f"{way} beside {rival}, {name}", f"{ours.wall:.2f} / {theirs.wall:.2f} s = {ratio:.2f}", f"goal: at most {RATIO_MAX}", ratio <= RATIO_MAX)


class Cost:
    """What a copy took, in seconds: wall, and processor time of the client and of the server."""

    def __init__(self, wall, client, server):
        self.wall, self.client, self.server = wall, client, server


def copy(options, paths, here, name, server=None, root=None):
    log = here / f"{name}.log"
    before = kiln.settled_cpu(server.pid) if server else 0
    ran = kiln.need(kiln.run(["nix", "copy", *options, *paths], log, env=nix.env(root)), f"nix copy {name}", log)
    return Cost(ran.wall, ran.cpu, kiln.settled_cpu(server.pid) - before if server else 0)


def large(here, mib):
    """Adds a path of random bytes to Nix's store: nothing compresses it away."""
    source = here / "large"
    with open("/dev/urandom", "rb") as random, open(source, "wb") as file:
        for _ in range(mib):
            file.write(random.read(1 << 20))
    path = nix.output("nix-store", "--add", str(source)).strip()
    source.unlink()
    return [path]


def small(pkgset, count):
    """Has Nix build trivial derivations, and returns what they made."""
    drvs = nix.instantiate(f"{pkgset}/micro.nix", "--argstr", "shape", "wide", "--arg", "n", str(count), "--argstr", "seed", "cache")
    return nix.output("nix-store", "--realise", "--no-gc-warning", "-j2", *drvs).split()


class Uploads(kiln.Daemons):
    """A farm that takes uploads from whoever has the token in `netrc`."""

    def __init__(self, here):
        super().__init__(here / "farm", here / "logs")
        self.netrc, self.url = here / "netrc", self.cache

    def configure(self):
        super().configure()
        made = subprocess.run([kiln.KILN, "token", "create", "--name", "prove", "--scope", "trusted"], capture_output=True, text=True, check=True)
        token, lines = made.stdout.split("\n", 1)
        self.netrc.write_text(f"machine 127.0.0.1 login kiln password {token}\n")
        with open(self.dir / "coordinator.toml", "a") as config:
            config.write(lines)

    @property
    def process(self):
        return self.coordinator

    def upload(self, paths, here, name):
        to = f"{self.url}?compression={COMPRESSION}"
        return copy(["--option", "netrc-file", str(self.netrc), "--to", to], paths, here, name, self.coordinator)


class Nginx:
    """Serves a directory on a free port of loopback, as a static file server does."""

    def __init__(self, place, directory):
        self.place, self.directory, self.process = pathlib.Path(place), pathlib.Path(directory), None

    def __enter__(self):
        self.place.mkdir(parents=True)
        port = kiln.free_port(socket.SOCK_STREAM)
        self.url = f"http://127.0.0.1:{port}"
        temporary = " ".join(f"{kind}_temp_path {self.place}/{kind};" for kind in ("client_body", "proxy", "fastcgi", "uwsgi", "scgi"))
        (self.place / "conf").write_text(
            f"daemon off; worker_processes 1; pid {self.place}/pid; error_log stderr; user root;\n"
            "events { worker_connections 512; }\n"
            f"http {{ access_log off; sendfile on; tcp_nopush on; {temporary}\n"
            f"  server {{ listen 127.0.0.1:{port}; root {self.directory}; }} }}\n"
        )
        self.process = kiln.Process("nginx", ["/usr/sbin/nginx", "-c", str(self.place / "conf")], self.place / "log")
        kiln.wait_until("nginx listens", 20, lambda: self.process.listens(port))
        return self

    def __exit__(self, *_):
        if self.process:
            self.process.stop()
