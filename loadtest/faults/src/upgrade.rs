//! A rolling upgrade: a farm of the release before is taken to this one, command by command as the runbook says, while builds go on.

use std::fs;
use std::path::{Path, PathBuf};
use std::process::{Command, ExitCode};
use std::time::Duration;

use anyhow::{Context, bail};
use serde_json::Value;

use crate::facts::Record;
use crate::farm::{Farm, START, Shape};
use crate::hosts::{Host, LINK_PORT};
use crate::lines::Fact;
use crate::load::Load;
use crate::report::{Claims, list};
use crate::run;
use crate::sets::Set;

/// What to run.
#[derive(Clone, Debug)]
pub struct Upgrade {
    /// The farm's shape, with the older program.
    pub shape: Shape,
    /// The newer program.
    pub newer: PathBuf,
    /// Where everything lies.
    pub dir: PathBuf,
    /// List of derivations to build meanwhile.
    pub set: PathBuf,
    /// List of derivations that clients build, one at a time.
    pub spare: PathBuf,
    /// The runbook.
    pub runbook: PathBuf,
}

impl Upgrade {
    /// Follows the runbook and prints what held at each step.
    ///
    /// # Errors
    /// If the farm cannot be set up, or a command of the runbook fails.
    pub fn run(&self) -> anyhow::Result<ExitCode> {
        let steps = steps(&fs::read_to_string(&self.runbook).with_context(|| format!("read `{}`", self.runbook.display()))?)?;
        let farm = Farm::start(&self.shape, &self.dir.join("upgrade"))?;
        let load = Load::start(&farm, &self.set)?;
        let spare = Set::read(&self.spare)?.files;
        let mut course = Course { upgrade: self, farm, load, spare, claims: Claims::default(), upgraded: 0 };
        course.begin()?;
        for step in &steps {
            course.follow(step)?;
        }
        course.end()
    }
}

/// One command of the runbook.
#[derive(Clone, Debug, PartialEq, Eq)]
enum Step {
    /// See that all are in step.
    Status,
    /// Ask the leader for something.
    Operator(Vec<String>),
    /// Replace a coordinator.
    Coordinator(u8),
    /// Replace every worker.
    Worker,
}

/// Reads the commands of the runbook.
fn steps(text: &str) -> anyhow::Result<Vec<Step>> {
    let commands = text.lines().filter_map(|line| line.strip_prefix("    ")?.trim_start().strip_prefix("kiln "));
    commands.map(step).collect()
}

fn step(command: &str) -> anyhow::Result<Step> {
    let words: Vec<&str> = command.split_whitespace().collect();
    Ok(match words[..] {
        ["cluster", "status"] => Step::Status,
        ["cluster", "backup" | "transfer", ..] => Step::Operator(words.into_iter().map(str::to_owned).collect()),
        ["coordinator", "--config", config] => {
            let node = config.trim_start_matches("/etc/kiln/coordinator-").trim_end_matches(".toml").parse();
            Step::Coordinator(node.with_context(|| format!("`kiln {command}`: which coordinator?"))?)
        }
        ["worker", "--config", _] => Step::Worker,
        _ => bail!("`kiln {command}`: nobody knows how to follow this"),
    })
}

/// The upgrade as far as it has gone.
struct Course<'a> {
    upgrade: &'a Upgrade,
    farm: Farm,
    load: Load,
    /// What clients may build yet.
    spare: Vec<PathBuf>,
    claims: Claims,
    /// Coordinators that run the newer program.
    upgraded: u8,
}

