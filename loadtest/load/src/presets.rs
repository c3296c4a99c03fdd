//! The presets: each sets a farm up, has it do something, and prints a line per claim, `claim: figure (goal)`.

use std::path::PathBuf;
use std::time::Duration;

use anyhow::Context;
use kiln_faults::report::Claims;

use crate::client::Client;
use crate::crew::{Crew, Hired, Work};
use crate::farm::{Farm, Programs};
use crate::figures::{Cost, Figures, secs};
use crate::recipe::Recipes;
use crate::run::{self, Submitted};
use crate::shape::Shape;

/// What all presets can be told.
#[derive(Clone, Debug)]
pub struct Setting {
    /// The farm's programs.
    pub programs: Programs,
    /// How many coordinators.
    pub coordinators: u8,
    /// How many workers; each preset has a number of its own.
    pub workers: Option<u32>,
    /// Slots of each worker.
    pub slots: Option<u32>,
    /// How many derivations.
    pub jobs: Option<usize>,
    /// A recorded graph in the place of a plain shape.
    pub graph: Option<PathBuf>,
    /// How many jobs become ready in a second, for `latency`.
    pub rate: usize,
    /// The longest time for one run.
    pub limit: Duration,
    /// Where the farm's directory is made: a disk, since durable writes are part of what is measured.
    pub parent: PathBuf,
}

/// A farm with its crew, in a directory that goes with it.
pub(crate) struct Stage {
    pub(crate) farm: Farm,
    pub(crate) client: Client,
    pub(crate) hired: Hired,
    dir: tempfile::TempDir,
}

impl Setting {
    pub(crate) async fn stage(&self, crew: &Crew, claims: &Claims) -> anyhow::Result<Stage> {
        let made = tempfile::Builder::new().prefix("kiln-load.").tempdir_in(&self.parent);
        let dir = made.with_context(|| format!("make a directory for the farm in `{}`", self.parent.display()))?;
        let farm = Farm::start(Some(&self.programs), self.coordinators, dir.path()).await?;
        let client = farm.client("client").await?;
        let hired = crew.hire(&farm)?;
        client.wait_for_workers(u64::from(crew.workers)).await?;
        let leader = farm.leader(&client).await?;
        let process = farm.process(leader).map_or(String::new(), |pid| format!("; the leader is process {pid}"));
        claims.tell("farm", format!("{} coordinators, {} workers of {} slots{process}", self.coordinators, crew.workers, crew.slots));
        Ok(Stage { farm, client, hired, dir })
    }

    pub(crate) fn crew(&self, shape: &Shape, workers: u32, slots: u32) -> Crew {
        let (systems, features) = shape.needs();
        Crew { workers: self.workers.unwrap_or(workers), slots: self.slots.unwrap_or(slots), systems, features }
    }

    pub(crate) fn shape(&self, plain: impl FnOnce(usize) -> Shape, jobs: usize) -> anyhow::Result<Shape> {
        match &self.graph {
            Some(file) => Shape::read(file, self.jobs),
            None => Ok(plain(self.jobs.unwrap_or(jobs))),
        }
    }

    async fn perform(&self, shape: &Shape, crew: &Crew, work: Work, claims: &Claims) -> anyhow::Result<Figures> {
        let recipes = Recipes::write(shape, "load", RECIPE_BYTES)?;
        claims.tell("work", format!("{}, {} derivations of {} bytes", shape.name, recipes.all.len(), recipes.mean_bytes()));
        let stage = self.stage(crew, claims).await?;
        let figures = run::run(&stage.farm, &stage.client, &stage.hired, recipes, work, 1, self.limit).await?;
        figures.tell(claims);
        stage.end().await?;
        Ok(figures)
    }
}

impl Stage {
    pub(crate) async fn end(self) -> anyhow::Result<()> {
        drop(self.hired);
        self.farm.stop().await;
        self.dir.close().context("remove the farm's directory")
    }
}

