//! One run: hosts, faults drawn from the seed, then a time without faults in which everything must end, then the checks.

use std::cell::RefCell;
use std::collections::{BTreeMap, BTreeSet};
use std::path::{Path, PathBuf};
use std::rc::Rc;
use std::sync::Arc;
use std::time::Duration;

use kiln_coordinator::raft::Consensus;
use kiln_coordinator::raft::ill::{self, Ill};
use kiln_coordinator::{Config, Coordinator};
use kiln_link::{Authority, Identity, Role};
use kiln_store::{Location, Store, StoreConfig};
use kiln_wire::{NodeId, RequestId};
use turmoil::Sim;

use crate::bug::Bug;
use crate::checks::{self, Leaders};
use crate::client::Client;
use crate::entropy::{advance, draw};
use crate::mishaps::Mishaps;
use crate::operator::{self, Machines, Operator};
use crate::pace::Pace;
use crate::planted;
use crate::told::Told;
use crate::work::{self, Graph};
use crate::worker::{Journal, Sightings, Worker};

/// Simulated time in which faults happen.
const FAULTS: Duration = Duration::from_secs(20);
/// Simulated time in which everything must have ended after the last fault: a silent worker costs 15 s, back-offs a few more.
const LIVENESS: Duration = Duration::from_secs(120);
/// Coordinators at the beginning.
const COORDINATORS: u64 = 3;
/// Simulated time in which coordinators come in step once clients have ended.
const SETTLED: Duration = Duration::from_secs(30);
/// A log segment: small, so that a run fills several.
const SEGMENT_BYTES: u64 = 16 << 10;

/// What a run came to.
#[derive(Debug)]
pub struct Report {
    pub simulated: Duration,
    /// Jobs that were built.
    pub jobs: usize,
    /// Leaders that there were.
    pub leaders: usize,
    pub faults: BTreeMap<&'static str, u64>,
    /// Attempts beyond the first of each job.
    pub repeated: u64,
    /// What coordinators said that they went through.
    pub seen: BTreeMap<&'static str, usize>,
}

/// What is up at a moment.
type Nodes = Rc<RefCell<BTreeMap<u64, Consensus>>>;

/// Everything that a run is about.
pub struct World {
    pub(crate) sim: Sim<'static>,
    pub(crate) workers: BTreeMap<String, Pace>,
    pub(crate) nodes: Nodes,
    pub(crate) machines: Machines,
    /// Coordinators whose machines are on.
    pub(crate) running: BTreeSet<NodeId>,
    leaders: Leaders,
    sightings: Sightings,
    graphs: Vec<Graph>,
    store: Location,
    pub(crate) faults: BTreeMap<&'static str, u64>,
    pub(crate) mishaps: Mishaps,
    /// Crashed hosts, and when they come back.
    pub(crate) down: BTreeMap<String, Duration>,
    /// Coordinators without room on their disk, and until when.
    pub(crate) full: BTreeMap<NodeId, Duration>,
    /// Pairs of hosts between which nothing passes, and until when.
    pub(crate) cut: Vec<(String, String, Duration)>,
}

/// Runs the simulation of a seed.
pub fn run(seed: u64, told: &Told) -> Result<Report, Vec<String>> {
    planted::begin();
    let mut world = World::new(seed);
    world.live().map_err(|breach| vec![breach])?;
    let settled = world.settle();
    world.check(settled, told)
}

impl World {
    /// Lets everything happen, until every client has what it wants.
    fn live(&mut self) -> Result<(), String> {
        self.form()?;
        tracing::info!(at = ?self.sim.elapsed(), clients = self.graphs.len(), "the farm stands");
        let until = self.sim.elapsed() + FAULTS;
        let mut next_fault = self.sim.elapsed();
        while self.sim.elapsed() < until {
            if self.sim.elapsed() >= next_fault {
                self.fault();
                next_fault = self.sim.elapsed() + Duration::from_millis(200 + draw(2500));
            }
            self.heal(false);
            self.step()?;
        }
        self.heal(true);
        let deadline = self.sim.elapsed() + LIVENESS;
        while !self.step()? {
            if self.sim.elapsed() > deadline {
                return Err(format!("everything ends once faults do: a client or the operator still waits {} s later", LIVENESS.as_secs()));
            }
        }
        Ok(())
    }

    fn new(seed: u64) -> Self {
        let mut builder = turmoil::Builder::new();
        builder
            .rng_seed(seed)
            .enable_random_order()
            .tick_duration(Duration::from_millis(2))
            .udp_capacity(1 << 14)
            .tcp_capacity(1 << 10)
            .min_message_latency(Duration::from_millis(0))
            .max_message_latency(Duration::from_millis(1 + draw(8)))
            .simulation_duration(Duration::from_secs(100_000));
        let sim = builder.build();
        let graphs = (0..2 + draw(4)).map(|_| work::graph(3 + draw(10))).collect();
        Self {
            sim,
            workers: BTreeMap::new(),
            nodes: Rc::default(),
            machines: Machines::new((1..=COORDINATORS).map(NodeId)),
            running: (1..=COORDINATORS).map(NodeId).collect(),
            leaders: Leaders::default(),
            sightings: Sightings::default(),
            graphs,
            store: Location::shared_memory(),
            faults: BTreeMap::new(),
            mishaps: Mishaps::default(),
            down: BTreeMap::new(),
            full: BTreeMap::new(),
            cut: Vec::new(),
        }
    }

