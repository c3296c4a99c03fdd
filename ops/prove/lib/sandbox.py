"""Compares what builders see and make under sandboxed Nix and under a farm, derivation by derivation. See ops/prove/sandbox-conformance.

Every value that differs must stand in the table of worker/README.md with both values, and every row of that table must differ.
"""

import dataclasses
import hashlib
import json
import os
import pathlib
import re
import socket
import stat
import subprocess
import sys
import threading
import time

import kiln
import nix

ROOT = pathlib.Path(__file__).resolve().parents[3]
README = ROOT / "worker/README.md"
ASPECTS = ROOT / "ops/prove/lib/sandbox"
HEADING = "## Deliberate differences from Nix"

ITEMS = {
    1: "namespaces", 2: "id maps", 3: "ids", 4: "pool of build users", 5: "loopback and names", 6: "root and its propagation",
    7: "modes of /, /tmp and the store", 8: "inputs", 9: "/dev", 10: "/proc and /sys", 11: "/etc", 12: "view of a fixed-output build",
    13: "/bin/sh", 14: "system call filter", 15: "Landlock", 16: "personality", 17: "session, descriptors, limits", 18: "log and argv[0]",
    19: "environment", 20: "impureEnvVars", 21: "placeholders", 22: "passAsFile", 23: "structured attributes",
    24: "exportReferencesGraph", 25: "files for the builder", 26: "demands on outputs", 27: "unsafeDiscardReferences",
    28: "__noChroot, __impureHostDeps", 29: "system features", 30: "scheduling hints", 31: "what a builder leaves running",
    32: "how a builder ends", 33: "refused outputs", 34: "canonical outputs", 35: "references", 36: "several outputs",
    37: "floating outputs", 38: "fixed outputs", 39: "the build directory", 40: "limits of time and log", 41: "trust in submitters",
}  # fmt: skip

# What two builders cannot be asked side by side: item, what of it, and the test that covers it.
NOT_COMPARED = (
    (2, "the start protocol", "worker/tests/sandbox_stops.rs", "a_sandbox_that_does_not_stand_is_its_own_error_and_names_the_step"),
    (3, "what a newer Nix does for uid-range, with control groups", "worker/tests/sandbox_range.rs", "its_control_group_is_its_own_and_the_limits_of_that_are_not"),
    (4, "ranges, which Nix 2.8 has not", "worker/tests/sandbox_range.rs", "two_at_the_same_time_have_no_id_in_common"),
    (4, "Nix 2.8 takes them from /etc/group", "worker/tests/attacks/kernel.rs", "a05_two_builds_cannot_touch_each_other"),
    (15, "Nix 2.8 has no Landlock", "worker/tests/attacks/egress.rs", "a01_a02_two_builds_and_the_host_share_no_abstract_socket_and_no_port"),
    (34, "extended attributes", "worker/src/outputs/canonical/tests.rs", "modes_times_owners_and_attributes_become_canonical"),
    (34, "foreign owners", "worker/src/outputs/canonical/tests.rs", "trees_that_are_not_taken_are_refused_with_their_rule"),
    (37, "an experiment in Nix 2.8", "shared/nix/tests/nix_testdata.rs", "kinds_of_outputs_and_dynamic_inputs_are_told_apart"),
    (39, "the host's side of the build directory", "worker/tests/sandbox_stops.rs", "a_root_directory_that_others_can_reach_is_refused"),
    (40, "the farm's limits are the worker's configuration", "worker/tests/sandbox_stops.rs", "each_limit_stops_a_build_for_its_own_reason"),
    (41, "outputs of wrong paths", "ops/kiln/tests/e2e/bad_input.rs", "a28_a_derivation_whose_source_is_gone_or_whose_output_path_is_wrong_is_refused"),
    (41, "another derivation's bytes", "worker/tests/downloads.rs", "a28_an_assignment_with_another_derivations_bytes_is_refused"),
)
# Derivations that this machine cannot build: rows of the table about them are not judged.
UNSEEN = set()
# Longest value that the table shows whole, in characters.
SHOWN_MAX = 150


@dataclasses.dataclass
class Ended:
    """How one side ended a derivation. `outputs` holds where each output lies on disk, `infos` what the store knows of it."""

    outcome: str
    message: str = ""
    log: bytes = b""
    outputs: dict = dataclasses.field(default_factory=dict)
    infos: dict = dataclasses.field(default_factory=dict)


def answer_on_loopback():
    """Accepts whoever comes to a port of this machine's loopback, and returns the port."""
    listener = socket.create_server(("127.0.0.1", 0))

    def answer():
        while True:
            listener.accept()[0].close()

    threading.Thread(target=answer, daemon=True).start()
    return str(listener.getsockname()[1])


