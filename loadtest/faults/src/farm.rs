//! The farm under test: its hosts, disks and programs, and what an operator does with them.

use std::collections::{BTreeMap, BTreeSet};
use std::fs;
use std::os::unix::fs::PermissionsExt;
use std::path::{Path, PathBuf};
use std::process::Command;
use std::time::Duration;

use anyhow::{Context, bail};
use nix::sys::signal::Signal;

use crate::disk::Disk;
use crate::hosts::{HTTP_PORT, Host, LINK_PORT, STORE_PORT};
use crate::net::{self, Net};
use crate::process::{Book, Process};
use crate::run;

/// What a farm is made of.
#[derive(Clone, Debug)]
pub struct Shape {
    /// The `kiln` program.
    pub kiln: PathBuf,
    /// The S3-compatible server.
    pub s3: PathBuf,
    /// How many coordinators.
    pub coordinators: u8,
    /// How many workers.
    pub workers: u8,
    /// Whether each coordinator has a small disk of its own, which can be full. A disk within a file is slower than the machine's.
    pub disks: bool,
    /// The election time that coordinators are configured with, in milliseconds: from the least to the most.
    pub election_ms: [u64; 2],
    /// A library to load into coordinators that shifts their wall clock by what a file says; none: clocks do not step.
    pub clock_library: Option<PathBuf>,
}

impl Shape {
    fn hosts(&self) -> Vec<Host> {
        // One more, for a coordinator that takes another's place.
        let coordinators = (1..=self.coordinators + 1).map(Host::Coordinator);
        coordinators.chain((1..=self.workers).map(Host::Worker)).chain([Host::Store, Host::Client]).collect()
    }
}

/// A running farm. When it is dropped, its programs end and its disks and namespaces are gone.
#[derive(Debug)]
pub struct Farm {
    // Dropped in this order.
    processes: BTreeMap<Host, Process>,
    disks: BTreeMap<Host, Disk>,
    /// Its network.
    pub net: Net,
    /// What its programs say.
    pub book: Book,
    shape: Shape,
    dir: PathBuf,
    /// The coordinators that it has at present.
    members: BTreeSet<u8>,
    /// Hosts with another `kiln` than the farm's shape says.
    installed: BTreeMap<Host, PathBuf>,
}

impl Farm {
    /// Starts a farm in `dir`: the store's objects lie in `dir/s3`, and what is there already is its cache.
    ///
    /// # Errors
    /// What a program said.
    pub fn start(shape: &Shape, dir: &Path) -> anyhow::Result<Self> {
        let net = Net::new(&shape.hosts())?;
        let mut farm = Self {
            processes: BTreeMap::new(),
            disks: BTreeMap::new(),
            net,
            book: Book::open(),
            shape: shape.clone(),
            dir: dir.to_path_buf(),
            members: BTreeSet::from([1]),
            installed: BTreeMap::new(),
        };
        farm.configure()?;
        farm.launch(Host::Store)?;
        farm.launch(Host::Coordinator(1))?;
        farm.wait_for_leader()?;
        for node in 2..=shape.coordinators {
            farm.join(node)?;
        }
        // From here on, a wiped first coordinator would wait to be added like any other.
        farm.write_coordinator(1, true)?;
        for worker in 1..=shape.workers {
            farm.launch(Host::Worker(worker))?;
        }
        run::wait_for("all workers connect", START, || {
            let status = farm.status();
            Ok(status.ok().filter(|status| status["workersConnected"] == shape.workers))
        })?;
        Ok(farm)
    }

    /// Starts a coordinator that is none yet, and makes it one.
    ///
    /// # Errors
    /// What a program said.
    pub fn join(&mut self, node: u8) -> anyhow::Result<()> {
        self.launch(Host::Coordinator(node))?;
        let address = format!("{}:{LINK_PORT}", Host::Coordinator(node).address());
        run::finish(&mut self.operator(&["cluster", "add", &node.to_string(), &address]))?;
        self.members.insert(node);
        Ok(())
    }

    /// Puts another `kiln` on a host; what runs there is left alone.
    pub fn install(&mut self, host: Host, kiln: &Path) {
        self.installed.insert(host, kiln.to_path_buf());
    }

    fn kiln(&self, host: Host) -> &Path {
        self.installed.get(&host).unwrap_or(&self.shape.kiln)
    }

