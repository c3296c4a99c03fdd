//! What goes wrong, and how it is mended.

use std::collections::BTreeSet;
use std::time::Duration;

use kiln_coordinator::raft::ill::{self, Ill};
use kiln_wire::NodeId;

use crate::bug::Bug;
use crate::entropy::{draw, skew};
use crate::world::World;

impl World {
    /// Does something bad.
    pub fn fault(&mut self) {
        let now = self.sim.elapsed();
        let what = match draw(14) {
            0..=2 => self.crash_coordinator(now),
            3 => self.crash_worker(now),
            4..=5 => self.partition(now, true),
            6 => self.partition(now, false),
            7 => {
                self.sim.set_fail_rate(draw(20) as f64 / 100.0);
                "loss"
            }
            8 => {
                skew(draw(20_000) as i64 - 10_000);
                "clock step"
            }
            9..=11 => self.fill_disk(now),
            12 => self.slow_worker(now, true),
            _ => self.slow_worker(now, false),
        };
        tracing::info!(at = ?now, what, down = ?self.down, full = ?self.full, cut = ?self.cut, "fault");
        *self.faults.entry(what).or_default() += 1;
    }

    /// Crashes a coordinator, if the others are up.
    fn crash_coordinator(&mut self, now: Duration) -> &'static str {
        let node = self.any_coordinator();
        self.crash(format!("c{node}"), now).then(|| self.nodes.borrow_mut().remove(&node.0)).map_or("spared", |_| "coordinator crash")
    }

    fn crash_worker(&mut self, now: Duration) -> &'static str {
        let name = self.any_worker();
        if self.crash(name, now) { "worker crash" } else { "spared" }
    }

    fn crash(&mut self, name: String, now: Duration) -> bool {
        let others_up = self.down.keys().all(|down| down.starts_with('c') != name.starts_with('c'));
        if !others_up || self.down.contains_key(&name) {
            return false;
        }
        self.sim.crash(name.as_str());
        self.mishaps.note(&name);
        self.down.insert(name, now + Duration::from_millis(100 + draw(6000)));
        true
    }

    fn partition(&mut self, now: Duration, both_ways: bool) -> &'static str {
        let hosts: Vec<String> = self.machines.on().iter().map(|node| format!("c{node}")).chain(self.workers.keys().cloned()).collect();
        let (one, other) = (draw(hosts.len() as u64) as usize, draw(hosts.len() as u64) as usize);
        if one == other {
            return "spared";
        }
        let (one, other) = (hosts[one].clone(), hosts[other].clone());
        self.mishaps.note(&one);
        self.mishaps.note(&other);
        match both_ways {
            true => self.sim.partition(one.as_str(), other.as_str()),
            false => self.sim.partition_oneway(one.as_str(), other.as_str()),
        }
        self.cut.push((one, other, now + Duration::from_millis(200 + draw(8000))));
        if both_ways { "partition" } else { "one-way partition" }
    }

    /// Leaves a coordinator's disk no room for a while.
    fn fill_disk(&mut self, now: Duration) -> &'static str {
        let node = self.any_coordinator();
        if self.full.contains_key(&node) {
            return "spared";
        }
        ill::set(&Self::dir_of(node), Ill::Full, true);
        self.full.insert(node, now + Duration::from_millis(1000 + draw(9000)));
        "full disk"
    }

    /// Has a worker answer late, so late perhaps that it counts as lost; or has its builds take long.
    fn slow_worker(&mut self, now: Duration, stalls: bool) -> &'static str {
        let worker = self.any_worker();
        let pace = &self.workers[&worker];
        if stalls {
            self.mishaps.note(&worker);
            pace.stall_until(now + Duration::from_millis(500 + draw(17_000)));
            "stalled worker"
        } else {
            pace.take_longer(Duration::from_millis(1000 + draw(8000)));
            "slow builds"
        }
    }

    fn any_coordinator(&self) -> NodeId {
        let on: Vec<NodeId> = self.machines.on().into_iter().collect();
        on[draw(on.len() as u64) as usize]
    }

    fn any_worker(&self) -> String {
        let at = draw(self.workers.len() as u64) as usize;
        self.workers.keys().nth(at).expect("drawn below their number").clone()
    }

    /// Mends what is due, or everything.
    pub fn heal(&mut self, all: bool) {
        let now = self.sim.elapsed();
        let due: Vec<String> = self.down.iter().filter(|(_, at)| all || **at <= now).map(|(name, _)| name.clone()).collect();
        for name in due {
            self.down.remove(&name);
            if !Bug::StaysOff.is_planted() || !all || !name.starts_with('c') {
                self.sim.bounce(name.as_str());
            }
        }
        let well: Vec<NodeId> = self.full.iter().filter(|(_, at)| all || **at <= now).map(|(node, _)| *node).collect();
        for node in well {
            self.full.remove(&node);
            if !Bug::StaysFull.is_planted() {
                ill::set(&Self::dir_of(node), Ill::Full, false);
            }
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
            self.workers.values().for_each(|pace| pace.be_well());
        }
    }

    /// Switches off what the operator has switched off.
    pub fn switch_off(&mut self) {
        let on = self.machines.on();
        let off: BTreeSet<NodeId> = self.running.difference(&on).copied().collect();
        for node in off {
            let name = format!("c{node}");
            tracing::info!(%node, "switched off");
            self.down.remove(&name);
            self.sim.crash(name.as_str());
            self.nodes.borrow_mut().remove(&node.0);
        }
        self.running = on;
    }
}