def host_facts():
    """What fixed-output builds take from the environment of whoever starts them, to tell what is the host's."""
    facts = {"PROVE_SET": "from the worker", "PROVE_NETWORK": os.readlink("/proc/self/ns/net"), "PROVE_PORT": answer_on_loopback()}
    for name, file in (("PROVE_HOSTS", "hosts"), ("PROVE_RESOLV", "resolv.conf"), ("PROVE_SERVICES", "services")):
        facts[name] = hashlib.sha256(pathlib.Path("/etc", file).read_bytes()).hexdigest()
    return facts


def aspects():
    command = ["nix-instantiate", "--eval", "--strict", "--json", "--read-write-mode", ASPECTS]
    command += ["--argstr", "busybox", os.environ["PROVE_BUSYBOX"], "--argstr", "probe", os.environ["PROVE_SYSCALL"]]
    return json.loads(nix.output(*map(str, command)))


def has(needed):
    """Whether this machine has a file, a kernel, or a family of sockets."""
    if needed.startswith("family "):
        try:
            socket.socket(int(needed.removeprefix("family ")), socket.SOCK_STREAM).close()
        except OSError:
            return False
        return True
    if needed.startswith("kernel "):
        number = [int(part) for part in re.findall(r"[0-9]+", os.uname().release)[:2]]
        return number >= [int(part) for part in needed.removeprefix("kernel ").split(".")]
    return not needed or pathlib.Path(needed).exists()


# --- Nix -------------------------------------------------------------------------------------------------------------------------


def end_with_nix(aspect):
    """One derivation at a time: this Nix gives up all of them when an output of one is refused."""
    # Whether this machine has /dev/kvm shall decide of nothing but what is asked about it.
    features = ["--option", "system-features", " ".join(["nixos-test", "benchmark", "big-parallel", "uid-range", *(["kvm"] if aspect["needs"] == "/dev/kvm" else [])])]
    command = ["nix-store", "--realise", "--no-gc-warning", *features, aspect["drv"]]
    done = subprocess.run(command, stdin=subprocess.DEVNULL, capture_output=True, env=nix.env(), timeout=120, check=False)
    message = done.stderr.decode(errors="replace")
    logged = subprocess.run(["nix-store", "--read-log", aspect["drv"]], stdin=subprocess.DEVNULL, capture_output=True, env=nix.env(), check=False)
    ended = Ended("built" if done.returncode == 0 else "refused", message, logged.stdout)
    if ended.outcome == "built":
        ended.outputs = {name: pathlib.Path(nix.real(path)) for name, path in aspect["outputs"].items()}
        infos = nix.path_infos(aspect["outputs"].values())
        ended.infos = {name: facts_of(infos[path]) for name, path in aspect["outputs"].items()}
    return ended


# --- Kiln ------------------------------------------------------------------------------------------------------------------------


def end_with_kiln(farm, wanted, work):
    """Builds all of them in one build, and returns how each ended."""
    events = work / "events"
    command = farm.client("build", "--keep-going", "--json", *(nix.real(aspect["drv"]) for aspect in wanted.values()))
    with open(events, "wb") as out, open(work / "client.log", "ab") as errors:
        client = subprocess.Popen(command, stdin=subprocess.DEVNULL, stdout=out, stderr=errors)
    try:
        found = follow(events, client, {aspect["drv"] for aspect in wanted.values()})
        waiting = farm.json("jobs")
    finally:
        if client.poll() is None:
            client.terminate()
            client.wait()
    ended = {}
    for name, aspect in wanted.items():
        ended[name] = found.get(aspect["drv"]) or waits(waiting, aspect["drv"])
        if ended[name].outcome in ("built", "refused"):
            log = subprocess.run(farm.client("log", aspect["drv"]), stdin=subprocess.DEVNULL, capture_output=True, check=False)
            ended[name].log = log.stdout
    look(farm, wanted, ended)
    return ended


def follow(events, client, drvs, seconds_max=240, quiet_seconds_max=15):
    """Reads a build's events until every derivation has ended, or nothing happens any more: jobs that wait for a worker wait for ever."""
    found, offset, started = {}, 0, time.monotonic()
    last = started
    while not drvs <= found.keys() and client.poll() is None and time.monotonic() - last < quiet_seconds_max:
        if time.monotonic() - started > seconds_max:
            raise kiln.Failed(f"the farm did not end {len(drvs - found.keys())} derivations within {seconds_max} s: {sorted(drvs - found.keys())[:5]}")
        time.sleep(0.1)
        lines = events.read_bytes()[offset:].rpartition(b"\n")[0]
        if lines:
            offset += len(lines) + 1
            last = time.monotonic()
        for event in map(json.loads, lines.splitlines()):
            kind, drv = event.get("event"), event.get("derivation")
            if kind == "built":
                found[drv] = Ended("built")
            elif kind == "failed" and event["class"] == "build failure":
                found[drv] = Ended("refused", event["message"])
            elif kind in ("failed", "retried"):
                # No derivation here may be anybody's fault but its own.
                found[drv] = Ended(event["class"], event["message"])
    return found


