//! Faults: drawn one after the other from what the run's options allow, each mended after a while, all of them at the end.

use kiln_wire::NodeId;
use kiln_wire::worker::{Lacking, Strain};

use crate::event::{Event, Mend};
use crate::world::World;

/// Draws where a fault strikes, and lets it.
type Fault = fn(&mut World);

impl World {
    /// A fault happens, and the next one is planned.
    pub(crate) fn fault(&mut self) {
        if self.healed {
            return;
        }
        let pause = self.dice.between(20_000, 3_000_000);
        self.after(pause, Event::Fault);
        let options = &self.options;
        let mut kinds: Vec<Fault> = Vec::new();
        let table: [(bool, &[Fault]); 9] = [
            (options.coordinators_fail, &[Self::crash_some_node, Self::crash_some_node, Self::hand_over_some]),
            (options.coordinators_part, &[Self::part_nodes, Self::part_one_way, Self::isolate_leader, Self::isolate_next_leader]),
            (options.clocks, &[Self::jump_clock]),
            (options.disks, &[Self::fill_disk]),
            (options.members, &[Self::add_member, Self::remove_member]),
            (options.workers_fail, &[Self::crash_some_host, Self::pause_host]),
            (options.workers_strain, &[Self::strain_host]),
            (options.workers_part, &[Self::part_host, Self::part_host_at_result]),
            (options.store_fails, &[Self::fail_store]),
        ];
        for (_, some) in table.into_iter().filter(|(on, _)| *on) {
            kinds.extend(some);
        }
        if let Some(fault) = self.dice.choose(&kinds).copied() {
            fault(self);
        }
    }

    fn mend_after(&mut self, ms_max: u64, mend: Mend) {
        let while_us = self.dice.between(10_000, ms_max * 1000);
        self.after(while_us, Event::Mend(mend));
    }

    fn some_node(&mut self) -> usize {
        let leaders: Vec<usize> = (0..self.nodes.len()).filter(|node| self.nodes[*node].memory.leading.is_some()).collect();
        match self.dice.choose(&leaders) {
            Some(leader) if self.dice.chance(500) => *leader,
            _ => self.dice.place(self.nodes.len()),
        }
    }

    fn crash_some_node(&mut self) {
        let node = self.some_node();
        self.crash_node(node);
        self.mend_after(6_000, Mend::Node(node));
    }

    fn hand_over_some(&mut self) {
        let node = self.some_node();
        self.hand_over(node);
    }

    fn part_nodes(&mut self) {
        let (one, other) = (self.some_node(), self.dice.place(self.nodes.len()));
        self.part(one, other);
        self.part(other, one);
    }

    fn part_one_way(&mut self) {
        let (one, other) = (self.some_node(), self.dice.place(self.nodes.len()));
        self.part(one, other);
    }

    fn isolate_leader(&mut self) {
        let node = self.some_node();
        self.isolate(node);
    }

    /// The next leader is cut off before anybody else has an entry of it.
    fn isolate_next_leader(&mut self) {
        self.isolates_next_leader = true;
    }

    /// A coordinator has won an election.
    pub(crate) fn isolate_if_due(&mut self, node: usize) {
        if std::mem::take(&mut self.isolates_next_leader) && !self.healed {
            self.isolate(node);
        }
    }

    fn isolate(&mut self, node: usize) {
        for other in 0..self.nodes.len() {
            self.part(node, other);
            self.part(other, node);
        }
    }

    fn part(&mut self, from: usize, to: usize) {
        if from != to {
            self.say(|| format!("node {from} reaches node {to} no more"));
            self.net.cut(from, to);
            self.mend_after(8_000, Mend::Link(from, to));
        }
    }

    fn jump_clock(&mut self) {
        let node = self.some_node();
        let ms = [-3_600_000, -20_000, -500, 500, 20_000, 3_600_000][self.dice.place(6)];
        self.say(|| format!("the clock of node {node} jumps by {ms} ms"));
        self.nodes[node].wall_ahead_ms += ms;
    }

    fn fill_disk(&mut self) {
        let node = self.some_node();
        self.say(|| format!("the disk of node {node} is full"));
        self.nodes[node].disk.full = true;
        self.mend_after(8_000, Mend::Disk(node));
    }