    /// Starts coordinators and workers, and waits until the coordinators are one group.
    fn form(&mut self) -> Result<(), String> {
        let authority = Authority::ephemeral(&"sim".parse().expect("a name")).expect("an authority");
        let names: Vec<String> = (1..=COORDINATORS + operator::SPARE).map(|node| format!("c{node}")).collect();
        let links: Vec<String> = names.iter().map(|name| format!("{}:7420", self.sim.lookup(name.as_str()))).collect();
        let keys = dir().join("signing.key");
        kiln_store::keys::load_or_create(&keys, "sim").expect("a key");
        let first = Rc::new(RefCell::new(links[1..COORDINATORS as usize].to_vec()));
        for (node, name) in (1..).zip(&names) {
            let host = Host {
                config: self.coordinator(node, &links),
                identity: identity(&authority, &format!("coordinator/{node}")),
                nodes: self.nodes.clone(),
                leaders: self.leaders.clone(),
                machines: self.machines.clone(),
                others: first.clone(),
            };
            self.sim.host(name.as_str(), move || host.clone().run());
        }
        let mut graph = self.graphs[0].clone();
        graph.jobs =
            Arc::new(self.graphs.iter().flat_map(|graph| graph.jobs.iter().map(|(path, job)| (path.clone(), job.clone()))).collect());
        for number in 1..=2 + draw(2) {
            let name = format!("w{number}");
            let pace = Pace::default();
            let worker = Worker {
                identity: identity(&authority, &format!("worker/{name}")),
                name: name.clone(),
                coordinators: links.clone(),
                graph: graph.clone(),
                journal: Journal::default(),
                sightings: self.sightings.clone(),
                pace: pace.clone(),
            };
            self.sim.host(name.as_str(), move || worker.clone().run());
            self.workers.insert(name, pace);
        }
        while self.nodes.borrow().values().filter(|node| node.members().iter().filter(|member| member.votes).count() == 3).count() < 3 {
            self.step()?;
            if self.sim.elapsed() > Duration::from_secs(60) {
                return Err("three coordinators become one group: they do not within a minute".into());
            }
        }
        let clients: Vec<(usize, Identity)> =
            (0..self.graphs.len()).map(|number| (number, identity(&authority, &format!("client/u{number}")))).collect();
        for (number, identity) in clients {
            let graph = self.graphs[number].clone();
            let after = Duration::from_millis(draw(FAULTS.as_millis() as u64));
            let (request, mishaps) = (RequestId(1000 + number as u64), self.mishaps.clone());
            let client = Client { identity, coordinators: links.clone(), graph, request, after, mishaps };
            self.sim.client(format!("u{number}"), client.run());
        }
        // From here on: a farm that never came about shows nothing.
        for (bug, ill) in [(Bug::SyncsNothing, Ill::SyncsNothing), (Bug::ForgetsNames, Ill::ForgetsNames)] {
            ill::set(dir(), ill, bug.is_planted());
        }
        let plan = operator::plan(COORDINATORS + 1);
        let (identity, machines, within) = (identity(&authority, "admin/o"), self.machines.clone(), FAULTS / 2);
        let operator = Operator { identity, coordinators: links, machines, plan, within };
        self.sim.client("o", operator.run());
        Ok(())
    }

    fn coordinator(&self, node: u64, links: &[String]) -> Config {
        let own = Self::dir_of(NodeId(node));
        let join = if node == 1 { String::new() } else { format!("join = ['{}']", links[0]) };
        let text = format!(
            "dir = '{}'\nidentity = '/none'\nfarm = 'sim'\nnode = {node}\nlisten = '0.0.0.0:7420'\nhttp = '0.0.0.0:7480'\n\
             advertise = '{}'\nadvertise_http = 'c{node}:7480'\nsigning_key = '{}'\n{join}\n[store]\nurl = 's3://sim'\n",
            own.display(),
            links[node as usize - 1],
            dir().join("signing.key").display(),
        );
        let mut config: Config = toml::from_str(&text).expect("a configuration");
        config.location = Some(self.store.clone());
        config.segment_bytes = Some(SEGMENT_BYTES);
        config
    }

    /// Returns the directory of a coordinator.
    pub fn dir_of(node: NodeId) -> PathBuf {
        dir().join(node.to_string())
    }

    /// Takes one step; returns whether every client has ended.
    fn step(&mut self) -> Result<bool, String> {
        let done = self.sim.step().map_err(|error| chain(error.as_ref()))?;
        advance(self.sim.elapsed());
        self.switch_off();
        Ok(done)
    }

