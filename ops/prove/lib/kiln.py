"""Runs farms for the provers: `kiln up`, or a coordinator and a worker as two daemons. Measures what they use.

Everything started here is stopped again by its own process id, also after an error or an interrupt (`with` blocks).
"""

import json
import os
import pathlib
import signal
import socket
import subprocess
import sys
import time

KILN = os.environ.get("KILN", "kiln")
TICKS_PER_SECOND = os.sysconf("SC_CLK_TCK")


class Failed(Exception):
    """Something that the prover needs did not work; says what, and where to look."""


def on_signals_exit():
    """Makes a termination an exception, so that `with` blocks end what they started."""

    def leave(number, _frame):
        raise SystemExit(128 + number)

    signal.signal(signal.SIGTERM, leave)
    signal.signal(signal.SIGINT, leave)


def wait_until(what, seconds, probe, pause=0.05):
    """Returns the first true value of `probe()`; fails with `what` after `seconds`."""
    end = time.monotonic() + seconds
    while True:
        found = probe()
        if found:
            return found
        if time.monotonic() > end:
            raise Failed(f"{what}: not within {seconds:.0f} s")
        time.sleep(pause)


def free_port(kind):
    """Returns a port that nobody listens on; `kind` is socket.SOCK_STREAM or SOCK_DGRAM."""
    with socket.socket(socket.AF_INET, kind) as found:
        found.bind(("127.0.0.1", 0))
        return found.getsockname()[1]


# --- measuring -------------------------------------------------------------------------------------------------------------------


class Ran:
    """How a command ended: exit code, wall seconds, CPU seconds with all its waited children, largest resident set in bytes."""

    def __init__(self, code, wall, usage):
        self.code, self.wall = code, wall
        self.cpu = usage.ru_utime + usage.ru_stime
        self.rss_max = usage.ru_maxrss * 1024


def run(command, log, env=None, out=None):
    """Runs a command to its end with standard error in the file `log` (appended), and measures it."""
    started = time.monotonic()
    with open(log, "ab") as errors:
        child = subprocess.Popen(command, stdin=subprocess.DEVNULL, stdout=out or errors, stderr=errors, env=env)
    try:
        _, status, usage = os.wait4(child.pid, 0)
    except BaseException:
        child.terminate()
        child.wait()
        raise
    child.returncode = os.waitstatus_to_exitcode(status)
    return Ran(child.returncode, time.monotonic() - started, usage)


def need(ran, what, log):
    """Returns `ran` if it succeeded; else fails and shows the end of the log."""
    if ran.code == 0:
        return ran
    raise Failed(f"{what}: exit code {ran.code}\n{tail(log)}")


def tail(log, lines=20):
    """Returns the last lines of a file, indented."""
    text = pathlib.Path(log).read_text(errors="replace").splitlines()[-lines:]
    return "\n".join("    " + line for line in text)


def _stat(pid):
    """Fields of /proc/PID/stat behind the name, or nothing if the process has gone."""
    try:
        text = pathlib.Path(f"/proc/{pid}/stat").read_text()
    except OSError:
        return None
    return text.rpartition(")")[2].split()


def tree(pid):
    """Returns the ids of a process and of all that live below it."""
    found, parents = [], {}
    for entry in os.listdir("/proc"):
        if entry.isdigit() and (fields := _stat(entry)):
            parents.setdefault(int(fields[1]), []).append(int(entry))
    waiting = [pid]
    while waiting:
        found.append(waiting.pop())
        waiting.extend(parents.get(found[-1], []))
    return found


def cpu_of_tree(pid):
    """CPU seconds of a process, of all that live below it, and of all ended ones that they waited for."""
    ticks = 0
    for member in tree(pid):
        if fields := _stat(member):
            ticks += sum(int(field) for field in fields[11:15])
    return ticks / TICKS_PER_SECOND


def settled_cpu(pid, seconds_max=10.0):
    """CPU seconds of a tree once it rests: what a farm still does after the client has its answer is counted too."""
    end = time.monotonic() + seconds_max
    before = cpu_of_tree(pid)
    while time.monotonic() < end:
        time.sleep(0.3)
        now = cpu_of_tree(pid)
        if now - before < 0.015:
            return now
        before = now
    return before


