//! Submitting a build, and following it from one leader to the next.

use std::collections::HashSet;

use kiln_link::Sender;
use kiln_wire::client::{BuildView, Event, Request, Response, Submission};
use kiln_wire::{BuildId, RequestId, Root};

use crate::client::{Answers, Client, Tries, unexpected};

/// Has `roots` built. The farm has their derivations and sources already.
///
/// # Errors
/// What the farm refused, or exit code 3 if it cannot be reached.
pub async fn submit(client: &Client, name: String, roots: Vec<Root>, keep_going: bool) -> anyhow::Result<BuildId> {
    hand_over(client, Request::Submit(Submission { request: draw_request(), name, roots, keep_going })).await
}

/// Has `roots` built again, which the farm has the outputs of, and these held against what is made.
///
/// # Errors
/// As [`submit`].
pub async fn check(client: &Client, name: String, roots: Vec<Root>, keep_going: bool) -> anyhow::Result<BuildId> {
    hand_over(client, Request::Check(Submission { request: draw_request(), name, roots, keep_going })).await
}

async fn hand_over(client: &Client, request: Request) -> anyhow::Result<BuildId> {
    match client.one(&request).await? {
        Response::Submitted(build) => Ok(build),
        _ => Err(unexpected("another kind").into_error()),
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

/// Draws a number that no other submission has: time and process are enough to tell clients of one farm apart.
fn draw_request() -> RequestId {
    use std::hash::{BuildHasher, Hasher};
    // The standard library's hasher is seeded from the system's randomness.
    let mut hasher = std::hash::RandomState::new().build_hasher();
    hasher.write_u32(std::process::id());
    RequestId(hasher.finish())
}
