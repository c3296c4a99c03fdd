//! The world of one run: everything that is, the time, and the step from one event to the next.

use std::cell::RefCell;
use std::collections::{BTreeMap, BTreeSet};
use std::rc::Rc;

use kiln_agent::Agent;
use kiln_core::{Effect, Farm};
use kiln_wire::worker::Offer;
use kiln_wire::{LogIndex, NodeId, Resources, Standing, WorkerId};

use crate::Broken;
use crate::bug::{Bug, ENDS};
use crate::client::{Client, Question, Stage};
use crate::dice::Dice;
use crate::event::{Event, Heap, LogMessage};
use crate::fact::Fact;
use crate::graph::Graph;
use crate::host::{Host, Journal};
use crate::invariant::{Invariant, Look};
use crate::log::{Body, Disk, Entry};
use crate::net::Net;
use crate::node::{Memory, Node};
use crate::options::Options;
use crate::session::Conn;
use crate::store::Store;

/// After faults are over, everything must have ended within so long. The longest back-off is five minutes.
const LIVENESS_US: u64 = 1_200_000_000;
/// A run has some thousand events; one with so many goes in circles.
const EVENTS_MAX: u64 = 300_000;
/// Everything has ended once it has for so long.
const SETTLE_US: u64 = 2_000_000;
/// An idle farm is watched for so long.
const REST_US: u64 = 8_000_000;
/// How often it is looked whether everything has ended.
const LOOK_EVENTS: u64 = 64;

/// Everything.
pub(crate) struct World {
    pub options: Options,
    bug: Option<Bug>,
    pub dice: Dice,
    pub now: u64,
    pub heap: Heap,
    pub events: u64,
    pub nodes: Vec<Node>,
    pub hosts: Vec<Host>,
    pub clients: Vec<Client>,
    pub questions: Vec<Question>,
    pub conns: Vec<Conn>,
    pub net: Net,
    pub store: Store,
    pub graph: Graph,
    /// What is committed, and the farm that follows from it.
    pub truth: Vec<Rc<Entry>>,
    pub farm: Farm,
    pub healed: bool,
    /// Whoever wins the next election is cut off at once.
    pub isolates_next_leader: bool,
    /// When everything had ended.
    over_us: Option<u64>,
    told_over: bool,
    pub broken: RefCell<Option<Broken>>,
    invariants: RefCell<Vec<Box<dyn Invariant>>>,
    traced: bool,
    /// Folds number and time of every event.
    pub digest: u64,
    pub trace: RefCell<Option<String>>,
}

impl World {
    /// Draws a world.
    pub fn new(seed: u64, bug: Option<Bug>, traced: bool) -> Self {
        let mut dice = Dice::new(seed);
        let options = Options::draw(&mut dice);
        let graph = Graph::draw(&mut dice, &options);
        let mut world = Self {
            invariants: RefCell::new(crate::invariant::all()),
            options,
            bug,
            dice,
            now: 1_000_000,
            heap: Heap::default(),
            events: 0,
            nodes: Vec::new(),
            hosts: Vec::new(),
            clients: Vec::new(),
            questions: Vec::new(),
            conns: Vec::new(),
            net: Net::default(),
            store: Store::default(),
            graph,
            truth: Vec::new(),
            farm: Farm::new(),
            healed: false,
            isolates_next_leader: false,
            over_us: None,
            told_over: false,
            broken: RefCell::default(),
            digest: 0,
            trace: RefCell::new(traced.then(String::new)),
            traced,
        };
        let options = format!("{:?}", world.options);
        world.say(|| options);
        world.populate();
        world
    }

    fn populate(&mut self) {
        let founders: BTreeSet<NodeId> = (1..=u64::try_from(self.options.coordinators).expect("small")).map(NodeId).collect();
        for founder in founders.clone() {
            self.add_node(founder, founders.clone());
        }
        for number in 0..self.options.workers {
            self.add_host(number);
        }
        for number in 0..self.options.clients {
            let client = self.new_client(number);
            self.clients.push(client);
            let begins = self.dice.below(6_000_000);
            self.after(begins, Event::Client { client: number, turn: 0 });
        }
        self.after(1_000_000, Event::Fault);
        self.after(self.options.faults_ms * 1000, Event::Heal);
    }

