//! One run: hosts, faults drawn from the seed, then a time without faults in which everything must end, then the checks.

use std::cell::RefCell;
use std::collections::BTreeMap;
use std::rc::Rc;
use std::sync::Arc;
use std::time::Duration;

use kiln_coordinator::raft::Consensus;
use kiln_coordinator::{Config, Coordinator};
use kiln_link::{Authority, Identity, Role};
use kiln_store::{Location, Store, StoreConfig};
use kiln_wire::{NodeId, RequestId};
use turmoil::Sim;

use crate::checks::{self, Leaders};
use crate::client::Client;
use crate::entropy::{advance, draw, skew};
use crate::told::Told;
use crate::work::{self, Graph};
use crate::worker::{Journal, Sightings, Worker};

/// Simulated time in which faults happen.
const FAULTS: Duration = Duration::from_secs(20);
/// Simulated time in which everything must have ended after the last fault: a silent worker costs 15 s, back-offs a few more.
const LIVENESS: Duration = Duration::from_secs(120);
/// Coordinators.
const COORDINATORS: u64 = 3;

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
}

/// What is up at a moment.
type Nodes = Rc<RefCell<BTreeMap<u64, Consensus>>>;

struct World {
    sim: Sim<'static>,
    hosts: Vec<String>,
    workers: Vec<String>,
    nodes: Nodes,
    leaders: Leaders,
    sightings: Sightings,
    graphs: Vec<Graph>,
    store: Location,
    dir: tempfile::TempDir,
    faults: BTreeMap<&'static str, u64>,
    /// Crashed hosts, and when they come back.
    down: BTreeMap<String, Duration>,
    /// Pairs of hosts between which nothing passes, and until when.
    cut: Vec<(String, String, Duration)>,
}

/// Runs the simulation of a seed.
pub fn run(seed: u64, told: &Told) -> Result<Report, String> {
    let mut world = World::new(seed);
    world.form()?;
    tracing::info!(at = ?world.sim.elapsed(), clients = world.graphs.len(), "the farm stands");
    let until = world.sim.elapsed() + FAULTS;
    let mut next_fault = world.sim.elapsed();
    while world.sim.elapsed() < until {
        if world.sim.elapsed() >= next_fault {
            world.fault();
            next_fault = world.sim.elapsed() + Duration::from_millis(200 + draw(3000));
        }
        world.heal(false);
        world.step()?;
    }
    world.heal(true);
    let deadline = world.sim.elapsed() + LIVENESS;
    while !world.step()? {
        if world.sim.elapsed() > deadline {
            return Err(format!("everything ends once faults do: a client still waits {} s later", LIVENESS.as_secs()));
        }
    }
    world.settle()?;
    world.check(told)
}

impl World {
    fn new(seed: u64) -> Self {
        let mut builder = turmoil::Builder::new();
        builder
            .rng_seed(seed)
            .enable_random_order()
            .udp_capacity(1 << 14)
            .tcp_capacity(1 << 10)
            .min_message_latency(Duration::from_millis(0))
            .max_message_latency(Duration::from_millis(1 + draw(8)))
            .simulation_duration(Duration::from_secs(100_000));
        let sim = builder.build();
        let graphs = (0..2 + draw(4)).map(|_| work::graph(3 + draw(10))).collect();
        Self {
            sim,
            hosts: Vec::new(),
            workers: Vec::new(),
            nodes: Rc::default(),
            leaders: Leaders::default(),
            sightings: Sightings::default(),
            graphs,
            store: Location::shared_memory(),
            dir: tempfile::tempdir().expect("a directory"),
            faults: BTreeMap::new(),
            down: BTreeMap::new(),
            cut: Vec::new(),
        }
    }

