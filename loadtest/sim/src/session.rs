//! Sessions between workers and coordinators: a connection with a stream each way. What is sent arrives in order or, from the moment on
//! at which the way is cut, not at all, which both ends notice later. A coordinator may hear of an old session beside its successor.

use kiln_core::Command;
use kiln_wire::WorkerId;
use kiln_wire::worker::{FromWorker, Hello, ToWorker};

use crate::bug::Bug;
use crate::event::{Event, Task};
use crate::fact::Fact;
use crate::node::Then;
use crate::world::World;

/// A dead connection is noticed after so long at most.
const IDLE_US_MAX: u64 = 6_000_000;

/// A session.
#[derive(Clone, Debug)]
pub(crate) struct Conn {
    pub host: usize,
    pub host_life: u32,
    pub node: usize,
    pub node_life: u32,
    pub open_at_worker: bool,
    pub open_at_node: bool,
    /// Nothing gets through any more.
    pub cut: bool,
    pub opened_us: u64,
    pub welcomed: bool,
    up_us: u64,
    down_us: u64,
}

impl World {
    /// Opens a session and returns its number.
    pub(crate) fn open_session(&mut self, host: usize, node: usize) -> usize {
        self.conns.push(Conn {
            host,
            host_life: self.hosts[host].life,
            node,
            node_life: self.nodes[node].life,
            open_at_worker: true,
            open_at_node: true,
            cut: false,
            opened_us: self.now,
            welcomed: false,
            up_us: 0,
            down_us: 0,
        });
        self.conns.len() - 1
    }

    /// Sends from a worker.
    pub(crate) fn send_to_node(&mut self, conn: usize, message: FromWorker) {
        self.fact(&Fact::Says { worker: &self.hosts[self.conns[conn].host].id, message: &message });
        let Some(at) = self.travel(conn, true) else { return };
        if self.dice.chance(self.options.duplicated) && !matches!(message, FromWorker::Hello(_)) {
            self.heap.plan(at, Event::FromWorker { conn, message: Box::new(message.clone()) });
        }
        self.heap.plan(at, Event::FromWorker { conn, message: Box::new(message) });
    }

    /// Sends to a worker, if it has a session with this coordinator.
    pub(crate) fn send_to_worker(&mut self, node: usize, worker: &WorkerId, message: ToWorker) {
        let session = self.nodes[node].memory.contacts.session(worker);
        let Some(conn) = session.and_then(|session| usize::try_from(session).ok()) else { return };
        // A job goes into no session whose registration is still under way: its hello could not name it.
        if matches!(message, ToWorker::Dispatch(_)) && !self.nodes[node].memory.contacts.is_present(worker) {
            return;
        }
        self.fact(&Fact::Told { message: &message });
        let Some(at) = self.travel(conn, false) else { return };
        if self.dice.chance(self.options.duplicated) {
            self.heap.plan(at, Event::ToWorker { conn, message: Box::new(message.clone()) });
        }
        self.heap.plan(at, Event::ToWorker { conn, message: Box::new(message) });
    }

    /// Returns when a message arrives; none if it never does.
    fn travel(&mut self, conn: usize, up: bool) -> Option<u64> {
        let delay = self.delay();
        let this = &self.conns[conn];
        if this.cut || !self.net.host_reaches(this.host, this.node) || !self.lives(this.node, this.node_life) {
            self.cut(conn);
            return None;
        }
        let this = &mut self.conns[conn];
        let last = if up { &mut this.up_us } else { &mut this.down_us };
        *last = (*last).max(self.now + delay);
        Some(*last)
    }

    /// Lets nothing through any more; both ends notice in their time.
    pub(crate) fn cut(&mut self, conn: usize) {
        if std::mem::replace(&mut self.conns[conn].cut, true) {
            return;
        }
        for at_worker in [true, false] {
            let noticed = self.dice.below(IDLE_US_MAX);
            self.after(noticed, Event::Broken { conn, at_worker });
        }
    }

