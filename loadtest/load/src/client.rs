//! The client: hands derivations over, submits, and follows a build, as `kiln build` does.

use std::collections::BTreeSet;
use std::time::Duration;

use anyhow::{Context, bail};
use kiln_link::{Dialer, Identity};
use kiln_route::{Found, Scouts};
use kiln_wire::client::{BuildState, BuildView, DerivationFile, EventKind, FarmView, JobCounts, Request, Response, Submission};
use kiln_wire::limits::DERIVATION_BATCH_BYTES;
use kiln_wire::{BuildId, RequestId, Root, StorePath};

use crate::recipe::Recipes;

/// A connected client.
#[derive(Clone, Debug)]
pub struct Client {
    scouts: Scouts,
}

/// How a build ended.
#[derive(Clone, Debug)]
pub struct Ended {
    /// Its last view.
    pub view: BuildView,
    /// Jobs that were said to be built.
    pub built: usize,
    /// Attempts that were said to have failed and to be followed by another.
    pub retried: usize,
}

impl Client {
    /// Waits until a coordinator leads.
    ///
    /// # Errors
    /// If none does for a minute.
    pub async fn connect(identity: &Identity, addresses: &[String]) -> anyhow::Result<Self> {
        let client = Self { scouts: Scouts::start(Dialer::new(identity)?, addresses.iter().cloned()) };
        client.find().await?;
        Ok(client)
    }

    /// Returns the address of the leader.
    ///
    /// # Errors
    /// If there is none.
    pub async fn leader(&self) -> anyhow::Result<String> {
        Ok(self.find().await?.connection.remote_addr().to_string())
    }

    async fn find(&self) -> anyhow::Result<Found> {
        let mut scouts = self.scouts.clone();
        let found = tokio::time::timeout(LEADERLESS, scouts.leader()).await;
        found.map_err(|_| anyhow::anyhow!("no coordinator leads: {}", self.scouts.troubles()))
    }

    /// Asks what has one answer.
    ///
    /// # Errors
    /// What the link says, or the farm's refusal.
    pub async fn one(&self, request: &Request) -> anyhow::Result<Response> {
        let (mut sender, mut receiver) = self.find().await?.connection.open().await?;
        sender.send(request).await?;
        match receiver.recv::<Response>().await?.context("the farm gave no answer")? {
            Response::Refused(refusal) => bail!("the farm refuses: {}", refusal.message),
            Response::NotLeader(_) => bail!("the leader was deposed"),
            response => Ok(response),
        }
    }

    /// Hands over the files of derivations.
    ///
    /// # Errors
    /// As [`Client::one`].
    pub async fn add(&self, recipes: &Recipes) -> anyhow::Result<()> {
        let (mut batch, mut bytes) = (Vec::new(), 0);
        for (at, recipe) in recipes.all.iter().enumerate() {
            bytes += recipe.bytes.len();
            batch.push(DerivationFile { path: recipe.path.clone(), bytes: recipe.bytes.clone() });
            if bytes >= DERIVATION_BATCH_BYTES || at + 1 == recipes.all.len() {
                self.one(&Request::AddDerivations(std::mem::take(&mut batch))).await.context("hand over derivations")?;
                bytes = 0;
            }
        }
        Ok(())
    }

    /// Submits what nothing else needs; whatever can be built is built, also after a failure.
    ///
    /// # Errors
    /// As [`Client::one`].
    pub async fn submit(&self, recipes: &Recipes, number: u64) -> anyhow::Result<BuildId> {
        let roots = recipes.roots.iter().map(|path| Root { derivation: path.clone(), outputs: BTreeSet::new() }).collect();
        let submission = Submission {
            request: RequestId(number),
            name: "load".to_owned(),
            roots,
            keep_going: true,
            urgency: Default::default(),
            trace: None,
            evaluation: None,
        };
        match self.one(&Request::Submit(submission)).await.context("submit")? {
            Response::Submitted(build) => Ok(build),
            _ => bail!("submit: the farm gave another answer"),
        }
    }