def waits(jobs, drv):
    """What the farm says of a job that no worker has taken."""
    return Ended("waits", next((job["reason"] for job in jobs if job["derivation"] == drv), "the farm does not know the job"))


def look(farm, wanted, ended):
    """Notes where the farm's worker keeps each output, and what the farm knows of it."""
    built = {name: aspect for name, aspect in wanted.items() if ended[name].outcome == "built"}
    infos = {info["path"]: info for info in farm.json("path-info", *(path for aspect in built.values() for path in aspect["outputs"].values()))}
    for name, aspect in built.items():
        # Not as a client would get them: what is compared is what the worker made of them.
        kept = farm.dir / "workers/local-1/store"
        ended[name].outputs = {output: kept / pathlib.PurePath(path).name for output, path in aspect["outputs"].items()}
        ended[name].infos = {output: facts_of(infos[path]) for output, path in aspect["outputs"].items()}


def facts_of(info):
    return nix.sha256_hex(info["narHash"]), info["narSize"], sorted(info["references"])


# --- comparing -------------------------------------------------------------------------------------------------------------------


def values(aspect, ended):
    """Everything that is compared of one derivation: {what: bytes}."""
    found = {"outcome": ended.outcome.encode()}
    lines = ended.log.splitlines() if aspect["facts"] == "log" else []
    if aspect["facts"] != "log":
        found["log"] = ended.log
    for output, path in ended.outputs.items():
        _, _, references = ended.infos[output]
        found[f"references of {output}"] = " ".join(references).encode()
        for name, value in files(path):
            what = f"{output}/{name}".rstrip("/")
            if name == "facts":
                lines = value.split(b": ", 1)[1].splitlines()
            else:
                found[what] = value
    for line in lines:
        name, _, value = line.partition(b"\t")
        name = name.decode(errors="backslashreplace")
        found[name] = found[name] + b"; " + value if name in found else value
    return found


def files(path):
    """Every file of a tree: name below it, and kind, mode, time and content as bytes."""
    yield "", entry(path)
    if path.is_dir() and not path.is_symlink():
        for below in sorted(path.rglob("*")):
            yield os.fsencode(below.relative_to(path)).decode(errors="backslashreplace"), entry(below)


def entry(path):
    found = path.lstat()
    if stat.S_ISLNK(found.st_mode):
        return b"link %d: " % found.st_mtime + os.fsencode(os.readlink(path))
    head = b"%s %o %d" % (b"directory" if stat.S_ISDIR(found.st_mode) else b"file", stat.S_IMODE(found.st_mode), found.st_mtime)
    return head + b": " + (b"" if stat.S_ISDIR(found.st_mode) else path.read_bytes())


def show(value):
    """A value as it stands in the table: one line, without the hashes of store paths, which change with every word of a script."""
    if value is None:
        return "absent"
    text = value.decode(errors="backslashreplace").replace("\n", "\\n").replace("`", "'")
    text = "".join(char if char.isprintable() else f"\\x{ord(char):02x}" for char in text)
    text = re.sub(r"[0-9abcdfghijklmnpqrsvwxyz]{32}-", "HASH-", text).strip() or "empty"
    if len(text) <= SHOWN_MAX:
        return text
    return f"{text[:60]}… ({len(text)} characters, SHA-256 {hashlib.sha256(text.encode()).hexdigest()[:12]})"


def differences(name, theirs, ours):
    """Returns {key: (Nix's value, Kiln's)} as the table has them."""
    found = {}
    for what in sorted(theirs.keys() | ours.keys()):
        if theirs.get(what) != ours.get(what):
            found[f"{name}: {show(what.encode())}"] = show(theirs.get(what)), show(ours.get(what))
    return found


# --- the table -------------------------------------------------------------------------------------------------------------------


def table():
    """Reads the accepted differences: {key: (Nix's value, Kiln's)}. Several keys may share a row, separated by <br>."""
    section = README.read_text().partition(HEADING + "\n")[2].partition("\n## ")[0]
    rows = [line for line in section.splitlines() if line.startswith("|")][2:]
    if not rows:
        raise kiln.Failed(f"{README} has no table below `{HEADING}`")
    accepted = {}
    for row in rows:
        cells = [cell.strip().replace("\\|", "|") for cell in re.split(r"(?<!\\)\|", row)[1:-1]]
        if len(cells) != 5 or not all(cells):
            raise kiln.Failed(f"{README}: a row has five cells, and none is empty: {row}")
        for key in re.findall(r"`([^`]+)`", cells[0]):
            if key in accepted:
                raise kiln.Failed(f"{README}: `{key}` stands there twice")
            accepted[key] = tuple(cell.removeprefix("`").removesuffix("`") for cell in cells[1:3])
    return accepted