    /// Starts coordinators and workers, and waits until the coordinators are one group.
    fn form(&mut self) -> Result<(), String> {
        let authority = Authority::ephemeral(&"sim".parse().expect("a name")).expect("an authority");
        let names: Vec<String> = (1..=COORDINATORS).map(|node| format!("c{node}")).collect();
        let links: Vec<String> = names.iter().map(|name| format!("{}:7420", self.sim.lookup(name.as_str()))).collect();
        let keys = self.dir.path().join("signing.key");
        kiln_store::keys::load_or_create(&keys, "sim").expect("a key");
        for node in 1..=COORDINATORS {
            let identity = identity(&authority, &format!("coordinator/{node}"));
            let config = self.coordinator(node, &links);
            let (nodes, leaders, links) = (self.nodes.clone(), self.leaders.clone(), links.clone());
            self.sim.host(names[node as usize - 1].as_str(), move || {
                coordinate(config.clone(), identity.clone(), nodes.clone(), leaders.clone(), links.clone())
            });
        }
        self.hosts.clone_from(&names);
        let mut graph = self.graphs[0].clone();
        graph.jobs =
            Arc::new(self.graphs.iter().flat_map(|graph| graph.jobs.iter().map(|(path, job)| (path.clone(), job.clone()))).collect());
        for number in 1..=2 + draw(2) {
            let name = format!("w{number}");
            let worker = Worker {
                identity: identity(&authority, &format!("worker/{name}")),
                name: name.clone(),
                coordinators: links.clone(),
                graph: graph.clone(),
                journal: Journal::default(),
                sightings: self.sightings.clone(),
            };
            self.sim.host(name.as_str(), move || worker.clone().run());
            self.workers.push(name.clone());
            self.hosts.push(name);
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
            let client = Client { identity, coordinators: links.clone(), graph, request: RequestId(1000 + number as u64), after };
            self.sim.client(format!("u{number}"), client.run());
        }
        Ok(())
    }

    fn coordinator(&self, node: u64, links: &[String]) -> Config {
        let dir = self.dir.path().join(node.to_string());
        let join = if node == 1 { String::new() } else { format!("join = ['{}']", links[0]) };
        let text = format!(
            "dir = '{}'\nidentity = '/none'\nfarm = 'sim'\nnode = {node}\nlisten = '0.0.0.0:7420'\nhttp = '0.0.0.0:7480'\n\
             advertise = '{}'\nadvertise_http = 'c{node}:7480'\nsigning_key = '{}'\n{join}\n[store]\nurl = 's3://sim'\n",
            dir.display(),
            links[node as usize - 1],
            self.dir.path().join("signing.key").display(),
        );
        let mut config: Config = toml::from_str(&text).expect("a configuration");
        config.location = Some(self.store.clone());
        config
    }

    /// Takes one step; returns whether every client has ended.
    fn step(&mut self) -> Result<bool, String> {
        let done = self.sim.step().map_err(|error| format!("nobody fails: {}", chain(error.as_ref())))?;
        advance(self.sim.elapsed());
        Ok(done)
    }

    /// Does something bad.
    fn fault(&mut self) {
        let now = self.sim.elapsed();
        let what = match draw(8) {
            0 | 1 => self.crash(COORDINATORS, now),
            2 => self.crash(0, now),
            3 | 4 => self.partition(now, true),
            5 => self.partition(now, false),
            6 => {
                self.sim.set_fail_rate(draw(20) as f64 / 100.0);
                "loss"
            }
            _ => {
                skew(draw(20_000) as i64 - 10_000);
                "clock step"
            }
        };
        tracing::info!(at = ?now, what, down = ?self.down, cut = ?self.cut, "fault");
        *self.faults.entry(what).or_default() += 1;
    }