/// A large submission to a farm without workers: how long it takes, and what it costs in memory.
///
/// # Errors
/// What the farm said.
pub async fn submit(setting: &Setting, claims: &mut Claims) -> anyhow::Result<()> {
    let shape = setting.shape(Shape::wide, 100_000)?;
    let recipes = Recipes::write(&shape, "load", RECIPE_BYTES)?;
    claims.tell("work", format!("{}, {} derivations of {} bytes", shape.name, recipes.all.len(), recipes.mean_bytes()));
    let stage = setting.stage(&Crew { workers: 0, slots: 1, systems: [].into(), features: [].into() }, claims).await?;
    let jobs = recipes.all.len() as f64;
    let all = Cost::begin(&stage.farm, &stage.client).await?;
    let (Submitted { adding, submitting }, _) = run::submit(&stage.farm, &stage.client, &recipes, 1).await?;
    let all = all.end(&stage.farm, &stage.client).await?;
    let each = |time: Duration| format!("{:.1} µs", time.as_secs_f64() * 1e6 / jobs);
    for (what, cost) in [("handing over the files", &adding), ("submission", &submitting)] {
        let follower = cost.follower_cpu().map_or(String::new(), |cpu| format!(", {} of the busiest follower", each(cpu)));
        claims.tell(what, format!("{:.2} s; a derivation {} of the leader{follower}", secs(cost.wall), each(cost.leader_cpu())));
    }
    submitting.tell_leader(claims);
    let is_whole = recipes.all.len() == 100_000;
    let of_all = |wall: Duration| secs(wall) * 100_000.0 / jobs;
    let how = if is_whole { String::new() } else { format!(", scaled from {}", recipes.all.len()) };
    let both = of_all(adding.wall + submitting.wall);
    claims.tell("files handed over and submitted, of 100,000 derivations", format!("{both:.2} s{how}"));
    let took = of_all(submitting.wall);
    claims.check(
        "time of a submission of 100,000 derivations whose files are there",
        format!("{took:.2} s{how}"),
        "goal: under 5 s",
        took < 5.0,
    );
    all.tell_resident(claims);
    let per_job = |grew: u64| grew as f64 / jobs;
    let state = all.follower_grew_bytes().map(per_job);
    if let Some(state) = state {
        claims.check("resident memory a job, of a follower", format!("{state:.0} B"), "goal: at most 2048 B", state <= 2048.0);
    }
    let leader = per_job(all.leader_grew_bytes());
    claims.check("resident memory a job, of the leader", format!("{leader:.0} B"), "goal: at most 2048 B", leader <= 2048.0);
    stage.end().await
}

/// Independent jobs that take no time: first such that end without outputs, so that nothing but scheduling costs anything, then such that
/// upload and publish.
///
/// # Errors
/// What the farm said.
pub async fn throughput(setting: &Setting, claims: &mut Claims) -> anyhow::Result<()> {
    let shape = setting.shape(Shape::wide, 20_000)?;
    let crew = setting.crew(&shape, 100, 64);
    claims.tell("jobs without outputs", "each ends as a failed build");
    let refused = setting.perform(&shape, &crew, Work::Refuse, claims).await?;
    let rate = refused.assignments_per_second();
    claims.check("assignments a second, jobs without outputs", format!("{rate:.0}"), "goal: at least 25000", rate >= 25_000.0);
    let each = refused.leader_us_per_job();
    claims.check("leader's processor time a job, jobs without outputs", format!("{each:.1} µs"), "goal: at most 30 µs", each <= 30.0);
    claims.tell("jobs with outputs", "each is uploaded, verified, kept, signed and published");
    let built = setting.perform(&shape, &crew, Work::Build { median: Duration::ZERO }, claims).await?;
    check_built(&built, claims);
    claims.tell("what outputs add to a job", format!("{:.1} µs of the leader", built.leader_us_per_job() - each));
    Ok(())
}

/// Some jobs become ready in each second, a thousand if nothing else is said: how long until workers have them.
///
/// # Errors
/// What the farm said.
pub async fn latency(setting: &Setting, claims: &mut Claims) -> anyhow::Result<()> {
    // As many chains, of jobs that take a second each.
    let chains = setting.rate.max(1);
    let length = (setting.jobs.unwrap_or(20 * chains) / chains).max(2);
    let shape = Shape::chains(chains, length);
    let crew = setting.crew(&shape, 100, 16);
    let figures = setting.perform(&shape, &crew, Work::Paced(Duration::from_secs(1)), claims).await?;
    check_built(&figures, claims);
    let rate = figures.ready_per_second.unwrap_or_default();
    claims.tell("rate of jobs that become ready by the end of others", format!("{rate:.0} a second, wanted {chains}"));
    let p99 = figures.hops.map_or(f64::INFINITY, |hops| hops.p99.as_secs_f64() * 1000.0);
    let figure = format!("{p99:.2} ms at {rate:.0} jobs a second");
    claims.check("from ready to received by the worker, p99, both commits in it", figure, "goal: under 10 ms at 1000", p99 < 10.0);
    Ok(())
}