def judge(claims, wanted, theirs, ours):
    accepted, short, seen = table(), {}, set()
    compared = {}
    for name, aspect in wanted.items():
        left, right = values(aspect, theirs[name]), values(aspect, ours[name])
        compared[name] = len(left.keys() | right.keys())
        found = differences(name, left, right)
        if not found:
            found = unexplained(name, theirs[name], ours[name])
        seen |= found.keys()
        short[name] = {key: both for key, both in found.items() if accepted.get(key) != both}
    for name, found in short.items():
        for key, (nix_value, kiln_value) in found.items():
            print(f"       differs: `{key}` | `{nix_value}` | `{kiln_value}`")
            if key in accepted:
                print("                the table says: `{}` | `{}`".format(*accepted[key]))
    for item, title in ITEMS.items():
        names = [name for name, aspect in wanted.items() if item in aspect["items"]]
        if names:
            bad = sum(len(short[name]) for name in names)
            count = sum(compared[name] for name in names)
            allowed = sum(1 for key in seen & accepted.keys() if key.partition(": ")[0] in names)
            goal = f"goal: 0; derivations {len(names)}, values {count}, differing as the table says {allowed}"
            claims.check(f"item {item}, {title}: differences that the table does not have", bad, goal, bad == 0)
    stale = sorted(key for key in accepted.keys() - seen if key.partition(": ")[0] not in UNSEEN)
    claims.check("rows of the table that do not differ", ", ".join(f"`{key}`" for key in stale) or "none", "goal: none", not stale)


def unexplained(name, theirs, ours):
    """NARs that differ although nothing that was looked at does."""
    pairs = ((output, theirs.infos[output], ours.infos[output]) for output in theirs.infos.keys() & ours.infos.keys())
    return {f"{name}: NAR of {output}": (str(left[:2]), str(right[:2])) for output, left, right in pairs if left != right}


def judge_reasons(claims, wanted, theirs, ours):
    """Whether what both refuse is refused for the reason that the derivation was made for."""
    wrong = []
    must = {name: aspect["refused"] for name, aspect in wanted.items() if aspect["refused"]}
    for name, words in must.items():
        for side, ended in (("nix", theirs[name]), ("kiln", ours[name])):
            if ended.outcome != "built" and not re.search(words[side], ended.message):
                wrong.append(name)
                print(f"       {side} on {name}: {ended.message.strip()[-300:]}")
    claims.check("derivations refused for another reason than theirs", ", ".join(wrong) or "none", f"goal: none of {len(must)}", not wrong)
    for name in wanted:
        expect = "refused" if name in must else "built"
        if theirs[name].outcome != expect:
            raise kiln.Failed(f"Nix should have {expect} {name}: {theirs[name].message.strip()[-500:]}")
        if name not in must and ours[name].outcome != "built":
            print(f"       the farm on {name}: {ours[name].outcome}: {ours[name].message[:500]}")


def judge_uncompared(claims, wanted):
    covered = {item for aspect in wanted.values() for item in aspect["items"]}
    for item, what, file, test in NOT_COMPARED:
        text = (ROOT / file).read_text() if (ROOT / file).exists() else ""
        there = f"fn {test}(" in text
        claims.check(f"not compared: item {item}, {what}", f"covered by {test} in {file}", "goal: the test exists", there)
        covered.add(item)
    absent = sorted(ITEMS.keys() - covered)
    claims.check("items that neither a derivation nor a test covers", absent or "none", "goal: none of 41", not absent)


def prove():
    work, claims = pathlib.Path(os.environ["PROVE_DIR"]), kiln.Claims()
    os.environ.update(host_facts())
    print(f"conformance of the sandbox: {kiln.machine()}")
    wanted = {}
    for name, aspect in aspects().items():
        if not has(aspect["needs"]):
            print(f"       not compared on this machine: {name}, which needs {aspect['needs']}")
            UNSEEN.add(name)
        else:
            wanted[name] = aspect
    print(f"       {len(wanted)} derivations", flush=True)
    theirs = {name: end_with_nix(aspect) for name, aspect in wanted.items()}
    with kiln.Up(work / "farm", work / "farm.log") as farm:
        ours = end_with_kiln(farm, wanted, work)
    judge_reasons(claims, wanted, theirs, ours)
    judge(claims, wanted, theirs, ours)
    judge_uncompared(claims, wanted)
    return claims.code()


if __name__ == "__main__":
    sys.exit(kiln.main(prove))
