//! The preset `pages`: a farm at work is looked at, by one who opens every page and by two hundred whose pages stay current.

use std::net::SocketAddr;
use std::sync::Arc;
use std::time::Duration;

use kiln_faults::report::Claims;
use kiln_wire::client::JobCounts;

use crate::browsers::{self, Browsers};
use crate::crew::{Crew, Work};
use crate::figures::Cost;
use crate::presets::{RECIPE_BYTES, Setting, Stage};
use crate::recipe::Recipes;
use crate::shape::Shape;
use crate::tally::Tally;

/// A large build is under way. How long pages take and how large they are; what streams of events to two hundred browsers cost, and what they
/// cost the planner; and what it costs if each also asks for its page again whenever something happened.
///
/// # Errors
/// What the farm said.
pub async fn pages(setting: &Setting, claims: &mut Claims) -> anyhow::Result<()> {
    let shape = setting.shape(Shape::wide, 60_000)?;
    let crew = setting.crew(&shape, 1000, 1);
    let recipes = Arc::new(Recipes::write(&shape, "load", RECIPE_BYTES)?);
    claims.tell("work", format!("{}, {} derivations of {} bytes", shape.name, recipes.all.len(), recipes.mean_bytes()));
    let stage = setting.stage(&crew, claims).await?;
    let tally = Arc::new(Tally::new(recipes.clone()));
    stage.hired.set_to(Work::Build { median: Duration::ZERO }, tally.clone());
    stage.client.add(&recipes).await?;
    let build = stage.client.submit(&recipes, 1).await?;
    // At the bottom of a graph there is work for few.
    let begun = u64::try_from(recipes.all.len() / 4)?;
    stage.client.wait_until_built(begun, setting.limit).await?;
    stage.hired.set_to(Work::Build { median: MEDIAN }, tally);
    tokio::time::sleep(SETTLED).await;
    let counts = |counts: JobCounts| {
        format!("{} running, {} ready, {} blocked, {} built", counts.running, counts.ready, counts.blocked, counts.built)
    };
    claims.tell("jobs, as looking begins", counts(stage.client.counts().await?));

    let leader = stage.farm.http_addr(stage.farm.leader(&stage.client).await?);
    look_at_pages(leader, build.0, &recipes, claims).await?;
    look_on(&stage, leader, &crew, claims).await?;
    claims.tell("jobs, as it ends", counts(stage.client.counts().await?));
    for (trouble, count) in stage.hired.troubles() {
        claims.tell("a worker's trouble", format!("{count} times: {trouble}"));
    }
    stage.end().await
}

/// Opens every page some times.
async fn look_at_pages(addr: SocketAddr, build: u64, recipes: &Recipes, claims: &mut Claims) -> anyhow::Result<()> {
    let job = &recipes.all[recipes.all.len() / 2].path;
    let pages = [
        ("overview", "/ui/".to_owned()),
        ("build", format!("/ui/builds/{build}")),
        ("build, searched", format!("/ui/builds/{build}?q=python")),
        ("job", format!("/ui/jobs/{job}")),
        ("fleet", "/ui/fleet".to_owned()),
        ("timeline", "/ui/timeline".to_owned()),
        ("cluster", "/ui/cluster".to_owned()),
    ];
    for (name, path) in pages {
        let mut seen = Vec::new();
        for _ in 0..LOOKS {
            seen.push(browsers::page(addr, &path).await?);
            // Older than what looks at the farm are kept for.
            tokio::time::sleep(BETWEEN_LOOKS).await;
        }
        let longest = seen.iter().map(|page| page.took).max().unwrap_or_default();
        let mut took: Vec<Duration> = seen.iter().map(|page| page.took).collect();
        took.sort_unstable();
        let bytes = seen.iter().map(|page| page.bytes).max().unwrap_or_default();
        let ms = |time: Duration| time.as_secs_f64() * 1000.0;
        let half = took[took.len() / 2];
        let figure = format!("half within {:.1} ms, longest {:.1} ms, {:.0} KiB", ms(half), ms(longest), bytes as f64 / 1024.0);
        let holds = ms(half) < 200.0 && bytes <= 300 << 10;
        claims.check(&format!("page {name}"), figure, "goal: under 200 ms and 300 KiB", holds);
    }
    Ok(())
}