def memory(pid):
    """Returns (resident, proportional, largest resident) bytes of one process."""

    def field(file, name):
        for line in pathlib.Path(f"/proc/{pid}/{file}").read_text().splitlines():
            if line.startswith(name + ":"):
                return int(line.split()[1]) * 1024
        raise Failed(f"/proc/{pid}/{file} has no {name}")

    return field("smaps_rollup", "Rss"), field("smaps_rollup", "Pss"), field("status", "VmHWM")


# --- farms -----------------------------------------------------------------------------------------------------------------------


class Process:
    """One started program, its standard output and error in a file."""

    def __init__(self, name, command, log, env=None):
        self.name, self.log = name, pathlib.Path(log)
        self.offset = self.log.stat().st_size if self.log.exists() else 0
        with open(log, "ab") as out:
            # A group of its own: a terminal's interrupt goes to the prover, which stops the farm in order.
            self.child = subprocess.Popen(
                command, stdin=subprocess.DEVNULL, stdout=out, stderr=out, start_new_session=True, env={**os.environ, **(env or {})}
            )
        self.pid = self.child.pid

    def must_live(self):
        if self.child.poll() is not None:
            raise Failed(f"{self.name} ended by itself with {self.child.returncode}\n{tail(self.log)}")

    def listens(self, port):
        """Whether it, which must live, takes connections on loopback."""
        self.must_live()
        with socket.socket() as asked:
            return asked.connect_ex(("127.0.0.1", port)) == 0

    def kill(self):
        """Kills it where it stands, as a power cut would."""
        self.child.send_signal(signal.SIGKILL)
        self.child.wait()

    def stop(self, seconds=60):
        """Stops it in order."""
        if self.child.poll() is not None:
            return
        self.child.terminate()
        try:
            self.child.wait(seconds)
        except subprocess.TimeoutExpired:
            self.kill()
            raise Failed(f"{self.name} did not stop within {seconds} s\n{tail(self.log)}") from None

    def said(self):
        """What it wrote since it was started."""
        with open(self.log, "rb") as log:
            log.seek(self.offset)
            return log.read().decode(errors="replace")


class Up:
    """A `kiln up` in `directory`, with more arguments if any are given."""

    def __init__(self, directory, log, *more):
        self.dir, self.log, self.more, self.process = pathlib.Path(directory), log, more, None

    def __enter__(self):
        any_port = "127.0.0.1:0"
        self.process = Process(
            "kiln up", [KILN, "up", "--dir", str(self.dir), "--listen", any_port, "--http", any_port, *self.more], self.log
        )
        try:
            self.beacon = wait_until("kiln up", 60, self._beacon)
            wait_until("a worker connects", 60, lambda: self.json("status")["workersConnected"])
        except BaseException:
            self.__exit__()
            raise
        return self

    def __exit__(self, *_):
        if self.process:
            self.process.stop()

    def _beacon(self):
        self.process.must_live()
        try:
            beacon = json.loads((self.dir / "farm.json").read_text())
        except (OSError, ValueError):
            return None
        return beacon if beacon["pid"] == self.process.pid else None

    def client(self, verb, *args):
        return [KILN, verb, "--farm", str(self.dir), *args]

    def json(self, verb, *args):
        return json_of(self.client(verb, "--json", *args))


