//! Submitting a build, and following it from one leader to the next.

use std::collections::HashSet;
use std::time::Duration;

use kiln_link::Sender;
use kiln_wire::client::{BuildView, Event, Request, Response, Submission};
use kiln_wire::{BuildId, Evaluation, OutOfPatience, Patience, RequestId, Root, Traceparent, Urgency};
use tokio::sync::watch;
use tokio::task::JoinHandle;
use tokio::time::Instant;

use crate::client::{Answers, AskError, Client, Leading, Tries, unexpected};

/// A build that is wanted. The farm has the derivations of its roots and their sources already.
pub struct Wanted {
    /// What people call it.
    pub name: String,
    /// What is wanted.
    pub roots: Vec<Root>,
    /// Whether to build what does not need what failed.
    pub keep_going: bool,
    /// What is said of its turn.
    pub urgency: Urgency,
    /// What is known of the evaluation that the roots come from.
    pub evaluation: Option<Box<Evaluation>>,
}

impl Wanted {
    fn submission(self) -> Submission {
        let Self { name, roots, keep_going, urgency, evaluation } = self;
        Submission { request: draw_request(), name, roots, keep_going, urgency, trace: own_trace(), evaluation }
    }
}

/// Has a build made.
///
/// # Errors
/// What the farm refused, or exit code 3 if it cannot be reached.
pub async fn submit(client: &Client, wanted: Wanted) -> anyhow::Result<BuildId> {
    hand_over(client, Request::Submit(wanted.submission())).await
}

/// Has roots built again, which the farm has the outputs of, and these held against what is made.
///
/// # Errors
/// As [`submit`].
pub async fn check(client: &Client, wanted: Wanted) -> anyhow::Result<BuildId> {
    hand_over(client, Request::Check(wanted.submission())).await
}

async fn hand_over(client: &Client, request: Request) -> anyhow::Result<BuildId> {
    match client.one(&request).await? {
        Response::Submitted(build) => Ok(build),
        _ => Err(unexpected("another kind").into_error()),
    }
}

/// Returns what this command is a part of, if whoever started it traces: `TRACEPARENT`, as the standard for environment variables has it.
fn own_trace() -> Option<Traceparent> {
    let text = std::env::var("TRACEPARENT").ok()?;
    // Set by others for purposes of their own: not worth an error.
    Traceparent::parse(&text).inspect_err(|error| tracing::debug!(%error, "TRACEPARENT")).ok()
}

/// A build that the farm cancels if this is dropped, or if this process or its machine dies.
pub struct Held {
    release: watch::Sender<bool>,
    holding: JoinHandle<anyhow::Result<Option<OutOfPatience>>>,
}

/// Has `roots` built, as long as this process wants it and within its patience. The farm has their derivations and sources already.
///
/// # Errors
/// As of [`submit`].
pub async fn submit_held(
    client: &Client,
    name: String,
    roots: Vec<Root>,
    keep_going: bool,
    patience: Patience,
) -> anyhow::Result<(BuildId, Held)> {
    let submission =
        Submission { request: draw_request(), name, roots, keep_going, urgency: Urgency::default(), trace: own_trace(), evaluation: None };
    let request = Request::SubmitHeld(submission, patience);
    let mut tries = client.tries();
    let (build, stream) = loop {
        match first_hold(&tries.leader().await?, &request).await {
            Ok(held) => break held,
            Err(error) => tries.failed(error).await?,
        }
    };
    tries.progress();
    let (release, released) = watch::channel(false);
    let (client, mut wanted) = (client.clone(), released.clone());
    let holding = tokio::spawn(async move {
        tokio::select! {
            held = hold(tries, build, patience, stream, released) => held,
            () = async { while wanted.changed().await.is_ok() {} } => {
                cancel(&client, build).await;
                Ok(None)
            }
        }
    });
    Ok((build, Held { release, holding }))
}

/// Tells a farm, if it answers soon, that a build is not wanted. It finds out by itself too once it misses whoever held the build.
pub async fn cancel(client: &Client, build: BuildId) {
    let cancelled = tokio::time::timeout(CANCEL_MAX, client.one(&Request::Cancel(build))).await;
    tracing::debug!(%build, ?cancelled, "not wanted any more");
}

async fn first_hold(leader: &Leading, request: &Request) -> Result<(BuildId, (Sender, Answers)), AskError> {
    let (sender, mut answers) = leader.ask(request).await?;
    match answers.next().await? {
        Some(Response::Submitted(build)) => Ok((build, (sender, answers))),
        _ => Err(unexpected("another kind")),
    }
}