    /// Takes a coordinator that is gone out of the farm.
    ///
    /// # Errors
    /// What a program said.
    pub fn remove(&mut self, node: u8) -> anyhow::Result<()> {
        self.members.remove(&node);
        run::finish(&mut self.operator(&["cluster", "remove", &node.to_string()]))?;
        Ok(())
    }

    /// Returns the coordinators that the farm has at present.
    pub fn coordinators(&self) -> Vec<Host> {
        self.members.iter().copied().map(Host::Coordinator).collect()
    }

    fn configure(&mut self) -> anyhow::Result<()> {
        for below in ["logs", "s3"] {
            fs::create_dir_all(self.dir.join(below)).with_context(|| format!("make `{below}`"))?;
        }
        let identities = Identities::of(&self.dir, &self.shape)?;
        for node in 1..=self.shape.coordinators + 1 {
            let host = Host::Coordinator(node);
            if self.shape.disks {
                self.disks.insert(host, Disk::new(&self.dir.join(host.to_string()), DISK_BYTES)?);
            }
            self.write_coordinator(node, node > 1)?;
        }
        self.write("s3.toml", &format!("access_key_id = '{ACCESS_KEY}'\nsecret_access_key = '{SECRET_KEY}'\n"))?;
        fs::set_permissions(self.dir.join("s3.toml"), fs::Permissions::from_mode(0o600)).context("keep the store's key to ourselves")?;
        let coordinators = (1..=self.shape.coordinators).map(Host::Coordinator);
        let coordinators: Vec<String> = coordinators.map(|host| format!("'{}:{LINK_PORT}'", host.address())).collect();
        for number in 1..=self.shape.workers {
            let host = Host::Worker(number);
            let text = format!(
                "name = '{name}'\ndir = '{dir}/{host}'\ncoordinators = [{coordinators}]\nidentity_dir = '{identity}'\nslots = 2\ncores = 2\n\
                 slot_first = {first}\n",
                name = worker_name(number),
                dir = self.dir.display(),
                coordinators = coordinators.join(", "),
                identity = identities.of_host(host).display(),
                // Users of builds are the machine's: not those that other farms here begin with.
                first = SLOT_FIRST + u32::from(number) * 4,
            );
            self.write(&format!("{host}.toml"), &text)?;
        }
        Ok(())
    }

    /// Writes the configuration of a coordinator: one that does not join begins the farm.
    fn write_coordinator(&self, node: u8, joins: bool) -> anyhow::Result<()> {
        let host = Host::Coordinator(node);
        let others = (1..=self.shape.coordinators).filter(|other| *other != node).map(Host::Coordinator);
        let others: Vec<String> = others.map(|other| format!("'{}:{LINK_PORT}'", other.address())).collect();
        let join = if joins { format!("join = [{}]\n", others.join(", ")) } else { String::new() };
        let identities = Identities { dir: Identities::dir(&self.dir) };
        let text = format!(
            "dir = '{dir}/{host}'\nfarm = 'faults'\nnode = {node}\nlisten = '{address}:{LINK_PORT}'\nhttp = '{address}:{HTTP_PORT}'\n\
             identity = '{identity}'\nsigning_key = '{key}'\nelection_ms = {election_ms:?}\n{join}\
             [store]\nurl = 's3://kiln/farm'\nendpoint = 'http://{store}:{STORE_PORT}'\nregion = 'test'\nallow_http = true\n\
             credentials = '{dir}/s3.toml'\n",
            dir = self.dir.display(),
            address = host.address(),
            identity = identities.of_host(host).display(),
            key = identities.signing_key().display(),
            store = Host::Store.address(),
            election_ms = self.shape.election_ms,
        );
        self.write(&format!("{host}.toml"), &text)
    }

    fn write(&self, name: &str, text: &str) -> anyhow::Result<()> {
        fs::write(self.dir.join(name), text).with_context(|| format!("write `{name}`"))
    }

