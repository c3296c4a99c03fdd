//! Rounds: a real build on a fresh farm while a drawn plan breaks things; then everything that was said is checked.

use std::collections::{BTreeMap, BTreeSet};
use std::fs::File;
use std::path::{Path, PathBuf};
use std::process::{Child, ExitCode, Stdio};
use std::time::{Duration, Instant};

use anyhow::{Context, bail};

use crate::facts::{Record, Said};
use crate::farm::{Farm, Shape};
use crate::history::{Checked, History};
use crate::hosts::Host;
use crate::lines::Fact;
use crate::plan::Plan;
use crate::probe::Probe;
use crate::report::{Claims, list};
use crate::run;
use crate::sets::{Set, read_files};
use crate::trouble::Trouble;

/// What to run.
#[derive(Clone, Debug)]
pub struct Rounds {
    /// The farm's shape.
    pub shape: Shape,
    /// Where everything lies.
    pub dir: PathBuf,
    /// List of derivations that are built beforehand, once.
    pub before: Option<PathBuf>,
    /// List of derivations that each round builds.
    pub set: PathBuf,
    /// List of derivations that clients submit and cancel meanwhile.
    pub spare: PathBuf,
    /// How many rounds.
    pub rounds: u64,
    /// Only this round.
    pub only: Option<u64>,
    /// What determines all that is drawn.
    pub seed: u64,
}

/// What one round showed.
struct Outcome {
    ended: bool,
    alike: bool,
    seconds: f64,
    steps: usize,
    record: Record,
    checked: Checked,
    in_vain: Vec<String>,
    lost: usize,
    wrong: Vec<String>,
    log: Vec<String>,
}

impl Rounds {
    /// Runs all rounds and prints what is claimed of them.
    ///
    /// # Errors
    /// If the farm cannot be set up, or the undisturbed run fails.
    pub fn run(&self) -> anyhow::Result<ExitCode> {
        let set = Set::read(&self.set)?;
        let seed_store = self.seed_store()?;
        let (expected, undisturbed) = self.reference(&set, seed_store.as_deref())?;
        println!("       undisturbed: {} outputs in {:.1} s", expected.len(), undisturbed.as_secs_f64());
        let mut claims = Claims::default();
        let mut outcomes = Vec::new();
        let rounds: Vec<u64> = (1..=self.rounds).filter(|round| self.only.is_none_or(|only| only == *round)).collect();
        for round in &rounds {
            println!("       round {round}, again by --seed {} --only {round}:", self.seed);
            match self.round(*round, &set, &expected, seed_store.as_deref()) {
                Ok(outcome) => {
                    outcome.tell();
                    outcomes.push(outcome);
                }
                Err(error) => {
                    run::must_go_on()?;
                    println!("         {error:#}");
                }
            }
        }
        claim(&mut claims, rounds.len(), &outcomes);
        Ok(claims.finish())
    }

    fn farm(&self, name: &str, seed_store: Option<&Path>) -> anyhow::Result<Farm> {
        let dir = self.dir.join(name);
        std::fs::create_dir_all(&dir).with_context(|| format!("make `{}`", dir.display()))?;
        if let Some(store) = seed_store {
            run::run("cp", ["-a".as_ref(), "--reflink=auto".as_ref(), store.as_os_str(), dir.join("s3").as_os_str()])?;
        }
        Farm::start(&self.shape, &dir)
    }

    /// Builds what every round finds in the store, and returns where its objects lie.
    fn seed_store(&self) -> anyhow::Result<Option<PathBuf>> {
        let Some(before) = &self.before else { return Ok(None) };
        let set = Set::read(before)?;
        let begin = Instant::now();
        let mut farm = self.farm("seed", None)?;
        let built = run::finish(&mut farm.client(&[&["build"], &set.arguments()[..]].concat()));
        built.context("build what comes before the rounds")?;
        farm.stop_all()?;
        println!("       built beforehand: {} outputs in {:.0} s", set.outputs.len(), begin.elapsed().as_secs_f64());
        Ok(Some(self.dir.join("seed/s3")))
    }

    fn reference(&self, set: &Set, seed_store: Option<&Path>) -> anyhow::Result<(BTreeMap<String, String>, Duration)> {
        let mut farm = self.farm("undisturbed", seed_store)?;
        let begin = Instant::now();
        run::finish(&mut farm.client(&[&["build"], &set.arguments()[..]].concat())).context("build undisturbed")?;
        let took = begin.elapsed();
        let hashes = set.hashes(&farm)?;
        farm.stop_all()?;
        drop(farm);
        self.remove("undisturbed")?;
        Ok((hashes, took))
    }

