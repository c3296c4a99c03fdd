//! A large graph on a farm of three: how large a snapshot is, how long it takes to write and to install, and how soon a coordinator
//! whose disk was wiped is in step again, under a new number, while jobs go on being dispatched.

use std::fs::{self, File};
use std::io::BufReader;
use std::path::{Path, PathBuf};
use std::process::ExitCode;
use std::time::{Duration, Instant};

use anyhow::Context;
use kiln_nix::derivation::Derivation;
use kiln_nix::graph_file;
use kiln_wire::StoreDir;

use crate::farm::{Farm, Shape};
use crate::graph;
use crate::hosts::Host;
use crate::lines::Fact;
use crate::load::Load;
use crate::probe::Probe;
use crate::report::Claims;
use crate::run;
use crate::sets::read_files;
use crate::trouble::Trouble;

/// What to run.
#[derive(Clone, Debug)]
pub struct Snapshots {
    /// The farm's shape.
    pub shape: Shape,
    /// Where everything lies.
    pub dir: PathBuf,
    /// The recorded graph, as JSON lines.
    pub graph: PathBuf,
    /// List with one derivation of which the others take platform, builder and sources.
    pub like: PathBuf,
}

impl Snapshots {
    /// Loads the graph, wipes a follower and brings it back, and prints what that took.
    ///
    /// # Errors
    /// If the farm cannot be set up, or the follower does not come back.
    pub fn run(&self) -> anyhow::Result<ExitCode> {
        let (root, count) = self.derivations()?;
        let mut farm = Farm::start(&self.shape, &self.dir.join("snapshots"))?;
        let probe = Probe::new(&farm.client_identity())?;
        // What all derivations need beside their own files.
        run::finish(&mut farm.client(&["build", fs::read_to_string(&self.like)?.trim()])).context("build the first derivation")?;
        let begin = Instant::now();
        let mut load = Load::start(&farm, &root)?;
        run::wait_for("the graph is loaded", LOADED, || {
            load.must_go_on()?;
            farm.must_live()?;
            let jobs = farm.status().ok().map(|status| status["jobs"].clone());
            let total =
                jobs.map(|jobs| ["blocked", "ready", "running", "built"].iter().filter_map(|kind| jobs[*kind].as_u64()).sum::<u64>());
            Ok(total.filter(|total| *total >= count))
        })?;
        let mut claims = Claims::default();
        claims.tell(&format!("{count} derivations handed over by `kiln build`"), format!("{:.1} s", begin.elapsed().as_secs_f64()));

        let mut trouble = Trouble::new(&mut farm, &probe);
        trouble.settle()?;
        let leader = trouble.leader()?;
        let again = fill_log(trouble.farm(), leader, &root)?;
        claims.tell("submissions of the same graph beside, until the log was long enough for a snapshot", again.len());
        let farm = trouble.farm();
        let wiped = farm.coordinators().into_iter().rev().find(|host| *host != leader).context("a follower")?;
        let (Host::Coordinator(old), new) = (wiped, self.shape.coordinators + 1) else { anyhow::bail!("{wiped} is no coordinator") };
        farm.kill(wiped)?;
        let from_us = farm.book.now_us();
        let begin = Instant::now();
        farm.remove(old)?;
        farm.join(new)?;
        trouble.settle()?;
        let took = begin.elapsed().as_secs_f64();
        let farm = trouble.farm();
        let until_us = farm.book.now_us();
        let begun = farm
            .book
            .said()
            .iter()
            .filter(|said| (from_us..until_us).contains(&said.at_us) && matches!(said.fact, Fact::Began(..)))
            .count();
        load.must_go_on()?;
        claims.check(
            &format!("a wiped follower ({wiped}) is in step again as c{new}"),
            format!("{took:.1} s"),
            "goal: under 30 s",
            took < 30.0,
        );
        claims.check("jobs dispatched meanwhile", begun, "goal: more than none", begun > 0);
        self.figures(farm, new, &claims)?;
        drop((load, again));
        farm.stop_all()?;
        Ok(claims.finish())
    }