impl Course<'_> {
    /// The farm of the older release, and clients of both.
    fn begin(&mut self) -> anyhow::Result<()> {
        self.load.wait_until_steady(&mut self.farm)?;
        if self.leader()? != Some(1) {
            self.operate(&["cluster", "transfer", "1"])?;
        }
        self.status()?;
        self.serves("all of the older release")
    }

    fn follow(&mut self, step: &Step) -> anyhow::Result<()> {
        match step {
            Step::Status => self.status(),
            Step::Operator(words) => {
                let backup = self.upgrade.dir.join("before-upgrade.backup").display().to_string();
                let words: Vec<&str> = words.iter().map(|word| if word.starts_with('/') { backup.as_str() } else { word }).collect();
                self.operate(&words)
            }
            Step::Coordinator(node) => {
                self.replace(Host::Coordinator(*node))?;
                self.status()?;
                self.upgraded += 1;
                let all = self.upgrade.shape.coordinators;
                self.versions()?;
                self.serves(&format!("{} of {all} coordinators upgraded", self.upgraded))
            }
            Step::Worker => {
                for worker in 1..=self.upgrade.shape.workers {
                    self.replace(Host::Worker(worker))?;
                }
                let all = self.upgrade.shape.workers;
                run::wait_for("the workers connect", START, || {
                    Ok(self.farm.status().ok().filter(|status| status["workersConnected"] == all))
                })?;
                self.serves("all coordinators and workers upgraded")
            }
        }
    }

    fn end(mut self) -> anyhow::Result<ExitCode> {
        self.too_old_starts_not()?;
        self.too_old_is_not_taken_in()?;
        let built = self.load.finish(BUILT);
        self.claims.check(
            "the build that went on all the time",
            built.as_ref().map_or_else(ToString::to_string, |()| "built".into()),
            "goal: built",
            built.is_ok(),
        );
        self.farm.stop_all()?;
        let said = self.farm.book.said().clone();
        let record = Record::of(&said);
        let nothing = |claims: &mut Claims, claim: &str, found: Vec<String>| {
            claims.check(claim, found.len(), "goal: 0", found.is_empty());
            list(&found);
        };
        self.claims.tell("derivations committed", record.committed());
        nothing(&mut self.claims, "derivations committed twice", record.committed_twice());
        nothing(&mut self.claims, "entries that coordinators applied differently", record.replicas_that_differ());
        nothing(&mut self.claims, "attempts begun twice", record.begun_twice());
        nothing(&mut self.claims, "attempts in vain", record.in_vain(&[], |_| false));
        Ok(self.claims.finish())
    }

    /// Ends a program in order and starts the newer one.
    fn replace(&mut self, host: Host) -> anyhow::Result<()> {
        self.farm.stop(host)?;
        self.farm.install(host, &self.upgrade.newer);
        self.farm.launch(host)
    }

    /// Runs an operator's command with the older program.
    fn operate(&mut self, words: &[&str]) -> anyhow::Result<()> {
        // The leader may change under the hands of whoever asks.
        run::wait_for(&words.join(" "), START, || Ok(run::finish(&mut self.farm.operator(words)).ok())).map(drop)
    }

    /// Returns a command of a client of the newer release.
    fn newer(&mut self, words: &[&str]) -> Command {
        let newer = self.upgrade.newer.clone();
        self.farm.install(Host::Client, &newer);
        let command = self.farm.client(words);
        let older = self.upgrade.shape.kiln.clone();
        self.farm.install(Host::Client, &older);
        command
    }

    /// Returns what `kiln cluster status --json` of the newer release prints.
    fn view(&mut self) -> anyhow::Result<Value> {
        serde_json::from_str(&run::finish(&mut self.newer(&["cluster", "status", "--json"]))?).context("read `kiln cluster status --json`")
    }

    fn leader(&mut self) -> anyhow::Result<Option<u64>> {
        Ok(self.view()?["leader"].as_u64())
    }

    /// Waits until every coordinator answers, votes and is in step, as `status` shows it.
    fn status(&mut self) -> anyhow::Result<()> {
        let all = usize::from(self.upgrade.shape.coordinators);
        run::wait_for("all coordinators are in step", IN_STEP, || {
            self.farm.must_live()?;
            let view = self.view().unwrap_or_default();
            let members = view["coordinators"].as_array().cloned().unwrap_or_default();
            let is_in_step = |member: &Value| {
                let lags = member["state"] != "leader" && member["lagEntries"].as_u64().is_none_or(|lag| lag >= LAG_MAX);
                member["answers"] == true && member["state"] != "learner" && !lags
            };
            Ok((members.len() == all && members.iter().all(is_in_step) && view["leader"].is_u64()).then_some(()))
        })
    }

    /// What the farm is at, and each coordinator's program, beside what they should be.
    fn versions(&mut self) -> anyhow::Result<()> {
        let all = self.upgrade.shape.coordinators;
        let view = self.view()?;
        let newest = view["coordinators"].as_array().and_then(|of| of.iter().filter_map(|of| of["versionNewest"].as_u64()).max());
        let after = newest.context("no coordinator says what it speaks")?;
        let wanted = if self.upgraded == all { after } else { after - 1 };
        let mut found = view["version"].as_u64();
        if wanted == after {
            found =
                run::wait_for("the farm is raised", START, || Ok(self.view()?["version"].as_u64().filter(|found| *found == after))).ok();
        }
        let claim = format!("{} of {all} coordinators upgraded: the farm's version", self.upgraded);
        let found_text = found.map_or_else(|| "not raised".to_owned(), |found| found.to_string());
        self.claims.check(&claim, found_text, &format!("goal: {wanted}"), found == Some(wanted));
        Ok(())
    }

    /// Builds go on, and clients of both releases are served.
    fn serves(&mut self, when: &str) -> anyhow::Result<()> {
        self.load.must_go_on()?;
        let since = self.farm.book.now_us();
        let more = run::wait_for("more is committed", START, || {
            self.farm.must_live()?;
            let said = self.farm.book.said();
            let more = said.iter().filter(|said| said.at_us > since && matches!(said.fact, Fact::Committed(_))).count();
            Ok((more >= MORE).then_some(more))
        });
        self.claims.check(&format!("{when}: the build goes on"), more.is_ok(), "goal: true", more.is_ok());
        for older in [true, false] {
            let file = self.spare.pop().context("give it more derivations for clients to build")?.display().to_string();
            let words = ["build", "--json", &file];
            let served = run::finish(&mut if older { self.farm.client(&words) } else { self.newer(&words) });
            let claim = format!("{when}: a client of the {} release builds", if older { "older" } else { "newer" });
            self.claims.check(
                &claim,
                served.as_ref().map_or_else(|error| format!("{error:#}"), |_| "built".into()),
                "goal: built",
                served.is_ok(),
            );
        }
        Ok(())
    }

    /// The older program on a coordinator's directory says why not, and ends.
    fn too_old_starts_not(&mut self) -> anyhow::Result<()> {
        let host = Host::Coordinator(3);
        let log = self.farm.dir().join(format!("logs/{host}.log"));
        let before = fs::read_to_string(&log).unwrap_or_default().len();
        self.farm.stop(host)?;
        self.farm.install(host, &self.upgrade.shape.kiln);
        self.farm.launch(host)?;
        let ended = run::wait_for("the older program ends", START, || self.farm.process(host)?.ended());
        let words = said_of_versions(&log, before);
        let holds = ended.as_ref().is_ok_and(|status| !status.success()) && words.is_some();
        let figure = words.unwrap_or_else(|| format!("{ended:?}"));
        self.claims.check(
            "the older program on an upgraded coordinator's directory",
            figure,
            "goal: refuses and names the versions",
            holds,
        );
        self.farm.forget(host);
        self.farm.install(host, &self.upgrade.newer);
        self.farm.launch(host)?;
        self.status()
    }

    /// A new coordinator with the older program is refused.
    fn too_old_is_not_taken_in(&mut self) -> anyhow::Result<()> {
        let node = self.upgrade.shape.coordinators + 1;
        let host = Host::Coordinator(node);
        self.farm.launch(host)?;
        let address = format!("{}:{LINK_PORT}", host.address());
        let (number, mut told) = (node.to_string(), String::new());
        // Until it listens it cannot be reached, which is another refusal.
        let refused = run::wait_for("the farm refuses it for its version", START, || {
            told = match run::finish(&mut self.farm.operator(&["cluster", "add", &number, &address])) {
                Ok(_) => bail!("it was taken in"),
                Err(error) => format!("{error:#}"),
            };
            Ok(told.contains("too old for the farm").then_some(()))
        });
        let told = told.rsplit("error: ").next().unwrap_or_default().to_owned();
        self.claims.check("a new coordinator with the older program", told, "goal: refused for its version", refused.is_ok());
        self.farm.stop(host)
    }
}