    /// Waits until the coordinators are in step.
    fn settle(&mut self) -> Result<(), String> {
        let deadline = self.sim.elapsed() + SETTLED;
        let members = self.machines.members();
        loop {
            let nodes: Vec<Consensus> = self.nodes.borrow().values().cloned().collect();
            let up: BTreeSet<NodeId> = nodes.iter().map(Consensus::node).collect();
            let missing = match up == members && checks::replicas(&nodes)? {
                true => checks::group(&nodes, &members).and_then(|()| checks::room(&nodes)),
                false => Err(format!("coordinators come in step once faults end: {up:?} of {members:?} are up, and not all are")),
            };
            match missing {
                Ok(()) => return Ok(()),
                Err(breach) if self.sim.elapsed() > deadline => return Err(format!("{breach} within {} s", SETTLED.as_secs())),
                // Clients have ended; hosts go on.
                Err(_) => drop(self.step()?),
            }
        }
    }

    fn check(self, settled: Result<(), String>, told: &Told) -> Result<Report, Vec<String>> {
        let lines = told.lines();
        let mut breaches: Vec<String> = settled.err().into_iter().collect();
        breaches.extend(self.leaders.check().err());
        breaches.extend(checks::log_lines(&lines, &self.graphs));
        let repeated = checks::workers(&self.sightings.all(), &lines, &self.graphs, &mut breaches);
        let runtime = tokio::runtime::Builder::new_current_thread().build().expect("a runtime");
        breaches.extend(runtime.block_on(async {
            planted::spoil(&self.store).await;
            let config = StoreConfig {
                location: self.store.clone(),
                store_dir: Default::default(),
                spool_dir: dir().join("spool"),
                cached_paths_max: 100,
            };
            let store = Store::open(config).await.expect("memory can be opened");
            checks::outputs(&store, &self.graphs).await.err()
        }));
        if !breaches.is_empty() {
            return Err(breaches);
        }
        let jobs = self.graphs.iter().map(|graph| graph.order.len()).sum();
        let (leaders, mut seen) = (self.leaders.count(), told.seen());
        seen.extend(self.machines.done());
        Ok(Report { simulated: self.sim.elapsed(), jobs, leaders, faults: self.faults, repeated, seen })
    }
}

/// A coordinator's machine.
#[derive(Clone)]
struct Host {
    config: Config,
    identity: Identity,
    nodes: Nodes,
    leaders: Leaders,
    machines: Machines,
    /// Whom the first coordinator takes in when the farm begins.
    others: Rc<RefCell<Vec<String>>>,
}

impl Host {
    /// Runs a coordinator until its host crashes, once the machine is switched on.
    async fn run(self) -> turmoil::Result {
        let node = self.config.node;
        while !self.machines.on().contains(&node) {
            tokio::time::sleep(Duration::from_millis(200)).await;
        }
        let coordinator = self.start().await?;
        let consensus = coordinator.consensus().clone();
        self.nodes.borrow_mut().insert(node.0, consensus.clone());
        if node == NodeId(1) {
            tokio::task::spawn_local(take_in(consensus.clone(), self.others.clone()));
        }
        let mut leadership = consensus.leadership();
        let mut has_led = false;
        loop {
            let mut known = *leadership.borrow_and_update();
            if has_led && Bug::LeadsOn.is_planted() {
                (known.is_self, known.leader.node) = (true, node);
            }
            if known.is_self {
                self.leaders.note(known.leader);
                has_led = true;
            }
            tokio::select! {
                biased;
                failed = coordinator.failed() => return Err(format!("no coordinator fails: {}", chain(&failed)).into()),
                changed = leadership.changed() => changed?,
            }
        }
    }

    /// Starts the coordinator, again and again while its disk is full, as the system's service manager does.
    async fn start(&self) -> Result<Coordinator, String> {
        loop {
            match Coordinator::start(self.config.clone(), &self.identity).await {
                Ok(coordinator) => return Ok(coordinator),
                Err(error) if ill::is(&self.config.dir, Ill::Full) => {
                    tracing::info!(node = %self.config.node, error = chain(&error), "not started");
                    tokio::time::sleep(Duration::from_secs(1)).await;
                }
                Err(error) => return Err(format!("no coordinator fails: {} cannot start: {}", self.config.node, chain(&error))),
            }
        }
    }
}

/// Makes the first coordinators one group.
async fn take_in(consensus: Consensus, others: Rc<RefCell<Vec<String>>>) {
    loop {
        let Some(link) = others.borrow().first().cloned() else { return };
        let node = NodeId(COORDINATORS + 1 - others.borrow().len() as u64);
        match consensus.add(node, link).await {
            Ok(()) => drop(others.borrow_mut().remove(0)),
            Err(error) => {
                tracing::info!(%error, "add");
                tokio::time::sleep(Duration::from_millis(200)).await;
            }
        }
    }
}

/// The directory of a run, under a name that is the same in every run.
fn dir() -> &'static Path {
    Path::new("/proc/self/cwd")
}

fn identity(authority: &Authority, role: &str) -> Identity {
    let role: Role = role.parse().expect("a role");
    Identity::from_credentials(&authority.issue(&role, Duration::from_secs(86_400)).expect("issues")).expect("an identity")
}

fn chain(error: &dyn std::error::Error) -> String {
    match error.source() {
        Some(source) => format!("{error}: {}", chain(source)),
        None => error.to_string(),
    }
}