    /// An end of a session notices that it is over.
    pub(crate) fn broken(&mut self, conn: usize, at_worker: bool) {
        let this = self.conns[conn].clone();
        if at_worker {
            if this.open_at_worker && self.hosts[this.host].life == this.host_life {
                self.session_ended(conn);
            }
        } else if std::mem::replace(&mut self.conns[conn].open_at_node, false) && self.nodes[this.node].life == this.node_life {
            let worker = self.hosts[this.host].id.clone();
            let number = u64::try_from(conn).expect("a session's number");
            let before = self.nodes[this.node].memory.contacts.session(&worker);
            let closes = if self.has(Bug::OldEndClosesNew) { before.unwrap_or(number) } else { number };
            let contacts = &mut self.nodes[this.node].memory.contacts;
            let closed = contacts.close(&worker, closes);
            let after = contacts.session(&worker);
            self.fact(&Fact::SessionEnds { worker: &worker, ended: number, live_before: &before, live_after: &after });
            if closed {
                self.nodes[this.node].memory.lead.changed();
                self.turn(this.node);
            }
        }
    }

    /// A coordinator ends a worker's session: the worker notices soon.
    pub(crate) fn close_at_node(&mut self, node: usize, worker: &WorkerId) {
        let host = self.host_of(worker);
        let life = self.nodes[node].life;
        let open = |conn: &Conn| conn.open_at_node && conn.node == node && conn.node_life == life && conn.host == host;
        let ended: Vec<usize> = (0..self.conns.len()).filter(|conn| open(&self.conns[*conn])).collect();
        ended.into_iter().for_each(|conn| self.end_at_node(conn));
    }

    fn end_at_node(&mut self, conn: usize) {
        self.conns[conn].open_at_node = false;
        if let Some(at) = self.travel(conn, false) {
            self.heap.plan(at, Event::Broken { conn, at_worker: true });
        }
    }

    /// A coordinator that leads no more, or anew, ends every session.
    pub(crate) fn forget_sessions(&mut self, node: usize) {
        let life = self.nodes[node].life;
        let open = |conn: &Conn| conn.open_at_node && conn.node == node && conn.node_life == life;
        let ended: Vec<usize> = (0..self.conns.len()).filter(|conn| open(&self.conns[*conn])).collect();
        ended.into_iter().for_each(|conn| self.end_at_node(conn));
        self.nodes[node].memory.contacts = Default::default();
    }

    /// A worker's message arrives at its coordinator.
    pub(crate) fn node_hears(&mut self, conn: usize, message: FromWorker) {
        let this = &self.conns[conn];
        let (node, host) = (this.node, this.host);
        if !this.open_at_node || !self.nodes[node].up || self.nodes[node].life != this.node_life {
            return;
        }
        let worker = self.hosts[host].id.clone();
        let steady = self.nodes[node].steady(self.now);
        if !self.has(Bug::SilenceIsNotBroken) {
            self.nodes[node].memory.contacts.heard(&worker, steady);
        }
        self.fact(&Fact::Heard { node: self.nodes[node].id, worker: &worker, message: &message });
        match message {
            FromWorker::Hello(hello) => self.hello(conn, node, hello),
            FromWorker::Heartbeat if self.has(Bug::HeartbeatPlans) => {
                self.nodes[node].memory.lead.changed();
                self.turn(node);
            }
            FromWorker::Heartbeat | FromWorker::Started(_) | FromWorker::Log { .. } => {}
            FromWorker::Winding(lease) => {
                let number = u64::try_from(conn).expect("a session's number");
                let this = &mut self.nodes[node].memory;
                let is_live = this.farm.is_live(&lease);
                if is_live && this.contacts.wound(&worker, number, lease.attempt) {
                    this.lead.changed();
                    self.turn(node);
                }
            }
            FromWorker::Admission(strain) => {
                let number = u64::try_from(conn).expect("a session's number");
                let is_news = self.nodes[node].memory.contacts.strained(&worker, number, strain);
                if is_news && !self.has(Bug::ReliefIsUnheard) {
                    self.nodes[node].memory.lead.changed();
                }
                self.turn(node);
            }
            FromWorker::Finished { lease, outcome } => {
                let delay = self.dice.below(5_000);
                self.task(node, delay, Task::Report { lease, outcome });
            }
        }
    }

    fn hello(&mut self, conn: usize, node: usize, hello: Hello) {
        if self.leads(node).is_none() {
            return self.end_at_node(conn);
        }
        let steady = self.nodes[node].steady(self.now);
        let number = u64::try_from(conn).expect("a session's number");
        if !self.nodes[node].memory.contacts.open(&hello.worker, number, steady) {
            return self.end_at_node(conn);
        }
        self.nodes[node].memory.contacts.strained(&hello.worker, number, hello.strain);
        let Hello { worker, offer, attempts, since, .. } = hello;
        let now = self.stamp(node);
        self.propose(node, vec![Command::Register { worker, offer, attempts, since, judge: true, now }], Then::Nobody);
    }
}