    /// Adds a coordinator with an empty disk, which knows these voters.
    pub fn add_node(&mut self, id: NodeId, voters: BTreeSet<NodeId>) {
        let clocks = self.options.clocks;
        let ahead = [-7_200_000, -3_000, 0, 0, 5_000, 7_200_000][self.dice.place(6)];
        let slow_disk = self.options.disks && self.dice.chance(300);
        self.nodes.push(Node {
            id,
            up: false,
            gone: false,
            life: 0,
            disk: Disk::new(voters),
            memory: Memory::default(),
            wall_ahead_ms: if clocks { ahead } else { 0 },
            rate: if clocks { self.dice.between(995, 1005) } else { 1000 },
            sync_us_max: if slow_disk { 50_000 } else { 500 },
        });
        self.restart_node(self.nodes.len() - 1);
    }

    fn add_host(&mut self, number: usize) {
        // The first can run everything, so that every run can end.
        let large = number == 0;
        let kvm = large || self.dice.chance(500);
        let features = if kvm { BTreeSet::from(["kvm".to_owned()]) } else { BTreeSet::new() };
        let capacity = Resources { cores: if large { 4 } else { 1 + u32::try_from(self.dice.below(4)).expect("small") }, memory_mib: 1000 };
        let slots = 1 + u32::try_from(self.dice.below(3)).expect("small");
        let offer = Offer {
            systems: BTreeSet::from(["x86_64-linux".to_owned()]),
            features,
            capacity,
            slots,
            guarantees: BTreeMap::new(),
            light_slots: u32::from(number % 2 == 1),
            ..Offer::default()
        };
        let id = WorkerId::parse(&format!("w{number}")).expect("a worker's name");
        self.hosts.push(Host {
            agent: Agent::restore(id.clone(), offer.clone(), Default::default(), Vec::new()),
            id,
            offer,
            up: false,
            life: 0,
            journal: Journal::default(),
            conn: None,
            next: self.dice.place(self.nodes.len()),
            running: BTreeMap::new(),
            paused_until_us: 0,
            parts_at_result: false,
            slowness: if self.options.workers_fail { self.dice.between(800, 3_000) } else { 1000 },
        });
        self.restart_host(number);
    }

    /// Goes on until everything has ended or an invariant is broken.
    pub fn run(&mut self) {
        while let Some((at, number, event)) = self.heap.next() {
            self.now = at;
            self.events += 1;
            self.digest = (self.digest ^ at ^ (number << 40)).wrapping_mul(0x0000_0100_0000_01b3).rotate_left(17);
            self.happen(event);
            if self.broken.borrow().is_some() {
                return;
            }
            if self.healed && self.events.is_multiple_of(LOOK_EVENTS) {
                if self.rests() {
                    return;
                }
                if (self.now > LIVENESS_US || self.events > EVENTS_MAX) && self.over_us.is_none() {
                    let left = self.left();
                    self.broken.replace(Some(Broken { invariant: ENDS, subject: left, at_us: self.now }));
                    return;
                }
            }
        }
    }

    /// Finds out whether everything has ended; returns true once it has rested for long enough.
    fn rests(&mut self) -> bool {
        match self.over_us {
            None => self.over_us = self.is_over().then_some(self.now),
            // What is under way still may wake it.
            Some(since) if self.now - since < SETTLE_US => {
                if !self.is_over() {
                    self.over_us = None;
                }
            }
            Some(_) if !self.told_over => {
                self.told_over = true;
                self.fact(&Fact::Over);
            }
            Some(since) => return self.now - since > SETTLE_US + REST_US,
        }
        false
    }