    /// Follows a build to its end.
    ///
    /// # Errors
    /// As [`Client::one`].
    pub async fn follow(&self, build: BuildId) -> anyhow::Result<Ended> {
        let (mut sender, mut receiver) = self.find().await?.connection.open().await?;
        sender.send(&Request::Watch(build)).await?;
        let (mut built, mut retried) = (0, 0);
        loop {
            match receiver.recv::<Response>().await?.context("the farm stopped telling of the build")? {
                Response::Build(view) if view.state != BuildState::Active => return Ok(Ended { view, built, retried }),
                Response::Build(_) => {}
                Response::Event(event) => match event.kind {
                    EventKind::Built { .. } => built += 1,
                    EventKind::Retried { .. } => retried += 1,
                    EventKind::Ready
                    | EventKind::Started { .. }
                    | EventKind::Failed { .. }
                    | EventKind::DependencyFailed { .. }
                    | EventKind::Cancelled => {}
                },
                Response::Refused(refusal) => bail!("the farm refuses: {}", refusal.message),
                _ => bail!("the farm gave another answer"),
            }
        }
    }

    /// Waits until the farm has no jobs: all that was built is published then.
    ///
    /// # Errors
    /// As [`Client::one`].
    pub async fn wait_until_empty(&self) -> anyhow::Result<()> {
        while self.status().await?.counts != JobCounts::default() {
            tokio::time::sleep(PAUSE_SHORT).await;
        }
        Ok(())
    }

    /// Returns how many of some paths have a signed description.
    ///
    /// # Errors
    /// As [`Client::one`].
    pub async fn fetchable(&self, paths: impl Iterator<Item = &StorePath>) -> anyhow::Result<usize> {
        let hash_parts: Vec<String> = paths.map(|path| path.hash_part().to_owned()).collect();
        let mut count = 0;
        for some in hash_parts.chunks(NARINFOS_ASKED) {
            let (mut sender, mut receiver) = self.find().await?.connection.open().await?;
            sender.send(&Request::Narinfos(some.to_vec())).await?;
            while let Some(answer) = receiver.recv::<Response>().await? {
                match answer {
                    Response::Narinfos(found) => count += found.len(),
                    Response::Refused(refusal) => bail!("the farm refuses: {}", refusal.message),
                    _ => bail!("the farm gave another answer"),
                }
            }
        }
        Ok(count)
    }

    /// Returns the jobs of the farm, by state.
    ///
    /// # Errors
    /// As [`Client::one`].
    pub async fn counts(&self) -> anyhow::Result<JobCounts> {
        Ok(self.status().await?.counts)
    }

    /// Waits until so many jobs are built.
    ///
    /// # Errors
    /// As [`Client::one`], or that they are not within `limit`.
    pub async fn wait_until_built(&self, count: u64, limit: Duration) -> anyhow::Result<()> {
        let deadline = tokio::time::Instant::now() + limit;
        loop {
            let built = self.counts().await?.built;
            if built >= count {
                return Ok(());
            }
            anyhow::ensure!(tokio::time::Instant::now() < deadline, "after {limit:?} {built} of {count} jobs are built");
            tokio::time::sleep(PAUSE).await;
        }
    }

    async fn status(&self) -> anyhow::Result<FarmView> {
        match self.one(&Request::Status).await? {
            Response::Status(view) => Ok(view),
            _ => bail!("the farm gave another answer"),
        }
    }

    /// Stops wanting a build.
    ///
    /// # Errors
    /// As [`Client::one`].
    pub async fn cancel(&self, build: BuildId) -> anyhow::Result<()> {
        self.one(&Request::Cancel(build)).await.map(|_| ())
    }

    /// Waits until so many workers are connected.
    ///
    /// # Errors
    /// If they are not in time.
    pub async fn wait_for_workers(&self, count: u64) -> anyhow::Result<()> {
        let deadline = tokio::time::Instant::now() + CONNECTED;
        loop {
            let connected = self.status().await?.workers_connected;
            if connected >= count {
                return Ok(());
            }
            anyhow::ensure!(tokio::time::Instant::now() < deadline, "{connected} of {count} workers are connected");
            tokio::time::sleep(PAUSE).await;
        }
    }
}

/// How long a farm may be without a leader.
const LEADERLESS: Duration = Duration::from_secs(60);
/// How long workers may take to connect.
const CONNECTED: Duration = Duration::from_secs(180);
/// Between two looks.
const PAUSE: Duration = Duration::from_millis(200);
/// Between two looks whether all is published: short beside any run.
const PAUSE_SHORT: Duration = Duration::from_millis(20);
/// Descriptions that are asked for at a time.
const NARINFOS_ASKED: usize = 1000;