    /// Starts the program of a host that runs none.
    ///
    /// # Errors
    /// If it cannot be started.
    pub fn launch(&mut self, host: Host) -> anyhow::Result<()> {
        let mut command = net::on(host);
        match host {
            Host::Store => {
                command.arg(&self.shape.s3).args(["--listen", &format!("{}:{STORE_PORT}", host.address()), "--dir"]);
                command.arg(self.dir.join("s3")).args(["--access-key", ACCESS_KEY, "--secret-key", SECRET_KEY]);
            }
            Host::Coordinator(_) => {
                command.arg(self.kiln(host)).args(["coordinator", "--config"]).arg(self.dir.join(format!("{host}.toml")));
                if let Some(library) = &self.shape.clock_library {
                    // Timers follow the monotonic clock, which no step of the wall clock moves.
                    command.env("LD_PRELOAD", library).env("DONT_FAKE_MONOTONIC", "1").env("FAKETIME_CACHE_DURATION", "1");
                    command.env("FAKETIME_TIMESTAMP_FILE", self.clock(host));
                    if !self.clock(host).exists() {
                        self.step_clock(host, 0)?;
                    }
                }
            }
            Host::Worker(_) => {
                command.arg(self.kiln(host)).args(["worker", "--config"]).arg(self.dir.join(format!("{host}.toml")));
            }
            Host::Client => bail!("the client's host has no program of its own"),
        }
        command.env("KILN_LOG", "info,openraft=warn,kiln_coordinator=debug,kiln_worker=debug");
        let log = self.dir.join(format!("logs/{host}.log"));
        self.processes.insert(host, Process::start(host, &mut command, &log, &self.book)?);
        Ok(())
    }

    /// Returns the running program of a host.
    ///
    /// # Errors
    /// If there is none.
    pub fn process(&mut self, host: Host) -> anyhow::Result<&mut Process> {
        self.processes.get_mut(&host).with_context(|| format!("nothing runs on {host}"))
    }

    /// Kills the program of a host; [`Farm::launch`] starts it again.
    ///
    /// # Errors
    /// If it had ended by itself.
    pub fn kill(&mut self, host: Host) -> anyhow::Result<()> {
        self.process(host)?.kill()?;
        self.processes.remove(&host);
        Ok(())
    }

    /// Lets go of the program of a host that ended by itself.
    pub fn forget(&mut self, host: Host) {
        self.processes.remove(&host);
    }

    /// Stops the program of a host in order.
    ///
    /// # Errors
    /// If it does not end well.
    pub fn stop(&mut self, host: Host) -> anyhow::Result<()> {
        self.process(host)?.stop(Signal::SIGTERM, STOP)?;
        self.processes.remove(&host);
        Ok(())
    }

    /// Stops everything in order: workers, coordinators, the store.
    ///
    /// # Errors
    /// If something does not end well.
    pub fn stop_all(&mut self) -> anyhow::Result<()> {
        let hosts: Vec<Host> = self.processes.keys().copied().collect();
        let rank = |host: &Host| match host {
            Host::Worker(_) => 0,
            Host::Coordinator(_) => 1,
            Host::Store | Host::Client => 2,
        };
        for wanted in 0..=2 {
            for host in hosts.iter().filter(|host| rank(host) == wanted) {
                self.stop(*host)?;
            }
        }
        Ok(())
    }

    /// Fails if a program ended by itself.
    ///
    /// # Errors
    /// If so: which, and how.
    pub fn must_live(&mut self) -> anyhow::Result<()> {
        self.processes.values_mut().try_for_each(Process::must_live)
    }

    /// Returns a coordinator's disk.
    ///
    /// # Errors
    /// If it is none's.
    pub fn disk(&self, host: Host) -> anyhow::Result<&Disk> {
        self.disks.get(&host).with_context(|| format!("{host} has no disk of its own"))
    }

    /// Lets a coordinator's wall clock be off by so many milliseconds.
    ///
    /// # Errors
    /// If the file that says so cannot be written.
    pub fn step_clock(&self, host: Host, ms: i64) -> anyhow::Result<()> {
        let clock = self.clock(host);
        let seconds = ms as f64 / 1000.0;
        fs::write(&clock, format!("{seconds:+.3}\n")).with_context(|| format!("write `{}`", clock.display()))
    }

    fn clock(&self, host: Host) -> PathBuf {
        self.dir.join(format!("{host}.clock"))
    }

    /// Returns a command of an operator, on the client's host.
    pub fn operator(&self, args: &[&str]) -> Command {
        self.client_as("admin", args)
    }

    /// Returns a command of a client, on the client's host.
    pub fn client(&self, args: &[&str]) -> Command {
        self.client_as("client", args)
    }

