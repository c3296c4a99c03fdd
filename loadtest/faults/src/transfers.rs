//! How long a farm has no leader when leadership is handed over by plan, as its clients see it: the longest time between two answers.
//!
//! Each coordinator is asked without a break for something that only a leader can answer, after a commit: to cancel a build that there
//! is none of.

use std::path::PathBuf;
use std::process::ExitCode;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use anyhow::Context;
use kiln_wire::BuildId;
use kiln_wire::client::{RefusalKind, Request};

use crate::farm::{Farm, Shape};
use crate::load::Load;
use crate::probe::{Probe, Reply};
use crate::process::Book;
use crate::report::{Claims, Spread};
use crate::run;
use crate::trouble::Trouble;

/// What to run.
#[derive(Clone, Debug)]
pub struct Transfers {
    /// The farm's shape.
    pub shape: Shape,
    /// Where everything lies.
    pub dir: PathBuf,
    /// List of derivations to build meanwhile.
    pub set: PathBuf,
    /// How often leadership is handed over.
    pub transfers: usize,
}

impl Transfers {
    /// Hands leadership over and prints how long nobody led.
    ///
    /// # Errors
    /// If the farm cannot be set up, or a transfer fails.
    pub fn run(&self) -> anyhow::Result<ExitCode> {
        let mut farm = Farm::start(&self.shape, &self.dir.join("transfers"))?;
        let probe = Probe::new(&farm.client_identity())?;
        let mut load = Load::start(&farm, &self.set)?;
        let mut trouble = Trouble::new(&mut farm, &probe);
        trouble.settle()?;
        load.wait_until_steady(trouble.farm())?;
        let asking = Asking::start(&probe, trouble.farm())?;
        let (mut gaps, mut usual) = (Vec::new(), Vec::new());
        for transfer in 1..=self.transfers {
            run::pause(BETWEEN)?;
            load.must_go_on()?;
            let before = trouble.leader()?;
            let farm = trouble.farm();
            let from_us = farm.book.now_us();
            run::finish(&mut farm.operator(&["cluster", "transfer"])).with_context(|| format!("transfer {transfer}"))?;
            run::pause(BETWEEN)?;
            let until_us = farm.book.now_us();
            let after = trouble.leader()?;
            let answers = asking.answers();
            let gap = longest_gap_ms(&answers, from_us, until_us).context("nobody answered around the transfer")?;
            println!("       transfer {transfer}: {before} to {after}, {gap:.1} ms without an answer");
            anyhow::ensure!(before != after, "transfer {transfer}: {before} leads still");
            gaps.push(gap);
            let quiet = u64::try_from(BETWEEN.as_micros()).unwrap_or(0);
            usual.extend(longest_gap_ms(&answers, from_us.saturating_sub(quiet), from_us));
            trouble.settle()?;
        }
        asking.stop(&probe)?;
        drop(load);
        farm.stop_all()?;
        let mut claims = Claims::default();
        let (gap, usual) = (Spread::of(&gaps).context("no transfer")?, Spread::of(&usual).context("no answers")?);
        claims.tell("longest time between two answers without a transfer, median", format!("{:.1} ms", usual.median));
        let what = format!("longest time between two answers around a planned transfer, {} transfers", gaps.len());
        claims.check(&format!("{what}, median"), format!("{:.1} ms", gap.median), "goal: under 50 ms", gap.median < 50.0);
        claims.tell(&format!("{what}, worst"), format!("{:.1} ms", gap.worst));
        Ok(claims.finish())
    }
}

/// Clients that ask without a break, one for each coordinator.
struct Asking {
    stop: Arc<AtomicBool>,
    /// When answers came, in microseconds.
    answers: Arc<Mutex<Vec<u64>>>,
    tasks: Vec<tokio::task::JoinHandle<()>>,
}

impl Asking {
    fn start(probe: &Probe, farm: &Farm) -> anyhow::Result<Self> {
        let (stop, answers) = (Arc::new(AtomicBool::new(false)), Arc::<Mutex<Vec<u64>>>::default());
        let mut tasks = Vec::new();
        for host in farm.coordinators() {
            let (line, book) = (probe.line(host)?, farm.book.clone());
            tasks.push(probe.spawn(ask(line, book, stop.clone(), answers.clone())));
        }
        Ok(Self { stop, answers, tasks })
    }

    fn answers(&self) -> Vec<u64> {
        let mut answers = self.answers.lock().unwrap_or_else(PoisonError::into_inner).clone();
        answers.sort_unstable();
        answers
    }

    fn stop(self, probe: &Probe) -> anyhow::Result<()> {
        self.stop.store(true, Ordering::Relaxed);
        self.tasks.into_iter().try_for_each(|task| probe.run(task).context("run a client"))
    }
}

async fn ask(mut line: crate::probe::Line, book: Book, stop: Arc<AtomicBool>, answers: Arc<Mutex<Vec<u64>>>) {
    while !stop.load(Ordering::Relaxed) {
        match line.ask(&Request::Cancel(BuildId(u64::MAX)), |_| true).await {
            // The answer to a command that was committed: there is no such build.
            Reply::Refused(refusal) if refusal.kind == RefusalKind::NotFound => {
                answers.lock().unwrap_or_else(PoisonError::into_inner).push(book.now_us());
            }
            Reply::Refused(_) | Reply::Answers(_) | Reply::NotLeader | Reply::Unknown(_) => tokio::time::sleep(AGAIN).await,
        }
    }
}

/// The longest time without an answer that begins or ends between two moments, in milliseconds; none if fewer than two answers came.
fn longest_gap_ms(answers: &[u64], from_us: u64, until_us: u64) -> Option<f64> {
    let gaps = answers.windows(2).filter(|pair| pair[1] >= from_us && pair[0] <= until_us);
    gaps.map(|pair| (pair[1] - pair[0]) as f64 / 1000.0).max_by(f64::total_cmp)
}

/// How long answers are looked at before and after a transfer.
const BETWEEN: Duration = Duration::from_secs(1);
/// How soon one that does not lead is asked again.
const AGAIN: Duration = Duration::from_millis(1);

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_longest_gap_is_that_around_the_moment() {
        let answers = [0, 90_000, 91_000, 92_000, 120_000, 121_000, 500_000];
        assert_eq!(longest_gap_ms(&answers, 92_500, 121_000), Some(379.0));
        assert_eq!(longest_gap_ms(&answers, 92_500, 120_500), Some(28.0));
        assert_eq!(longest_gap_ms(&answers[..1], 0, 1), None);
    }
}