    /// Writes the derivations; returns a list with their root, and how many there are.
    fn derivations(&self) -> anyhow::Result<(PathBuf, u64)> {
        let dir = self.dir.join("graph");
        fs::create_dir_all(&dir).with_context(|| format!("make `{}`", dir.display()))?;
        let file = File::open(&self.graph).with_context(|| format!("open `{}`", self.graph.display()))?;
        let graph = graph_file::read(BufReader::new(file)).with_context(|| format!("read `{}`", self.graph.display()))?;
        let like = read_files(&self.like)?.into_iter().next().context("a derivation to follow")?;
        let like = Derivation::parse(&StoreDir::default(), like.path.name(), &like.bytes)?;
        let written = graph::write(&graph, &like, &dir)?;
        let list = self.dir.join("root");
        fs::write(&list, written.root.to_str().context("a path is text")?).with_context(|| format!("write `{}`", list.display()))?;
        Ok((list, u64::try_from(written.count)?))
    }

    /// Prints the snapshots that the coordinators hold, and what they said of writing and installing them.
    fn figures(&self, farm: &Farm, new: u8, claims: &Claims) -> anyhow::Result<()> {
        for host in farm.coordinators() {
            if let Some(bytes) = snapshot_bytes(farm, host) {
                claims.tell(&format!("snapshot on {host}"), format!("{:.1} MiB", bytes as f64 / f64::from(1 << 20)));
            }
        }
        for host in farm.coordinators() {
            for line in said(&farm.dir().join(format!("logs/{host}.log")), "snapshot")? {
                claims.tell(&format!("{host}{}", if host == Host::Coordinator(new) { ", the new one" } else { "" }), line);
            }
        }
        Ok(())
    }
}

/// Submits the graph again until a coordinator has written a snapshot: each time its log grows by the whole graph.
fn fill_log(farm: &mut Farm, leader: Host, root: &Path) -> anyhow::Result<Vec<Load>> {
    let mut loads = Vec::new();
    while loads.len() < SUBMISSIONS_MAX && snapshot_bytes(farm, leader).is_none() {
        loads.push(Load::start(farm, root)?);
        let submitted = run::wait_for("the graph is submitted again", LOADED, || {
            farm.must_live()?;
            let builds = farm.status().ok().and_then(|status| status["builds"].as_array().map(Vec::len));
            Ok(builds.filter(|builds| *builds > loads.len()))
        });
        submitted?;
        run::pause(SNAPSHOT)?;
    }
    Ok(loads)
}

/// The size of a coordinator's newest snapshot, if it has one.
fn snapshot_bytes(farm: &Farm, host: Host) -> Option<u64> {
    let dir = farm.dir().join(host.to_string()).join("raft/snapshot");
    let sizes = fs::read_dir(&dir).into_iter().flatten().flatten().filter_map(|entry| entry.metadata().ok()).map(|meta| meta.len());
    sizes.max()
}

/// The messages of a log that have this word, with their fields.
fn said(log: &Path, word: &str) -> anyhow::Result<Vec<String>> {
    let text = fs::read_to_string(log).with_context(|| format!("read `{}`", log.display()))?;
    let fields = |line: &str| {
        let line: serde_json::Value = serde_json::from_str(line.trim_start().split_once(' ')?.1).ok()?;
        line["fields"]["message"].as_str()?.contains(word).then(|| line["fields"].to_string())
    };
    Ok(text.lines().filter_map(fields).collect())
}

/// Submissions of one graph at most: a snapshot is due after 64 MiB of log, which two or three make.
const SUBMISSIONS_MAX: usize = 5;
/// How long a snapshot may take to be written before the next submission.
const SNAPSHOT: Duration = Duration::from_secs(5);
/// Longest time to hand the graph over: an evaluated closure of 62,315 files, on a busy machine.
const LOADED: Duration = Duration::from_secs(600);