    /// Crashes a coordinator, if the others are up, or a worker.
    fn crash(&mut self, coordinators: u64, now: Duration) -> &'static str {
        let (name, what) = match coordinators {
            0 => (self.workers[draw(self.workers.len() as u64) as usize].clone(), "worker crash"),
            count => (format!("c{}", 1 + draw(count)), "coordinator crash"),
        };
        let others_up = self.down.keys().all(|down| down.starts_with('c') != name.starts_with('c'));
        if !others_up || self.down.contains_key(&name) {
            return "spared";
        }
        self.sim.crash(name.as_str());
        if let Some(node) = name.strip_prefix('c') {
            self.nodes.borrow_mut().remove(&node.parse().expect("a number"));
        }
        self.down.insert(name, now + Duration::from_millis(100 + draw(6000)));
        what
    }

    fn partition(&mut self, now: Duration, both_ways: bool) -> &'static str {
        let (one, other) = (draw(self.hosts.len() as u64) as usize, draw(self.hosts.len() as u64) as usize);
        if one == other {
            return "spared";
        }
        let (one, other) = (self.hosts[one].clone(), self.hosts[other].clone());
        match both_ways {
            true => self.sim.partition(one.as_str(), other.as_str()),
            false => self.sim.partition_oneway(one.as_str(), other.as_str()),
        }
        self.cut.push((one, other, now + Duration::from_millis(200 + draw(8000))));
        if both_ways { "partition" } else { "one-way partition" }
    }

    /// Mends what is due, or everything.
    fn heal(&mut self, all: bool) {
        let now = self.sim.elapsed();
        let due: Vec<String> = self.down.iter().filter(|(_, at)| all || **at <= now).map(|(name, _)| name.clone()).collect();
        for name in due {
            self.down.remove(&name);
            self.sim.bounce(name.as_str());
        }
        let (mended, cut) = std::mem::take(&mut self.cut).into_iter().partition(|(_, _, at)| all || *at <= now);
        self.cut = cut;
        let mended: Vec<(String, String, Duration)> = mended;
        for (one, other, _) in mended {
            if !self.cut.iter().any(|(a, b, _)| (a, b) == (&one, &other) || (a, b) == (&other, &one)) {
                self.sim.repair(one.as_str(), other.as_str());
            }
        }
        if all {
            self.sim.set_fail_rate(0.0);
            skew(0);
        }
    }

    /// Waits until the coordinators are in step.
    fn settle(&mut self) -> Result<(), String> {
        let deadline = self.sim.elapsed() + Duration::from_secs(30);
        loop {
            let nodes: Vec<Consensus> = self.nodes.borrow().values().cloned().collect();
            if nodes.len() == COORDINATORS as usize && checks::replicas(&nodes)? {
                return Ok(());
            }
            if self.sim.elapsed() > deadline {
                return Err("coordinators come in step once faults end: they do not within 30 s".into());
            }
            // Clients have ended; hosts go on.
            self.step()?;
        }
    }

    fn check(self, told: &Told) -> Result<Report, String> {
        let lines = told.lines();
        self.leaders.check()?;
        checks::log_lines(&lines, &self.graphs)?;
        let repeated = checks::workers(&self.sightings.all(), &lines, &self.graphs)?;
        let runtime = tokio::runtime::Builder::new_current_thread().build().expect("a runtime");
        runtime.block_on(async {
            let config = StoreConfig {
                location: self.store.clone(),
                store_dir: Default::default(),
                spool_dir: self.dir.path().join("spool"),
                cached_paths_max: 100,
            };
            let store = Store::open(config).await.map_err(|error| error.to_string())?;
            checks::outputs(&store, &self.graphs).await
        })?;
        let jobs = self.graphs.iter().map(|graph| graph.order.len()).sum();
        Ok(Report { simulated: self.sim.elapsed(), jobs, leaders: self.leaders.count(), faults: self.faults, repeated })
    }
}

/// A coordinator until its host crashes. The first one takes the others in.
async fn coordinate(config: Config, identity: Identity, nodes: Nodes, leaders: Leaders, links: Vec<String>) -> turmoil::Result {
    let node = config.node;
    let coordinator = Coordinator::start(config, &identity).await?;
    let consensus = coordinator.consensus().clone();
    nodes.borrow_mut().insert(node.0, consensus.clone());
    if node == NodeId(1) && consensus.members().len() < links.len() {
        let (consensus, links) = (consensus.clone(), links.clone());
        tokio::spawn(async move {
            for (number, link) in links.into_iter().enumerate().skip(1) {
                while let Err(error) = consensus.add(NodeId(number as u64 + 1), link.clone()).await {
                    tracing::info!(%error, "add");
                    tokio::time::sleep(Duration::from_millis(200)).await;
                }
            }
        });
    }
    let mut leadership = consensus.leadership();
    loop {
        let known = *leadership.borrow_and_update();
        if known.is_self {
            leaders.note(known.leader);
        }
        tokio::select! {
            changed = leadership.changed() => changed?,
            failed = coordinator.failed() => return Err(failed.into()),
        }
    }
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