/// Measures stretches with nobody looking and with browsers, in turn: the farm does the same all the time.
async fn look_on(stage: &Stage, addr: SocketAddr, crew: &Crew, claims: &mut Claims) -> anyhow::Result<()> {
    let (mut alone, mut streams, mut pages) = (Spent::default(), Spent::default(), Spent::default());
    let (mut told, mut refreshes, mut refused, mut troubles) = (0, 0, 0, 0);
    for _ in 0..TURNS {
        alone.add(stage).await?;
        for (spent, path) in [(&mut streams, None), (&mut pages, Some("/ui/?part=main"))] {
            let browsers = Browsers::open(addr, BROWSERS, path);
            tokio::time::sleep(OPENED).await;
            let before = browsers.told();
            spent.add(stage).await?;
            let after = browsers.told();
            told += if path.is_none() { after.bytes - before.bytes } else { 0 };
            refreshes += after.refreshes - before.refreshes;
            refused += after.refused;
            troubles += after.troubles;
            drop(browsers);
            tokio::time::sleep(OPENED).await;
        }
    }
    let took = streams.wall.as_secs_f64();
    claims.tell(
        "nobody looks",
        format!("{:.1} % of a core, plans of {:.3} ms, {} workers", alone.cpu_percent(), alone.plan_ms(), crew.workers),
    );
    let each = told as f64 / took / BROWSERS as f64;
    claims.tell("a browser's stream", format!("{each:.0} bytes a second"));
    let more = streams.cpu_percent() - alone.cpu_percent();
    let figure = format!("{more:.1} % of a core ({:.1} in all)", streams.cpu_percent());
    claims.check(&format!("streams of events to {BROWSERS} browsers"), figure, "goal: under 10 % of a core", more < 10.0);
    let ratio = streams.plan_ms() / alone.plan_ms();
    let figure =
        format!("{ratio:.2} ({:.3} and {:.3} ms, {} and {} plans)", streams.plan_ms(), alone.plan_ms(), streams.plans, alone.plans);
    claims.tell("a plan while they listen, to one while nobody does", figure);
    let rate = refreshes as f64 / pages.wall.as_secs_f64();
    let figure = format!(
        "{:.1} % of a core more, {rate:.0} pages a second, {refused} told to come again; plans {:.2} of what they took",
        pages.cpu_percent() - alone.cpu_percent(),
        pages.plan_ms() / alone.plan_ms()
    );
    claims.tell("the same browsers, whose pages stay current", figure);
    claims.check("streams that broke", troubles, "goal: none", troubles == 0);
    Ok(())
}

/// What the leader spent in some stretches.
#[derive(Default)]
struct Spent {
    wall: Duration,
    cpu: Duration,
    plans: u64,
    plan_ms: f64,
}

impl Spent {
    async fn add(&mut self, stage: &Stage) -> anyhow::Result<()> {
        let cost = Cost::begin(&stage.farm, &stage.client).await?;
        tokio::time::sleep(STRETCH).await;
        let cost = cost.end(&stage.farm, &stage.client).await?;
        let (mean_ms, plans) = cost.plan_ms();
        self.wall += cost.wall;
        self.cpu += cost.leader_cpu();
        self.plans += plans as u64;
        self.plan_ms += mean_ms * plans;
        Ok(())
    }

    fn cpu_percent(&self) -> f64 {
        100.0 * self.cpu.as_secs_f64() / self.wall.as_secs_f64()
    }

    fn plan_ms(&self) -> f64 {
        self.plan_ms / (self.plans.max(1)) as f64
    }
}

/// Builds take half a minute in the median: a thousand workers end some twenty jobs a second.
const MEDIAN: Duration = Duration::from_secs(30);
/// By then every worker has such a job, and some have had one.
const SETTLED: Duration = Duration::from_secs(20);
/// How often each page is opened.
const LOOKS: usize = 4;
const BETWEEN_LOOKS: Duration = Duration::from_millis(1200);
const BROWSERS: usize = 200;
/// Stretches of each kind, in turn.
const TURNS: usize = 3;
const STRETCH: Duration = Duration::from_secs(10);
/// By then all browsers listen, or none do.
const OPENED: Duration = Duration::from_secs(2);