class Daemons:
    """A coordinator and a worker as two processes, with certificates of `kiln ca`. They are started and killed one by one.

    `worker_knobs` are further lines of the worker's configuration.
    """

    def __init__(self, directory, log_dir, env=None, worker_knobs=""):
        self.worker_knobs = worker_knobs
        self.dir, self.log_dir, self.env = pathlib.Path(directory), pathlib.Path(log_dir), env
        self.coordinator = self.worker = None
        self.link, self.http = free_port(socket.SOCK_DGRAM), free_port(socket.SOCK_STREAM)
        self.cache = f"http://127.0.0.1:{self.http}"

    def configure(self):
        """Makes the certificates that are absent and both configuration files."""
        self.dir.mkdir(parents=True, exist_ok=True)
        self.log_dir.mkdir(parents=True, exist_ok=True)
        log = self.log_dir / "ca.log"
        if not (self.dir / "ca").exists():
            need(run([KILN, "ca", "init", "--dir", self.dir / "ca", "--farm", "prove"], log), "kiln ca init", log)
            for role, out in (("coordinator/1", "id-coordinator"), (f"worker/{WORKER}", "id-worker"), ("client/prover", "id-client")):
                issue = [KILN, "ca", "issue", "--dir", self.dir / "ca", "--role", role, "--out", self.dir / out]
                need(run(issue, log), "kiln ca issue", log)
        (self.dir / "coordinator.toml").write_text(
            f"dir = '{self.dir}/coordinator'\nfarm = 'prove'\nlisten = '127.0.0.1:{self.link}'\n"
            f"http = '127.0.0.1:{self.http}'\nidentity = '{self.dir}/id-coordinator'\n"
        )
        (self.dir / "worker.toml").write_text(
            f"name = '{WORKER}'\ndir = '{self.dir}/worker'\ncoordinators = ['127.0.0.1:{self.link}']\nidentity_dir = '{self.dir}/id-worker'\n"
            + self.worker_knobs
        )

    def __enter__(self):
        self.configure()
        try:
            self.start()
            wait_until("the worker connects", 60, lambda: self.json("status")["workersConnected"])
        except BaseException:
            self.__exit__()
            raise
        return self

    def __exit__(self, *_):
        # The worker first, so that nothing is reported into the void.
        for process in (self.worker, self.coordinator):
            if process:
                process.stop()

    def start(self):
        """Starts those of the two that do not run, and waits until the coordinator answers."""
        if not self.coordinator:
            config = str(self.dir / "coordinator.toml")
            self.coordinator = Process("coordinator", [KILN, "coordinator", "--config", config], self.log_dir / "coordinator.log", self.env)
        if not self.worker:
            config = str(self.dir / "worker.toml")
            self.worker = Process("worker", [KILN, "worker", "--config", config], self.log_dir / "worker.log", self.env)
        wait_until("the coordinator answers", 60, self._answers)

    def kill(self, which):
        """Kills "coordinator", "worker" or "farm" (both)."""
        for name in ("coordinator", "worker") if which == "farm" else (which,):
            getattr(self, name).kill()
            setattr(self, name, None)

    def _answers(self):
        self.coordinator.must_live()
        self.worker.must_live()
        asked = subprocess.run(self.client("status", "--json"), stdin=subprocess.DEVNULL, capture_output=True, check=False)
        return asked.returncode == 0

    def client(self, verb, *args):
        return [KILN, verb, "--farm", f"kiln://127.0.0.1:{self.link}", "--identity", str(self.dir / "id-client"), *args]

    def json(self, verb, *args):
        return json_of(self.client(verb, "--json", *args))


# Unique on the machine: a worker clears what an earlier one of its name left behind.
WORKER = f"prove-{os.getpid()}"


def json_of(command):
    """Returns what a command prints, read as JSON."""
    done = subprocess.run(command, stdin=subprocess.DEVNULL, capture_output=True, check=False)
    if done.returncode != 0:
        raise Failed(f"{' '.join(map(str, command[:6]))}…: exit code {done.returncode}: {done.stderr.decode(errors='replace').strip()}")
    return json.loads(done.stdout)


# --- reporting -------------------------------------------------------------------------------------------------------------------


class Claims:
    """The lines of a prover: `claim: figure (goal)`."""

    def __init__(self):
        self.short = 0

    def check(self, claim, figure, goal, holds):
        self.short += not holds
        print(f"{'  ok  ' if holds else 'SHORT '} {claim}: {figure} ({goal})")

    def tell(self, claim, figure):
        """A figure that has no goal."""
        print(f"       {claim}: {figure}")

    def code(self):
        """The exit code, after the last line."""
        print("every claim holds" if self.short == 0 else f"{self.short} claims fall short")
        return 1 if self.short else 0


def machine():
    """One line about where figures come from."""
    model = next((line.split(":")[1].strip() for line in open("/proc/cpuinfo") if line.startswith("model name")), "unknown processor")
    memory_mib = os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES") >> 20
    load = ", ".join(f"{value:.1f}" for value in os.getloadavg())
    return f"{time.strftime('%Y-%m-%d %H:%M UTC', time.gmtime())}, {os.cpu_count()} cores ({model}), {memory_mib} MiB, load {load}"


def main(prove):
    """Runs a prover and turns what fails into words and an exit code."""
    on_signals_exit()
    try:
        sys.exit(prove())
    except Failed as failed:
        print(f"error: {failed}", file=sys.stderr)
        sys.exit(1)