    fn client_as(&self, role: &str, args: &[&str]) -> Command {
        let mut command = net::on(Host::Client);
        let addresses: Vec<String> = self.coordinators().into_iter().map(|host| format!("{}:{LINK_PORT}", host.address())).collect();
        command.arg(self.kiln(Host::Client)).args(args);
        command.args(["--farm", &format!("kiln://{}", addresses.join(",")), "--identity"]).arg(Identities::dir(&self.dir).join(role));
        command.env_remove("KILN_FARM").env_remove("KILN_IDENTITY").env("KILN_DIR", self.dir.join("no-farm"));
        command
    }

    /// Returns the directory with a client's certificate.
    pub fn client_identity(&self) -> PathBuf {
        Identities::dir(&self.dir).join("client")
    }

    /// Returns where logs and other files of this farm lie.
    pub fn dir(&self) -> &Path {
        &self.dir
    }

    /// Returns what `kiln status --json` prints.
    ///
    /// # Errors
    /// What it said.
    pub fn status(&self) -> anyhow::Result<serde_json::Value> {
        serde_json::from_str(&run::finish(&mut self.client(&["status", "--json"]))?).context("read `kiln status --json`")
    }

    fn wait_for_leader(&self) -> anyhow::Result<()> {
        run::wait_for("a coordinator leads", START, || Ok(self.status().ok().map(|_| ())))
    }
}

/// Certificates of one authority, and the farm's signing key. They lie beside the farm's directory, so that several farms share them.
#[derive(Debug)]
struct Identities {
    dir: PathBuf,
}

impl Identities {
    fn dir(farm: &Path) -> PathBuf {
        farm.parent().unwrap_or(farm).join("identities")
    }

    /// Makes those that are absent.
    fn of(farm: &Path, shape: &Shape) -> anyhow::Result<Self> {
        let identities = Self { dir: Self::dir(farm) };
        let ca = identities.dir.join("ca");
        let kiln = |args: &[&str]| run::finish(Command::new(&shape.kiln).args(args));
        let text = |path: &Path| path.to_str().map(str::to_owned).with_context(|| format!("`{}` is no text", path.display()));
        if !ca.exists() {
            fs::create_dir_all(&identities.dir).with_context(|| format!("make `{}`", identities.dir.display()))?;
            kiln(&["ca", "init", "--dir", &text(&ca)?, "--farm", "faults"])?;
            kiln(&["keys", "generate", "--name", "faults-1", &text(&identities.signing_key())?])?;
        }
        let hosts = shape.hosts().into_iter().map(|host| match host {
            Host::Coordinator(node) => (host.to_string(), format!("coordinator/{node}")),
            Host::Worker(number) => (host.to_string(), format!("worker/{}", worker_name(number))),
            Host::Store => ("admin".to_owned(), "admin/faults".to_owned()),
            Host::Client => ("client".to_owned(), "client/faults".to_owned()),
        });
        for (name, role) in hosts {
            let out = identities.dir.join(name);
            if !out.exists() {
                kiln(&["ca", "issue", "--dir", &text(&ca)?, "--role", &role, "--out", &text(&out)?])?;
            }
        }
        Ok(identities)
    }

    fn of_host(&self, host: Host) -> PathBuf {
        self.dir.join(host.to_string())
    }

    fn signing_key(&self) -> PathBuf {
        self.dir.join("signing.key")
    }
}

/// A worker's name: one of the machine's, because a worker clears what an earlier one of its name left behind.
pub fn worker_name(number: u8) -> String {
    format!("faults-{}-{number}", std::process::id())
}

/// The election time where it is measured what follows from it. The program's own.
pub const ELECTION_MS: [u64; 2] = [250, 400];
/// How often a leader says that it lives, in milliseconds. The program's own.
pub const HEARTBEAT_MS: u64 = 50;
/// Bytes of a coordinator's disk: its log, snapshots and the uploads that pass through it.
const DISK_BYTES: u64 = 1 << 30;
/// First of the build users of worker 1, less four.
const SLOT_FIRST: u32 = 700;
/// Longest time for something to come up on a busy machine.
pub const START: Duration = Duration::from_secs(60);
/// Longest time for a program to stop in order: a worker finishes what it builds.
const STOP: Duration = Duration::from_secs(60);
const ACCESS_KEY: &str = "faults";
const SECRET_KEY: &str = "only-in-these-namespaces";