    fn happen(&mut self, event: Event) {
        let event = match self.held_up(event) {
            Some(event) => event,
            None => return,
        };
        if self.traced {
            self.say(|| format!("{event:?}"));
        }
        match event {
            Event::Tick { node, life } if self.lives(node, life) => self.tick(node),
            Event::Synced { node, life, upto, cuts } if self.lives(node, life) => self.synced(node, upto, cuts),
            Event::Wake { node, life, wake } if self.lives(node, life) => self.wake(node, wake),
            Event::Task { node, life, task } if self.lives(node, life) => {
                self.work(node, *task);
                self.turn(node);
            }
            Event::Tick { .. } | Event::Synced { .. } | Event::Wake { .. } | Event::Task { .. } => {}
            Event::Log { to, message } if self.nodes[to].up => self.log_message(to, &message),
            Event::Log { .. } => {}
            Event::Dial { host, life } if self.hosts[host].life == life => self.dial(host),
            Event::Attempt { host, life, lease, step } if self.hosts[host].life == life => self.attempt(host, *lease, step),
            Event::Dial { .. } | Event::Attempt { .. } => {}
            Event::FromWorker { conn, message } => self.node_hears(conn, *message),
            Event::ToWorker { conn, message } => self.worker_hears(conn, *message),
            Event::Broken { conn, at_worker } => self.broken(conn, at_worker),
            Event::Beat { conn } => self.beat(conn),
            Event::Client { client, turn } => self.client(client, turn),
            Event::Question { node, question, ask } => self.question(node, question, *ask),
            Event::Answer { question, reply } => self.answer(question, &reply),
            Event::Fault => self.fault(),
            Event::Mend(mend) => self.mend(mend),
            Event::Heal => self.heal(),
        }
    }

    /// What happens to a worker that stands still happens when it goes on.
    fn held_up(&mut self, event: Event) -> Option<Event> {
        let host = match &event {
            Event::Dial { host, .. } | Event::Attempt { host, .. } => *host,
            Event::ToWorker { conn, .. } | Event::Beat { conn } | Event::Broken { conn, at_worker: true } => self.conns[*conn].host,
            _ => return Some(event),
        };
        let until = self.hosts[host].paused_until_us;
        if until <= self.now {
            return Some(event);
        }
        // In steps, for it may go on earlier.
        self.heap.plan(until.min(self.now + 400_000), event);
        None
    }

    /// Returns whether this process of a coordinator lives.
    pub fn lives(&self, node: usize, life: u32) -> bool {
        self.nodes[node].up && self.nodes[node].life == life
    }

    /// Plans an event.
    pub fn after(&mut self, us: u64, event: Event) {
        self.heap.plan(self.now + us, event);
    }

    /// Draws how long a message travels.
    pub fn delay(&mut self) -> u64 {
        let usual = 20 + self.dice.below(self.options.delay_us_max);
        if !self.healed && self.dice.chance(self.options.loss) { usual + self.dice.below(1_000_000) } else { usual }
    }

    /// Sends a message of the log: it may be lost, late, come twice, or overtake another.
    pub fn send_log(&mut self, from: usize, to: usize, message: LogMessage) {
        if !self.net.reaches(from, to) || self.dice.chance(self.options.loss) {
            return;
        }
        let message = Rc::new(message);
        let delay = self.delay();
        self.after(delay, Event::Log { to, message: message.clone() });
        if self.dice.chance(self.options.duplicated) {
            let delay = self.delay();
            self.after(delay, Event::Log { to, message });
        }
    }

    /// A coordinator's process dies, and with it what its disk had not synced, or a part of that.
    pub fn crash_node(&mut self, node: usize) {
        let kept = self.dice.below(3);
        let this = &mut self.nodes[node];
        if this.up {
            this.up = false;
            this.life += 1;
            this.memory = Memory::default();
            this.disk.crash(kept);
            self.say(|| format!("node {node} dies"));
        }
    }

    /// A coordinator's next process starts from its disk.
    pub fn restart_node(&mut self, node: usize) {
        let now = self.now;
        let this = &mut self.nodes[node];
        if this.up || this.gone {
            return;
        }
        this.up = true;
        this.memory = Memory { started_us: now, heard_us: now, ..Memory::default() };
        if let Some(snapshot) = &this.disk.snapshot {
            this.memory.farm = Farm::from_snapshot(&snapshot.bytes).expect("a coordinator's snapshot can be read");
            (this.memory.applied, this.memory.commit, this.memory.agreed) = (snapshot.index, snapshot.index, snapshot.index);
        }
        let life = this.life;
        let first = self.dice.below(300_000);
        self.say(|| format!("node {node} starts"));
        self.after(first, Event::Tick { node, life });
    }