/// Holds a build, under one leader after the other, until it is released or the farm is out of patience.
async fn hold(
    mut tries: Tries,
    build: BuildId,
    patience: Patience,
    (mut sender, mut answers): (Sender, Answers),
    mut released: watch::Receiver<bool>,
) -> anyhow::Result<Option<OutOfPatience>> {
    let mut since = Instant::now();
    loop {
        let answer = tokio::select! {
            answer = answers.next() => answer,
            // An error says that nobody can release it any more, and then it is given up elsewhere.
            () = is_released(&mut released) => {
                // A farm that is gone has nothing to let go of.
                let _gone = sender.finish().await;
                return Ok(None);
            }
        };
        let mut lost = match answer {
            Ok(Some(Response::OutOfPatience(out))) => return Ok(Some(out)),
            Ok(Some(_)) => return Err(unexpected("another kind").into_error()),
            Ok(None) => AskError::Passing(anyhow::anyhow!("the farm holds build {build} no longer")),
            Err(error) => error,
        };
        if since.elapsed() >= STANDS_AFTER {
            // However many leaders a long build sees, each that held it is a farm that answers.
            tries.progress();
        }
        (sender, answers) = loop {
            tries.failed(lost).await?;
            match tries.leader().await?.ask(&Request::Hold(build, patience)).await {
                Ok(stream) => break stream,
                Err(error) => lost = error,
            }
        };
        since = Instant::now();
    }
}

async fn is_released(released: &mut watch::Receiver<bool>) {
    if released.wait_for(|is_released| *is_released).await.is_err() {
        std::future::pending().await
    }
}

impl Held {
    /// Returns once the farm does not hold the build any more: with why it gave it up, or with an error if it cannot be reached. Cancel
    /// safe.
    pub async fn over(&mut self) -> anyhow::Result<OutOfPatience> {
        match (&mut self.holding).await? {
            Ok(Some(out)) => Ok(out),
            Ok(None) => Err(anyhow::anyhow!("the build was released")),
            Err(error) => Err(error),
        }
    }

    /// Leaves the build alone: it has ended.
    pub async fn release(mut self) {
        // Fails if the farm has given it up.
        if self.release.send(true).is_ok() {
            let _over = (&mut self.holding).await;
        }
    }
}

/// Returns what people call a build that nobody named.
pub fn default_name(roots: &[Root]) -> String {
    match roots {
        [root] => root.derivation.name().to_owned(),
        [first, ..] => format!("{} and {} more", first.derivation.name(), roots.len() - 1),
        [] => "nothing".to_owned(),
    }
}

/// A build that is followed from one leader to the next. Each tells its events from the first that it knows of; none is passed on twice.
pub struct Watching {
    build: BuildId,
    tries: Tries,
    answers: Option<(Sender, Answers)>,
    /// Of each event that was passed on, a hash.
    told: HashSet<u64>,
}

impl Watching {
    /// Starts before the first event.
    pub fn new(client: &Client, build: BuildId) -> Self {
        Self { build, tries: client.tries(), answers: None, told: HashSet::new() }
    }

    /// Returns the next view; none after the last. Cancel safe.
    pub async fn next(&mut self, mut event: impl FnMut(Event)) -> anyhow::Result<Option<BuildView>> {
        loop {
            let told = &mut self.told;
            let next = match &mut self.answers {
                Some((_, answers)) => {
                    answers
                        .next_view(|fresh| {
                            if told.insert(hash(&fresh)) {
                                event(fresh)
                            }
                        })
                        .await
                }
                None => match self.tries.leader().await?.ask(&Request::Watch(self.build)).await {
                    Ok(stream) => {
                        self.answers = Some(stream);
                        continue;
                    }
                    Err(error) => Err(error),
                },
            };
            match next {
                Ok(view) => {
                    self.tries.progress();
                    return Ok(view);
                }
                Err(error) => {
                    self.answers = None;
                    self.tries.failed(error).await?;
                }
            }
        }
    }
}

fn hash(event: &Event) -> u64 {
    use std::hash::{DefaultHasher, Hash, Hasher};
    let mut hasher = DefaultHasher::new();
    event.hash(&mut hasher);
    hasher.finish()
}

/// Longest wait for a farm to hear that a build is not wanted.
const CANCEL_MAX: Duration = Duration::from_secs(2);
/// How long a leader must have held a build to count as one that does: the first answer of one that does not comes sooner.
const STANDS_AFTER: Duration = Duration::from_secs(5);

/// Draws a number that no other submission has: time and process are enough to tell clients of one farm apart.
fn draw_request() -> RequestId {
    use std::hash::{BuildHasher, Hasher};
    // The standard library's hasher is seeded from the system's randomness.
    let mut hasher = std::hash::RandomState::new().build_hasher();
    hasher.write_u32(std::process::id());
    RequestId(hasher.finish())
}