    fn add_member(&mut self) {
        if self.nodes.len() >= 8 {
            return;
        }
        let Some(leader) = self.leading_node() else { return };
        let id = NodeId(u64::try_from(self.nodes.len()).expect("small") + 1);
        let members = self.nodes[leader].disk.members().clone();
        let leave = members.iter().copied().find(|member| !self.nodes[self.node_of(*member)].up).filter(|_| members.len() > 2);
        if members.len() < 5 || leave.is_some() {
            self.add_node(id, members);
            if !self.change_members(leader, Some(id), None) {
                let place = self.node_of(id);
                self.crash_node(place);
                self.nodes[place].gone = true;
            }
        }
    }

    fn remove_member(&mut self) {
        let Some(leader) = self.leading_node() else { return };
        let members: Vec<NodeId> = self.nodes[leader].disk.members().iter().copied().collect();
        if members.len() > 2 {
            let leave = *self.dice.choose(&members).expect("there are members");
            self.change_members(leader, None, Some(leave));
        }
    }

    /// The node that leads in the highest term.
    pub(crate) fn leading_node(&self) -> Option<usize> {
        let leads = |node: &usize| self.nodes[*node].up && self.nodes[*node].memory.leading.is_some();
        (0..self.nodes.len()).filter(leads).max_by_key(|node| self.nodes[*node].disk.term)
    }

    fn crash_some_host(&mut self) {
        let host = self.dice.place(self.hosts.len());
        if self.hosts[host].up {
            let machine = self.dice.chance(300);
            self.crash_host(host, machine);
            self.mend_after(20_000, Mend::Host(host));
        }
    }

    fn pause_host(&mut self) {
        let host = self.dice.place(self.hosts.len());
        let until = self.now + self.dice.between(100_000, 25_000_000);
        self.say(|| format!("worker {host} stands still until {until}"));
        self.hosts[host].paused_until_us = until;
    }

    fn strain_host(&mut self) {
        let host = self.dice.place(self.hosts.len());
        self.say(|| format!("worker {host} is short of disk"));
        self.strained(host, Some(Strain { lacks: Lacking::Disk, message: "its disk is full".to_owned() }));
        self.mend_after(20_000, Mend::Strain(host));
    }

    fn part_host(&mut self) {
        let host = self.dice.place(self.hosts.len());
        let all = self.dice.chance(500);
        let one = self.dice.place(self.nodes.len());
        for node in (0..self.nodes.len()).filter(|node| all || *node == one) {
            self.say(|| format!("worker {host} reaches node {node} no more"));
            self.net.cut_host(host, node);
            self.mend_after(40_000, Mend::HostLink(host, node));
        }
    }

    /// The next result of a worker finds no way to any coordinator until its lease has probably gone to another worker.
    fn part_host_at_result(&mut self) {
        let host = self.dice.place(self.hosts.len());
        self.hosts[host].parts_at_result = true;
    }

    /// A worker has a result.
    pub(crate) fn part_if_due(&mut self, host: usize) {
        if self.healed || !std::mem::take(&mut self.hosts[host].parts_at_result) {
            return;
        }
        self.say(|| format!("worker {host} reaches nobody more, with a result"));
        let while_us = self.dice.between(10_000_000, 30_000_000);
        for node in 0..self.nodes.len() {
            self.net.cut_host(host, node);
            self.after(while_us, Event::Mend(Mend::HostLink(host, node)));
        }
    }

    fn fail_store(&mut self) {
        self.say(|| "the store fails".to_owned());
        self.store.fails = true;
        self.mend_after(10_000, Mend::Store);
    }

    /// A fault of a while is over.
    pub(crate) fn mend(&mut self, mend: Mend) {
        match mend {
            Mend::Node(node) => self.restart_node(node),
            Mend::Host(host) => self.restart_host(host),
            Mend::Link(from, to) => self.net.mend(from, to),
            Mend::HostLink(host, node) => self.net.mend_host(host, node),
            Mend::Disk(node) => self.disk_mended(node),
            Mend::Strain(host) => self.strained(host, None),
            Mend::Store => self.store.fails = false,
        }
    }

    /// Faults are over for good.
    pub(crate) fn heal(&mut self) {
        self.say(|| "everything is mended".to_owned());
        self.healed = true;
        self.net.mend_all();
        self.store.fails = false;
        (self.options.loss, self.options.duplicated) = (0, 0);
        for node in 0..self.nodes.len() {
            if self.nodes[node].disk.full {
                self.disk_mended(node);
            }
            self.restart_node(node);
        }
        for host in 0..self.hosts.len() {
            self.hosts[host].paused_until_us = 0;
            self.restart_host(host);
            self.strained(host, None);
        }
    }
}
