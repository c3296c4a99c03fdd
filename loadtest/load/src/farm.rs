//! The farm under load: its certificates, configurations and programs, on loopback, in a directory of its own.

use std::fs;
use std::net::{Ipv4Addr, SocketAddr, TcpListener, UdpSocket};
use std::ops::Range;
use std::os::unix::fs::PermissionsExt;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::sync::atomic::{AtomicU32, Ordering};
use std::time::Duration;

use anyhow::Context;
use kiln_coordinator::{Config, Coordinator};
use kiln_link::{Authority, FarmName, Identity, MemberName, Role};
use kiln_s3::S3Server;
use kiln_wire::client::{Request, Response};
use kiln_wire::{ClusterRequest, NodeId};

use crate::client::Client;
use crate::host::{self, Usage};

/// Programs of the farm, as processes of their own.
#[derive(Clone, Debug)]
pub struct Programs {
    /// Runs a coordinator if it is told `coordinator --config FILE`, as `kiln` does.
    pub coordinator: PathBuf,
    /// Runs the S3-compatible server that several coordinators share, if it is told `store --listen ADDR --dir DIR`: `kiln-load`.
    pub store: PathBuf,
}

/// A running farm. Its processes end when it is dropped.
pub struct Farm {
    nodes: Vec<Node>,
    _store: Option<Store>,
    authority: Authority,
    addresses: Vec<String>,
    http: Vec<SocketAddr>,
}

enum Node {
    Process(Process),
    Inside(Box<Coordinator>),
}