    /// An entry is committed: the first time it becomes the truth, from then on it must be the same.
    pub fn committed(&mut self, entry: &Rc<Entry>) {
        let known = u64::try_from(self.truth.len()).expect("a length");
        self.fact(&Fact::Committed { entry, truth: self.truth.get(usize::try_from(entry.index - 1).expect("a position")) });
        if entry.index != known + 1 {
            return;
        }
        self.truth.push(entry.clone());
        if let Body::Command(command) = &entry.body {
            let before = self.farm.clone();
            let effects: Vec<Effect> = self.farm.apply(LogIndex(entry.index), command.clone());
            self.fact(&Fact::Applied { entry, command, before: &before, effects: &effects, farm: &self.farm });
        }
    }

    /// Returns whether this bug is planted.
    pub fn has(&self, bug: Bug) -> bool {
        self.bug == Some(bug)
    }

    /// Returns the place of a coordinator.
    pub fn node_of(&self, id: NodeId) -> usize {
        usize::try_from(id.0 - 1).expect("coordinators are numbered from 1")
    }

    /// Returns the place of a worker.
    pub fn host_of(&self, id: &WorkerId) -> usize {
        self.hosts.iter().position(|host| host.id == *id).expect("every worker has a host")
    }

    /// Lets every invariant see a fact.
    pub fn fact(&self, fact: &Fact<'_>) {
        let look = Look { now_us: self.now, options: &self.options, graph: &self.graph, store: &self.store, farm: &self.farm };
        for invariant in self.invariants.borrow_mut().iter_mut() {
            if let Err(subject) = invariant.see(fact, &look) {
                let broken = Broken { invariant: invariant.name(), subject, at_us: self.now };
                self.broken.borrow_mut().get_or_insert(broken);
            }
        }
    }

    fn is_over(&self) -> bool {
        let clients = self.clients.iter().all(|client| matches!(client.stage, Stage::Done(_)));
        let hosts = self.hosts.iter().all(|host| host.running.is_empty() && host.agent.unacknowledged().next().is_none());
        let builds = self.farm.builds().next().is_none() && self.farm.pending_effects().is_empty();
        let heard = self.hosts.iter().all(|host| host.conn.is_some_and(|conn| self.serves(conn)));
        let rested = self
            .farm
            .workers()
            .iter()
            .all(|worker| worker.ailing.as_ref().is_none_or(|ailing| !matches!(ailing.standing, Standing::Resting { .. })));
        clients && hosts && builds && heard && rested && self.in_step()
    }

    /// Returns whether both ends of a session live and hear each other.
    fn serves(&self, conn: usize) -> bool {
        let conn = &self.conns[conn];
        conn.welcomed && conn.open_at_node && !conn.cut && self.lives(conn.node, conn.node_life)
    }

    fn in_step(&self) -> bool {
        let Some(leader) = self.leading_node() else { return false };
        let last = self.nodes[leader].disk.last().0;
        let members = self.nodes[leader].disk.members();
        members.iter().all(|member| self.nodes[self.node_of(*member)].memory.applied == last)
    }

    /// What has not ended.
    fn left(&self) -> String {
        let clients: Vec<String> = self
            .clients
            .iter()
            .filter(|client| !matches!(client.stage, Stage::Done(_)))
            .map(|client| format!("{:?}", client.stage))
            .collect();
        let builds: Vec<String> = self.farm.builds().map(|build| build.to_string()).collect();
        let running: Vec<String> = self
            .hosts
            .iter()
            .flat_map(|host| host.running.keys().map(|lease| format!("{}@{}", lease.derivation.name(), host.id)))
            .collect();
        format!("clients {clients:?}, live builds {builds:?}, running {running:?}, in step: {}", self.in_step())
    }

    /// Adds a line to the trace, if there is one.
    pub fn say(&self, line: impl FnOnce() -> String) {
        if let Some(trace) = self.trace.borrow_mut().as_mut() {
            let (s, us) = (self.now / 1_000_000, self.now % 1_000_000);
            trace.push_str(&format!("{s:4}.{us:06} {}\n", line()));
        }
    }
}