/// A farm that has nothing to do.
///
/// # Errors
/// What the farm said.
pub async fn idle(setting: &Setting, claims: &mut Claims) -> anyhow::Result<()> {
    let crew = setting.crew(&Shape::wide(1), 1000, 8);
    let stage = setting.stage(&crew, claims).await?;
    // What connecting left to do is over then.
    tokio::time::sleep(SETTLED).await;
    let cost = Cost::begin(&stage.farm, &stage.client).await?;
    tokio::time::sleep(WATCHED).await;
    let cost = cost.end(&stage.farm, &stage.client).await?;
    let share = |cpu: Duration| 100.0 * cpu.as_secs_f64() / cost.wall.as_secs_f64();
    if let Some(follower) = cost.follower_cpu() {
        claims.tell("an idle follower", format!("{:.2} % of a core", share(follower)));
    }
    let leader = share(cost.leader_cpu());
    let claim = format!("an idle leader with {} workers", crew.workers);
    claims.check(&claim, format!("{leader:.2} % of a core"), "goal: under 0.5 %", leader < 0.5);
    stage.end().await
}

/// Jobs that take no time, each of which needs the one before it.
///
/// # Errors
/// What the farm said.
pub async fn chain(setting: &Setting, claims: &mut Claims) -> anyhow::Result<()> {
    let shape = Shape::chains(1, setting.jobs.unwrap_or(1000));
    let crew = setting.crew(&shape, 4, 4);
    let figures = setting.perform(&shape, &crew, Work::Build { median: Duration::ZERO }, claims).await?;
    check_built(&figures, claims);
    let per_job = |time: Duration| secs(time) * 1000.0 / figures.jobs as f64;
    let (hop, published, commit) = (per_job(figures.reported), per_job(figures.published), figures.doing.commit_ms());
    claims.check("time per hop", format!("{hop:.2} ms, beside {commit:.2} ms for a commit"), "goal: under 10 ms", hop < 10.0);
    claims.tell("the same, to the last publication", format!("{published:.2} ms"));
    Ok(())
}

/// A recorded graph whose jobs take drawn times.
///
/// # Errors
/// What the farm said, or that no graph was named.
pub async fn replay(setting: &Setting, median: Duration, claims: &mut Claims) -> anyhow::Result<()> {
    let file = setting.graph.as_deref().context("name a graph with --graph FILE")?;
    let shape = Shape::read(file, setting.jobs)?;
    let crew = setting.crew(&shape, 100, 4);
    let figures = setting.perform(&shape, &crew, Work::Build { median }, claims).await?;
    check_built(&figures, claims);
    Ok(())
}

/// Everything must have been built and published, and nothing twice.
fn check_built(figures: &Figures, claims: &mut Claims) {
    let built = figures.ended.view.counts.built;
    let holds = u64::try_from(figures.jobs).is_ok_and(|jobs| jobs == built);
    claims.check("built", format!("{built} of {}", figures.jobs), "goal: all", holds);
    let outputs = figures.ended.view.outputs.values().map(|outputs| outputs.len()).sum::<usize>();
    let fetchable = figures.fetchable;
    claims.check("outputs of roots that are published", format!("{fetchable} of {outputs}"), "goal: all", fetchable == outputs);
    let again = figures.receipts.iter().filter(|count| **count > 1).count();
    claims.check("jobs that workers received again", again, "goal: none", again == 0);
}

/// The mean size of the 62,315 recorded derivations of nixpkgs.
pub(crate) const RECIPE_BYTES: usize = 3393;
/// How long a farm settles before it counts as idle.
const SETTLED: Duration = Duration::from_secs(10);
/// How long it is watched then: long beside the ticks in which processor time is counted.
const WATCHED: Duration = Duration::from_secs(30);
