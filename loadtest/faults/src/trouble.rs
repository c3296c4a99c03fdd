//! Does to a running farm what a plan says, mends it, and waits until the coordinators are in step again.

use std::time::Duration;

use anyhow::Context;

use crate::facts::Harm;
use crate::farm::Farm;
use crate::hosts::Host;
use crate::plan::{Fault, Step, Target};
use crate::probe::Probe;
use crate::rules::Drops;
use crate::run;

/// What makes trouble, and what it did.
pub struct Trouble<'a> {
    farm: &'a mut Farm,
    probe: &'a Probe,
    /// Workers that were killed.
    pub harms: Vec<Harm>,
    /// Coordinators whose disk was full.
    pub filled: Vec<Host>,
    /// What happened, in words, with its time.
    pub log: Vec<String>,
}

/// How one fault is mended.
#[derive(Debug)]
enum Mend {
    Launch(Host),
    Thaw(Host),
    Free(Host),
    Clock(Host),
    Nothing,
}

impl<'a> Trouble<'a> {
    /// Nothing happened yet.
    pub fn new(farm: &'a mut Farm, probe: &'a Probe) -> Self {
        Self { farm, probe, harms: Vec::new(), filled: Vec::new(), log: Vec::new() }
    }

    /// Returns the farm.
    pub fn farm(&mut self) -> &mut Farm {
        self.farm
    }

    /// Does one step, and mends what it broke. Returns early, mended, once `over` says so.
    ///
    /// # Errors
    /// If a program ended by itself, or the coordinators do not come into step again.
    pub fn step(&mut self, step: Step, mut over: impl FnMut() -> anyhow::Result<bool>) -> anyhow::Result<()> {
        if wait(step.pause_ms, &mut over)? {
            return Ok(());
        }
        let leader = self.leader()?;
        let mut drops = Drops::default();
        let mut mends = Vec::new();
        for fault in [Some(step.fault), step.beside].into_iter().flatten() {
            let host = fault.target().map(|target| self.host(target, leader));
            self.note(&match host {
                Some(host) => format!("{fault} ({host}), for {} ms", step.hold_ms),
                None => format!("{fault}, for {} ms", step.hold_ms),
            });
            let (dropped, mend) = self.begin(fault, host, leader)?;
            drops = drops.and(dropped);
            mends.push(mend);
        }
        self.farm.net.drop_packets(&drops)?;
        wait(step.hold_ms, &mut over)?;
        self.farm.net.drop_packets(&Drops::default())?;
        for mend in mends {
            self.mend(mend)?;
        }
        self.settle()
    }

    fn note(&mut self, words: &str) {
        let seconds = self.farm.book.now_us() as f64 / 1e6;
        self.log.push(format!("{seconds:.2} s: {words}"));
    }

    fn host(&self, target: Target, leader: Host) -> Host {
        match target {
            Target::Leader => leader,
            Target::Follower => self.farm.coordinators().into_iter().find(|host| *host != leader).unwrap_or(leader),
            Target::Worker(number) => Host::Worker(number),
        }
    }

    fn begin(&mut self, fault: Fault, host: Option<Host>, leader: Host) -> anyhow::Result<(Drops, Mend)> {
        let everybody = self.farm.net.hosts().to_vec();
        let coordinators = self.farm.coordinators();
        let host = host.unwrap_or(leader);
        let none = Drops::default();
        Ok(match fault {
            Fault::Kill(_) => {
                self.farm.kill(host)?;
                self.harms.push(Harm { host, at_us: self.farm.book.now_us() });
                (none, Mend::Launch(host))
            }
            Fault::Freeze(_) => {
                self.farm.process(host)?.freeze()?;
                (none, Mend::Thaw(host))
            }
            Fault::Isolate(_) => (none.isolate(host, &everybody), Mend::Nothing),
            Fault::Split(_) => (none.isolate(host, &coordinators), Mend::Nothing),
            Fault::Deafen(_) => (none.deafen(host, &everybody), Mend::Nothing),
            Fault::Silence(_) => (none.silence(host, &everybody), Mend::Nothing),
            Fault::Bridge => (none.lossy(&everybody, 100), Mend::Nothing),
            Fault::Loss(percent) => (none.lossy(&everybody, percent), Mend::Nothing),
            Fault::FillDisk(_) => {
                self.farm.disk(host)?.fill()?;
                self.filled.push(host);
                (none, Mend::Free(host))
            }
            Fault::StepClock(_, ms) => {
                self.farm.step_clock(host, ms)?;
                (none, Mend::Clock(host))
            }
            Fault::Transfer => {
                run::finish(&mut self.farm.operator(&["cluster", "transfer"]))?;
                (none, Mend::Nothing)
            }
            Fault::Roll => {
                for host in coordinators {
                    self.farm.stop(host)?;
                    self.farm.launch(host)?;
                    self.settle()?;
                }
                (none, Mend::Nothing)
            }
        })
    }

    fn mend(&mut self, mend: Mend) -> anyhow::Result<()> {
        match mend {
            // A coordinator that cannot write may have ended, and says so; one whose disk has room again starts.
            Mend::Free(host) => self.farm.disk(host)?.free(),
            Mend::Launch(host) => self.farm.launch(host),
            Mend::Thaw(host) => self.farm.process(host)?.thaw(),
            Mend::Clock(host) => self.farm.step_clock(host, 0),
            Mend::Nothing => Ok(()),
        }
    }

    /// Waits until there is a leader and every coordinator is in step with it.
    ///
    /// # Errors
    /// If that takes longer than any restart does, or a program ended by itself.
    pub fn settle(&mut self) -> anyhow::Result<()> {
        let (farm, probe) = (&mut *self.farm, self.probe);
        let mut seen = String::new();
        let settled = run::wait_for("the coordinators are in step", SETTLE, || {
            farm.must_live()?;
            let (in_step, words) = probe.in_step(&farm.coordinators())?;
            seen = words;
            Ok(in_step.then_some(()))
        });
        settled.with_context(|| format!("after the fault was mended: {seen}"))
    }

    /// Returns who leads; waits for somebody to.
    ///
    /// # Errors
    /// If nobody does for longer than any election takes.
    pub fn leader(&mut self) -> anyhow::Result<Host> {
        let coordinators = self.farm.coordinators();
        run::wait_for("a coordinator leads", SETTLE, || self.probe.leader(&coordinators))
    }
}

fn wait(ms: u64, over: &mut impl FnMut() -> anyhow::Result<bool>) -> anyhow::Result<bool> {
    let end = std::time::Instant::now() + Duration::from_millis(ms);
    while std::time::Instant::now() < end {
        if over()? {
            return Ok(true);
        }
        run::pause(Duration::from_millis(50))?;
    }
    over()
}

/// Longest time until a coordinator that was mended is in step: a start, an election, and what it missed.
const SETTLE: Duration = Duration::from_secs(40);