    fn remove(&self, name: &str) -> anyhow::Result<()> {
        let dir = self.dir.join(name);
        std::fs::remove_dir_all(&dir).with_context(|| format!("remove `{}`", dir.display()))
    }

    fn round(&self, round: u64, set: &Set, expected: &BTreeMap<String, String>, seed_store: Option<&Path>) -> anyhow::Result<Outcome> {
        let name = format!("round-{round}");
        let mut farm = self.farm(&name, seed_store)?;
        let probe = Probe::new(&farm.client_identity())?;
        let spare = read_files(&self.spare)?;
        let excused: BTreeSet<String> = spare.iter().map(|file| file.path.to_string()).collect();
        // What these need beside their own files comes to the farm with a first one.
        let first = std::fs::read_to_string(&self.spare).context("read the list of spare derivations")?;
        let first = first.lines().next().context("a spare derivation")?.to_owned();
        run::finish(&mut farm.client(&["build", &first])).context("build the first spare derivation")?;
        let history = History::start(&probe, &farm.book, &farm.coordinators(), spare, self.seed.wrapping_add(round))?;

        let begin = Instant::now();
        let mut client = self.start_build(&farm, set)?;
        let mut trouble = Trouble::new(&mut farm, &probe);
        let mut steps = 0;
        let mut wrong = Vec::new();
        let mut code = None;
        for step in Plan::new(self.seed, round, self.shape.workers) {
            if client.over(&mut code)? {
                break;
            }
            if begin.elapsed() > ROUND {
                break;
            }
            steps += 1;
            if let Err(error) = trouble.step(step, || client.over(&mut code)) {
                run::must_go_on()?;
                wrong.push(format!("{error:#}"));
                break;
            }
        }
        // With everything mended, what was accepted must end by itself.
        let ended = run::wait_for("the build ends", END, || Ok(client.over(&mut code)?.then_some(())));
        let seconds = begin.elapsed().as_secs_f64();
        wrong.extend(ended.err().map(|error| format!("{error:#}")));
        let (harms, filled) = (std::mem::take(&mut trouble.harms), std::mem::take(&mut trouble.filled));
        let log = std::mem::take(&mut trouble.log);
        let checked = history.finish(&probe)?;
        if let Some(code) = code.filter(|code| *code != 0) {
            wrong.push(format!("the client ended with {code}: {}", client.said()));
        }
        let hashes = set.hashes(&farm);
        let alike = hashes.as_ref().is_ok_and(|hashes| hashes == expected);
        wrong.extend(hashes.err().map(|error| format!("{error:#}")));
        wrong.extend(farm.stop_all().err().map(|error| format!("{error:#}")));
        let record = Record::of(farm.book.said().iter());
        wrong.extend(errors(&farm.book.said(), &filled));
        let excuse = |derivation: &str| excused.contains(derivation);
        let (in_vain, lost) = (record.in_vain(&harms, excuse), record.lost_with_workers(&harms, excuse));
        drop(farm);
        let outcome = Outcome { ended: code == Some(0), alike, seconds, steps, record, checked, in_vain, lost, wrong, log };
        if outcome.is_well() {
            self.remove(&name)?;
        }
        Ok(outcome)
    }

    fn start_build(&self, farm: &Farm, set: &Set) -> anyhow::Result<Client> {
        let said = farm.dir().join("logs/build.log");
        let file = File::create(&said).with_context(|| format!("make `{}`", said.display()))?;
        let mut command = farm.client(&[&["build", "--json"], &set.arguments()[..]].concat());
        command.stdin(Stdio::null()).stdout(Stdio::null()).stderr(file);
        Ok(Client { child: command.spawn().context("start `kiln build`")?, said })
    }
}

/// What programs called an error; that a full disk is full is none.
fn errors(said: &[Said], filled: &[Host]) -> Vec<String> {
    let told = said.iter().filter_map(|said| match &said.fact {
        Fact::Error(words) if !(filled.contains(&said.host) && words.contains("full")) => {
            Some(format!("{} said at {:.2} s: {words}", said.host, said.at_us as f64 / 1e6))
        }
        _ => None,
    });
    told.collect()
}

/// The `kiln build` of a round.
struct Client {
    child: Child,
    said: PathBuf,
}