enum Store {
    Process(#[allow(dead_code, reason = "held until the farm ends")] Process),
    Inside(#[allow(dead_code, reason = "held until the farm ends")] S3Server),
}

/// A process that ends with this.
struct Process(Child);

impl Drop for Process {
    fn drop(&mut self) {
        // Both fail only if it has ended already.
        let _killed = self.0.kill();
        let _reaped = self.0.wait();
    }
}

impl Farm {
    /// Starts a farm of so many coordinators in an empty `dir`, which nobody else uses; in this process if there are no `programs`. Several
    /// share a store behind an S3-compatible server; one has its own on disk.
    ///
    /// # Errors
    /// What could not be made, or started.
    pub async fn start(programs: Option<&Programs>, coordinators: u8, dir: &Path) -> anyhow::Result<Self> {
        let authority = Authority::ephemeral(&FARM.parse::<FarmName>()?)?;
        kiln_store::keys::load_or_create(&dir.join("signing.key"), FARM)?;
        let store_addr = free_tcp()?;
        let store = if coordinators > 1 { Some(start_store(programs, store_addr, dir).await?) } else { None };
        let mut farm = Self { nodes: Vec::new(), _store: store, authority, addresses: Vec::new(), http: Vec::new() };
        for _ in 0..coordinators {
            farm.addresses.push(free_udp()?.to_string());
            farm.http.push(free_tcp()?);
        }
        for number in 1..=coordinators {
            let election_ms = if programs.is_some() { ELECTION_MS } else { ELECTION_MS_INSIDE };
            let config = farm.write_config(number, election_ms, coordinators > 1, store_addr, dir)?;
            farm.nodes.push(start_node(programs, number, &config, dir).await?);
            if number > 1 {
                farm.take_in(number).await.with_context(|| format!("take in coordinator {number}"))?;
            } else {
                farm.client("first").await?;
            }
        }
        Ok(farm)
    }

    /// Returns where the coordinators listen.
    pub fn addresses(&self) -> &[String] {
        &self.addresses
    }

    /// Makes the identity of a member.
    ///
    /// # Errors
    /// If no key can be made.
    pub fn identity(&self, role: &Role) -> anyhow::Result<Identity> {
        Ok(Identity::from_credentials(&self.authority.issue(role, LIFETIME)?)?)
    }

    /// Connects a client to the leader.
    ///
    /// # Errors
    /// If there is none for a minute.
    pub async fn client(&self, name: &str) -> anyhow::Result<Client> {
        let role = Role::Admin(name.parse::<MemberName>()?);
        Client::connect(&self.identity(&role)?, &self.addresses).await
    }

    /// Returns what each coordinator's process has used. One in this process is counted with all that this process does beside it, workers
    /// and client among them: such figures are for tests of this program.
    ///
    /// # Errors
    /// If one has ended.
    pub fn usage(&self) -> anyhow::Result<Vec<Usage>> {
        let usage = self.nodes.iter().map(|node| match node {
            Node::Process(process) => host::usage(process.0.id()),
            Node::Inside(_) => host::usage(std::process::id()),
        });
        usage.collect()
    }

    /// Returns the place of the leader.
    ///
    /// # Errors
    /// If there is none.
    pub async fn leader(&self, client: &Client) -> anyhow::Result<usize> {
        let leader = client.leader().await?;
        self.addresses.iter().position(|address| *address == leader).context("the leader is one of the farm")
    }

    /// Returns the metrics of the coordinator at `place`.
    ///
    /// # Errors
    /// If it does not answer.
    pub async fn metrics(&self, place: usize) -> anyhow::Result<host::Metrics> {
        host::metrics(self.http[place]).await
    }

    /// Returns where the coordinator at `place` serves HTTP.
    pub fn http_addr(&self, place: usize) -> SocketAddr {
        self.http[place]
    }

    /// Returns the process of the coordinator at `place`, for a profiler.
    pub fn process(&self, place: usize) -> Option<u32> {
        match self.nodes.get(place)? {
            Node::Process(process) => Some(process.0.id()),
            Node::Inside(_) => None,
        }
    }

    /// Ends the farm in order, as far as it is in this process.
    pub async fn stop(self) {
        for node in self.nodes {
            if let Node::Inside(coordinator) = node {
                coordinator.stop().await;
            }
        }
    }

    async fn take_in(&self, number: u8) -> anyhow::Result<()> {
        let link = self.addresses[usize::from(number) - 1].clone();
        let client = self.client("operator").await?;
        let add = Request::Cluster(ClusterRequest::Add { node: NodeId(u64::from(number)), link });
        let deadline = tokio::time::Instant::now() + TAKEN_IN;
        loop {
            match client.one(&add).await {
                Ok(Response::Done) => return Ok(()),
                // It does not listen yet, or the one before it is not in step yet.
                other if tokio::time::Instant::now() > deadline => anyhow::bail!("the farm said {other:?}"),
                _ => tokio::time::sleep(PAUSE).await,
            }
        }
    }

    fn write_config(&self, number: u8, election_ms: [u64; 2], shared: bool, store: SocketAddr, dir: &Path) -> anyhow::Result<PathBuf> {
        let identity = dir.join(format!("id-{number}"));
        self.authority.issue(&Role::Coordinator(NodeId(u64::from(number))), LIFETIME)?.write(&identity)?;
        let at = usize::from(number) - 1;
        let mut text = format!(
            "dir = '{dir}/coordinator-{number}'\nfarm = '{FARM}'\nnode = {number}\nlisten = '{link}'\nhttp = '{http}'\n\
             identity = '{identity}'\nsigning_key = '{dir}/signing.key'\nelection_ms = {election_ms:?}\nanonymous_readers = true\n",
            dir = dir.display(),
            link = self.addresses[at],
            http = self.http[at],
            identity = identity.display(),
        );
        if number > 1 {
            text += &format!("join = ['{}']\n", self.addresses[0]);
        }
        if shared {
            text += &format!(
                "[store]\nurl = 's3://kiln/farm'\nendpoint = 'http://{store}'\nregion = 'test'\nallow_http = true\n\
                 credentials = '{}/s3.toml'\n",
                dir.display()
            );
        }
        let file = dir.join(format!("coordinator-{number}.toml"));
        fs::write(&file, text).with_context(|| format!("write `{}`", file.display()))?;
        Ok(file)
    }
}

async fn start_node(programs: Option<&Programs>, number: u8, config: &Path, dir: &Path) -> anyhow::Result<Node> {
    let Some(programs) = programs else {
        let config = Config::read(config)?;
        let identity = Identity::load(&config.identity)?;
        return Ok(Node::Inside(Box::new(Coordinator::start(config, &identity).await?)));
    };
    let mut command = Command::new(&programs.coordinator);
    command.args(["coordinator", "--config"]).arg(config).env("KILN_LOG", LOG_FILTER);
    Ok(Node::Process(spawn(&mut command, &dir.join(format!("coordinator-{number}.log")))?))
}

async fn start_store(programs: Option<&Programs>, listen: SocketAddr, dir: &Path) -> anyhow::Result<Store> {
    let keys = dir.join("s3.toml");
    fs::write(&keys, format!("access_key_id = '{ACCESS_KEY}'\nsecret_access_key = '{SECRET_KEY}'\n")).context("write `s3.toml`")?;
    fs::set_permissions(&keys, fs::Permissions::from_mode(0o600)).context("keep `s3.toml` to ourselves")?;
    let objects = dir.join("s3");
    let Some(programs) = programs else { return Ok(Store::Inside(serve_store(listen, objects).await?)) };
    let mut command = Command::new(&programs.store);
    command.args(["store", "--listen", &listen.to_string(), "--dir"]).arg(objects);
    Ok(Store::Process(spawn(&mut command, &dir.join("s3.log"))?))
}

/// Starts the S3-compatible server that several coordinators share, in this process.
///
/// # Errors
/// If it cannot listen, or use the directory.
pub async fn serve_store(listen: SocketAddr, dir: PathBuf) -> anyhow::Result<S3Server> {
    let (access_key, secret_key) = (ACCESS_KEY.to_owned(), SECRET_KEY.to_owned());
    Ok(S3Server::start(kiln_s3::Config { listen, dir, access_key, secret_key, buckets: vec!["kiln".to_owned()] }).await?)
}

/// Runs a coordinator in this process until it is told to stop.
///
/// # Errors
/// If it cannot start, or stops by itself.
pub async fn serve_coordinator(config: &Path) -> anyhow::Result<()> {
    let config = Config::read(config)?;
    let identity = Identity::load(&config.identity)?;
    let coordinator = Coordinator::start(config, &identity).await?;
    tokio::select! {
        told = told_to_stop() => told?,
        error = coordinator.failed() => return Err(error.into()),
    }
    coordinator.stop().await;
    Ok(())
}

/// Returns once this process is told to stop, by SIGINT or SIGTERM.
///
/// # Errors
/// If it cannot listen for signals.
pub async fn told_to_stop() -> anyhow::Result<()> {
    use tokio::signal::unix::{SignalKind, signal};
    let (mut terminated, mut interrupted) = (signal(SignalKind::terminate())?, signal(SignalKind::interrupt())?);
    tokio::select! {
        _ = terminated.recv() => {}
        _ = interrupted.recv() => {}
    }
    Ok(())
}

fn spawn(command: &mut Command, log: &Path) -> anyhow::Result<Process> {
    let file = fs::File::create(log).with_context(|| format!("make `{}`", log.display()))?;
    let errors = file.try_clone().context("share the log")?;
    let child = command.stdin(Stdio::null()).stdout(file).stderr(errors).spawn();
    Ok(Process(child.with_context(|| format!("start `{}`", command.get_program().display()))?))
}

fn free_udp() -> anyhow::Result<SocketAddr> {
    free_port(|addr| UdpSocket::bind(addr).is_ok())
}

fn free_tcp() -> anyhow::Result<SocketAddr> {
    free_port(|addr| TcpListener::bind(addr).is_ok())
}

/// Finds a port that is free, and stays so until it is used: none that the kernel gives to whoever asks for any, as each simulated worker
/// does, and none that another farm of this process was given.
fn free_port(is_free: impl Fn(SocketAddr) -> bool) -> anyhow::Result<SocketAddr> {
    static TRIED: AtomicU32 = AtomicU32::new(0);
    let count = u32::from(PORTS.end - PORTS.start);
    for _ in 0..count {
        // Processes begin at places of their own.
        let at = (std::process::id().wrapping_mul(61) + TRIED.fetch_add(1, Ordering::Relaxed)) % count;
        let port = PORTS.start + u16::try_from(at).context("a port")?;
        let addr = SocketAddr::from((Ipv4Addr::LOCALHOST, port));
        if is_free(addr) {
            return Ok(addr);
        }
    }
    anyhow::bail!("none of the ports {} to {} is free", PORTS.start, PORTS.end - 1)
}

/// The farm's name.
const FARM: &str = "load";
const ACCESS_KEY: &str = "load";
const SECRET_KEY: &str = "not-a-secret";
/// A machine that does other work too must not lose its leader for that.
const ELECTION_MS: [u64; 2] = [2000, 3000];
/// Nor must a test, which shares one process with all that the farm does.
const ELECTION_MS_INSIDE: [u64; 2] = [5000, 7500];
/// Below the ports that Linux gives to those that ask for any.
const PORTS: Range<u16> = 12_000..32_000;
const LOG_FILTER: &str = "warn,openraft=error";
/// How long certificates hold: longer than any run.
const LIFETIME: Duration = Duration::from_secs(24 * 3600);
/// How long a coordinator may take to be one of the farm.
const TAKEN_IN: Duration = Duration::from_secs(120);
/// Between two questions whether it is.
const PAUSE: Duration = Duration::from_millis(200);