/// Returns the last line of a log, after so many bytes, that speaks of versions.
fn said_of_versions(log: &Path, after: usize) -> Option<String> {
    let text = fs::read_to_string(log).ok()?;
    let mut lines = text.get(after..)?.lines().filter(|line| line.contains("version ") && line.contains("reads"));
    lines.next_back().map(|line| line.trim_start_matches(|c: char| c.is_ascii_digit() || c.is_whitespace()).to_owned())
}

/// Nothing is timed here: a machine that is busy with other work must not elect for want of a processor.
pub const ELECTION_MS: [u64; 2] = [1000, 2000];
/// Entries that a coordinator in step may lag behind while builds go on.
const LAG_MAX: u64 = 100;
/// Derivations committed that show that the build goes on.
const MORE: usize = 5;
/// Longest time for a coordinator to come into step on a busy machine.
const IN_STEP: Duration = Duration::from_secs(120);
/// Longest time for the rest of the build after the upgrade.
const BUILT: Duration = Duration::from_secs(1800);

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_runbook_can_be_followed() {
        let steps = steps(include_str!("../../../ops/runbooks/upgrade.md")).expect("every command is known");
        let replaced: Vec<&Step> = steps.iter().filter(|step| matches!(step, Step::Coordinator(_) | Step::Worker)).collect();
        assert_eq!(replaced, [&Step::Coordinator(3), &Step::Coordinator(2), &Step::Coordinator(1), &Step::Worker]);
        assert!(step("cluster remove 3").is_err());
    }
}