impl Client {
    fn over(&mut self, code: &mut Option<i32>) -> anyhow::Result<bool> {
        if code.is_none()
            && let Some(status) = self.child.try_wait().context("look at `kiln build`")?
        {
            *code = Some(status.code().unwrap_or(-1));
        }
        Ok(code.is_some())
    }

    fn said(&self) -> String {
        std::fs::read_to_string(&self.said).unwrap_or_default().trim().to_owned()
    }
}

impl Drop for Client {
    fn drop(&mut self) {
        // Both fail only if it has ended already.
        let _killed = self.child.kill();
        let _reaped = self.child.wait();
    }
}

impl Outcome {
    fn is_well(&self) -> bool {
        self.ended && self.alike && self.found().is_empty()
    }

    /// Everything that must not be.
    fn found(&self) -> Vec<String> {
        let record = &self.record;
        let rules = [record.committed_twice(), record.replicas_that_differ(), record.begun_twice()];
        let found = [self.wrong.clone(), self.in_vain.clone(), self.checked.broken.clone()];
        found.into_iter().chain(rules).flatten().collect()
    }

    fn tell(&self) {
        println!(
            "         {} steps in {:.0} s; {} committed, {} lost with killed workers; history: {} answers, {} unanswered, {} lists, {} objects; {}",
            self.steps,
            self.seconds,
            self.record.committed(),
            self.lost,
            self.checked.answered,
            self.checked.unanswered,
            self.checked.lists,
            self.checked.objects,
            if self.is_well() { "well" } else { "NOT WELL" }
        );
        if !self.is_well() {
            list(&self.log);
            list(&self.found());
        }
    }
}

fn claim(claims: &mut Claims, rounds: usize, outcomes: &[Outcome]) {
    let all =
        |claims: &mut Claims, claim: &str, count: usize| claims.check(claim, format!("{count} of {rounds}"), "goal: all", count == rounds);
    let count = |holds: &dyn Fn(&Outcome) -> bool| outcomes.iter().filter(|outcome| holds(outcome)).count();
    let none = |claims: &mut Claims, claim: &str, found: Vec<String>| {
        claims.check(claim, found.len(), "goal: 0", found.is_empty() && !outcomes.is_empty());
    };
    let of = |find: &dyn Fn(&Outcome) -> Vec<String>| outcomes.iter().flat_map(find).collect::<Vec<_>>();
    all(claims, "rounds in which the build ended with all outputs and no client error", count(&|outcome| outcome.ended));
    all(claims, "rounds with the hashes of the undisturbed run", count(&|outcome| outcome.alike));
    let committed: usize = outcomes.iter().map(|outcome| outcome.record.committed()).sum();
    none(claims, &format!("of {committed} derivations, committed twice"), of(&|outcome| outcome.record.committed_twice()));
    none(claims, "log entries that coordinators applied differently", of(&|outcome| outcome.record.replicas_that_differ()));
    none(claims, "attempts that began twice", of(&|outcome| outcome.record.begun_twice()));
    let begun: usize = outcomes.iter().map(|outcome| outcome.record.begun()).sum();
    none(claims, &format!("of {begun} attempts, in vain though their worker was not killed"), of(&|outcome| outcome.in_vain.clone()));
    claims.tell("attempts lost with killed workers", outcomes.iter().map(|outcome| outcome.lost).sum::<usize>());
    let answers: usize = outcomes.iter().map(|outcome| outcome.checked.answered + outcome.checked.lists).sum();
    none(
        claims,
        &format!("objects of the client API whose {answers} answers are not linearizable"),
        of(&|outcome| outcome.checked.broken.clone()),
    );
    none(claims, "anything else that went wrong", of(&|outcome| outcome.wrong.clone()));
}

/// Longest time that a round makes trouble.
const ROUND: Duration = Duration::from_secs(120);
/// Longest time for a build to end once all is mended.
const END: Duration = Duration::from_secs(600);

/// Fails unless the seed's directory is absent or empty.
///
/// # Errors
/// If something lies there.
pub fn must_be_new(dir: &Path) -> anyhow::Result<()> {
    std::fs::create_dir_all(dir).with_context(|| format!("make `{}`", dir.display()))?;
    if std::fs::read_dir(dir).with_context(|| format!("list `{}`", dir.display()))?.next().is_some() {
        bail!("`{}` is not empty: name a directory that is", dir.display());
    }
    Ok(())
}
