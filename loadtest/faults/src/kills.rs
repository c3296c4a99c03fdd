//! How long a farm stands when its leader is killed: from the SIGKILL to the first job that any worker gets from another leader.

use std::collections::BTreeSet;
use std::path::PathBuf;
use std::process::ExitCode;
use std::time::Duration;

use anyhow::Context;

use crate::facts::Said;
use crate::farm::{ELECTION_MS, Farm, HEARTBEAT_MS, Shape};
use crate::hosts::Host;
use crate::lines::Fact;
use crate::load::Load;
use crate::probe::Probe;
use crate::random::Random;
use crate::report::{Claims, Spread};
use crate::run;
use crate::trouble::Trouble;

/// What to run.
#[derive(Clone, Debug)]
pub struct Kills {
    /// The farm's shape.
    pub shape: Shape,
    /// Where everything lies.
    pub dir: PathBuf,
    /// List of derivations to build meanwhile: enough for a few seconds a kill.
    pub set: PathBuf,
    /// How often the leader is killed.
    pub kills: usize,
    /// What determines the moments.
    pub seed: u64,
}

impl Kills {
    /// Kills leaders and prints how long the farm stood.
    ///
    /// # Errors
    /// If the farm cannot be set up, or does not come back.
    pub fn run(&self) -> anyhow::Result<ExitCode> {
        let mut farm = Farm::start(&self.shape, &self.dir.join("kills"))?;
        let probe = Probe::new(&farm.client_identity())?;
        let mut load = Load::start(&farm, &self.set)?;
        let mut random = Random::new(self.seed);
        let mut trouble = Trouble::new(&mut farm, &probe);
        let mut times = Vec::new();
        for kill in 1..=self.kills {
            trouble.settle()?;
            load.wait_until_steady(trouble.farm())?;
            run::pause(Duration::from_millis(random.between(100, 1_500)))?;
            load.must_go_on()?;
            let leader = trouble.leader()?;
            let farm = trouble.farm();
            let known = leased(&farm.book.said());
            let at_us = farm.book.now_us();
            farm.kill(leader)?;
            let book = farm.book.clone();
            let first =
                run::wait_for("a worker gets a job from the next leader", PATIENCE, || Ok(first_new(&book.said(), at_us, leader, &known)))
                    .with_context(|| format!("kill {kill}, of {leader}"))?;
            let ms = (first - at_us) as f64 / 1000.0;
            println!("       kill {kill}: {leader} led; the next job began {ms:.0} ms later");
            times.push(ms);
            trouble.farm().launch(leader)?;
        }
        trouble.settle()?;
        drop(load);
        farm.stop_all()?;
        claim(&times)
    }
}

fn claim(times: &[f64]) -> anyhow::Result<ExitCode> {
    let mut claims = Claims::default();
    let Spread { median, worst } = Spread::of(times).context("no kill was measured")?;
    let [least, most] = ELECTION_MS;
    claims.tell("election time configured for openraft", format!("{least} to {most} ms, heartbeat {HEARTBEAT_MS} ms"));
    let what = format!("kill -9 of the leader to the next job begun, {} kills", times.len());
    claims.check(&format!("{what}, median"), format!("{median:.0} ms"), "goal: under 1000 ms", median < 1000.0);
    claims.check(&format!("{what}, worst"), format!("{worst:.0} ms"), "goal: under 2000 ms", worst < 2000.0);
    Ok(claims.finish())
}

/// The attempts that were leased so far.
fn leased(said: &[Said]) -> BTreeSet<u64> {
    let attempt = |said: &Said| match &said.fact {
        Fact::Leased(entry) => Some(entry.attempt.attempt),
        _ => None,
    };
    said.iter().filter_map(attempt).collect()
}

/// When the first attempt began, after `at_us`, that another than `dead` gave and that was not known before.
fn first_new(said: &[Said], at_us: u64, dead: Host, known: &BTreeSet<u64>) -> Option<u64> {
    let is_new = |said: &&Said| match &said.fact {
        Fact::Began(attempt, leader) => {
            said.at_us > at_us
                && !known.contains(&attempt.attempt)
                && u8::try_from(*leader).is_ok_and(|node| Host::Coordinator(node) != dead)
        }
        _ => false,
    };
    said.iter().filter(is_new).map(|said| said.at_us).min()
}

/// Longest time to wait for the next job: far more than any goal, so that a slow one is measured.
const PATIENCE: Duration = Duration::from_secs(60);

#[cfg(test)]
mod tests {
    use super::*;
    use crate::lines::Attempt;

    #[test]
    fn only_a_new_job_of_another_leader_counts() {
        let began = |at_us, attempt, leader| Said {
            at_us,
            host: Host::Worker(1),
            fact: Fact::Began(Attempt { attempt, derivation: "a.drv".into() }, leader),
        };
        let said = [began(90, 4, 2), began(110, 5, 1), began(120, 3, 2), began(140, 6, 2), began(130, 7, 3)];
        assert_eq!(first_new(&said, 100, Host::Coordinator(1), &BTreeSet::from([3])), Some(130));
        assert_eq!(first_new(&said[..3], 100, Host::Coordinator(1), &BTreeSet::from([3])), None);
    }
}
