//! Asking a leader, and asking the next one when it is gone.
//!
//! What is asked here may be asked twice: submissions carry a number, uploads are known by their content, and the rest only reads.

use std::time::Duration;

use kiln_link::{LinkError, Receiver, Sender};
use kiln_route::{Found, Pause, Scouts};
use kiln_wire::client::{BuildView, Event, Refusal, RefusalKind, Request, Response};
use tokio::time::Instant;

use super::Patience;
use crate::words::{bad_input, unreachable_farm};

/// The first pause before another try: a leader that was deposed a moment ago is succeeded in the next.
const PAUSE_MIN: Duration = Duration::from_millis(20);
/// The longest pause.
const PAUSE_MAX: Duration = Duration::from_secs(1);

/// What a failed try counts at most.
const TRY_COUNTED_MAX: Duration = Duration::from_secs(10);

/// The tries of one request, or of several that belong together.
#[derive(Debug)]
pub struct Tries {
    scouts: Scouts,
    patience: Patience,
    pause: Pause,
    spent: Spent,
    /// When the leader of the present try was found.
    asked_at: Option<Instant>,
}

/// What went by since anything went well. A try that took long counts as a short one: a large submission is work of minutes for a
/// leader, and that it has to be done anew by the next one says little of whether the farm answers.
#[derive(Clone, Copy, Debug, Default)]
struct Spent {
    failing: Option<Duration>,
}

/// A leader to ask.
#[derive(Clone, Debug)]
pub struct Leading {
    found: Found,
    scouts: Scouts,
}

/// A request that failed.
#[derive(Debug)]
pub enum AskError {
    /// Another try, perhaps with another leader, may succeed.
    Passing(anyhow::Error),
    /// It fails whoever is asked.
    Final(anyhow::Error),
}

/// The answers to one request.
pub struct Answers {
    receiver: Receiver,
    leading: Leading,
}

impl Tries {
    pub(super) fn new(scouts: Scouts, patience: Patience) -> Self {
        Self { scouts, patience, pause: Pause::new(PAUSE_MIN, PAUSE_MAX), spent: Spent::default(), asked_at: None }
    }

    /// Waits for a leader.
    ///
    /// # Errors
    /// Exit code 3 if there has been none for too long.
    pub async fn leader(&mut self) -> anyhow::Result<Leading> {
        let begin = Instant::now();
        let left = self.spent.left(self.patience.leaderless_max());
        let found = match self.patience {
            Patience::WhileAnyAnswers => self.scouts.leader_if_any(left).await.map_err(|lost| lost.troubles),
            Patience::Long | Patience::Short => match tokio::time::timeout(left, self.scouts.leader()).await {
                Ok(found) => Ok(found),
                Err(_) => Err(self.scouts.troubles()),
            },
        };
        let found = found.map_err(|troubles| unreachable_farm(format!("the farm has no leader that answers: {troubles}")))?;
        self.spent.waited(begin.elapsed());
        self.asked_at = Some(Instant::now());
        Ok(Leading { found, scouts: self.scouts.clone() })
    }

    /// Takes a failure, and waits before the next try.
    ///
    /// # Errors
    /// The failure itself, if another try cannot help or nothing has gone well for too long.
    pub async fn failed(&mut self, error: AskError) -> anyhow::Result<()> {
        let error = match error {
            AskError::Passing(error) => error,
            AskError::Final(error) => return Err(error),
        };
        self.spent.failed(self.asked_at.take().map_or(Duration::ZERO, |asked| asked.elapsed()));
        if self.spent.left(self.patience.leaderless_max()).is_zero() {
            return Err(error);
        }
        tracing::debug!(%error, "the farm is asked again");
        let begin = Instant::now();
        self.pause.wait().await;
        self.spent.waited(begin.elapsed());
        Ok(())
    }

    /// Notes that something went well: patience and pauses start again.
    pub fn progress(&mut self) {
        self.spent = Spent::default();
        self.pause.reset();
    }
}

impl Spent {
    /// A try failed that took this long. What the first one took is not held against the farm.
    fn failed(&mut self, took: Duration) {
        self.failing = Some(self.failing.map_or(Duration::ZERO, |failing| failing + took.min(TRY_COUNTED_MAX)));
    }

    /// This long there was no leader, or a pause.
    fn waited(&mut self, took: Duration) {
        self.failing = self.failing.map(|failing| failing + took);
    }

    /// Returns how much longer anything may take to go well.
    fn left(&self, leaderless_max: Duration) -> Duration {
        leaderless_max.saturating_sub(self.failing.unwrap_or_default())
    }
}

impl Leading {
    /// Asks, and returns the stream of the answer.
    ///
    /// # Errors
    /// [`AskError::Passing`] if the leader is gone.
    pub async fn ask(&self, request: &Request) -> Result<(Sender, Answers), AskError> {
        let (mut sender, receiver) = self.found.connection.open().await.map_err(lost)?;
        sender.send(request).await.map_err(lost)?;
        Ok((sender, Answers { receiver, leading: self.clone() }))
    }

    /// Asks what has one answer.
    ///
    /// # Errors
    /// [`AskError`].
    pub async fn one(&self, request: &Request) -> Result<Response, AskError> {
        let (_sender, mut answers) = self.ask(request).await?;
        answers.next().await?.ok_or_else(|| unexpected("nothing"))
    }

    /// Asks what has any number of answers, and collects what `take` finds in them.
    ///
    /// # Errors
    /// [`AskError`].
    pub async fn all<T>(&self, request: &Request, take: impl Fn(Response) -> Option<Vec<T>>) -> Result<Vec<T>, AskError> {
        let (_sender, mut answers) = self.ask(request).await?;
        let mut found = Vec::new();
        while let Some(answer) = answers.next().await? {
            found.extend(take(answer).ok_or_else(|| unexpected("another kind"))?);
        }
        Ok(found)
    }
}

impl Answers {
    /// Returns the next answer; none after the last. A refusal is an error, and so is another leader: this one's answers may never come.
    /// Cancel safe.
    ///
    /// # Errors
    /// [`AskError`].
    pub async fn next(&mut self) -> Result<Option<Response>, AskError> {
        let leader = self.leading.found.leader;
        let answer = tokio::select! {
            answer = self.receiver.recv::<Response>() => answer.map_err(lost)?,
            () = self.leading.scouts.superseded(leader) => return Err(deposed()),
        };
        match answer {
            Some(Response::Refused(refusal)) => Err(error_of(refusal)),
            Some(Response::NotLeader(_)) => Err(deposed()),
            answer => Ok(answer),
        }
    }

    /// Returns the next view of a build, passing events to `event`. Cancel safe.
    ///
    /// # Errors
    /// [`AskError`].
    pub async fn next_view(&mut self, mut event: impl FnMut(Event)) -> Result<Option<BuildView>, AskError> {
        loop {
            match self.next().await? {
                Some(Response::Build(view)) => return Ok(Some(view)),
                Some(Response::Event(told)) => event(told),
                Some(_) => return Err(unexpected("another kind")),
                None => return Ok(None),
            }
        }
    }

    /// Returns the stream itself, for a blob that follows.
    pub fn receiver(&mut self) -> &mut Receiver {
        &mut self.receiver
    }
}

impl From<anyhow::Error> for AskError {
    /// What fails on this side fails again.
    fn from(error: anyhow::Error) -> Self {
        Self::Final(error)
    }
}

impl From<std::io::Error> for AskError {
    fn from(error: std::io::Error) -> Self {
        Self::Final(error.into())
    }
}

impl AskError {
    /// Returns the error for people.
    pub fn into_error(self) -> anyhow::Error {
        match self {
            Self::Passing(error) | Self::Final(error) => error,
        }
    }
}

/// Turns what became of a stream into an error.
pub fn lost(error: LinkError) -> AskError {
    let is_passing = !matches!(error, LinkError::Blob(_) | LinkError::Frame(_));
    let error = unreachable_farm(format!("ask the farm: {:#}", anyhow::Error::from(error)));
    if is_passing { AskError::Passing(error) } else { AskError::Final(error) }
}

fn deposed() -> AskError {
    AskError::Passing(unreachable_farm("ask the farm: the coordinator that was asked does not lead"))
}

fn error_of(refusal: Refusal) -> AskError {
    match refusal.kind {
        RefusalKind::Invalid | RefusalKind::Missing | RefusalKind::NotFound => AskError::Final(bad_input(refusal.message)),
        RefusalKind::Forbidden | RefusalKind::StaleLease => AskError::Final(anyhow::anyhow!(refusal.message)),
        RefusalKind::Unavailable => AskError::Passing(unreachable_farm(refusal.message)),
    }
}

/// An answer that this version does not understand.
pub fn unexpected(what: &str) -> AskError {
    let message = format!("the farm answered {what} where this version of kiln expects something else; use the farm's version");
    AskError::Final(anyhow::Error::msg(message))
}

#[cfg(test)]
mod tests {
    use super::super::LEADERLESS_MAX;
    use super::*;

    #[test]
    fn a_client_gives_up_for_want_of_answers_and_not_for_long_tries() {
        let seconds = Duration::from_secs;
        let mut spent = Spent::default();
        spent.waited(seconds(50));
        spent.failed(seconds(600));
        assert_eq!(spent.left(LEADERLESS_MAX), LEADERLESS_MAX, "before the first failure nothing counts");
        spent.waited(seconds(1));
        spent.failed(seconds(600));
        assert_eq!(spent.left(LEADERLESS_MAX), LEADERLESS_MAX - seconds(11));
        spent.failed(seconds(2));
        assert_eq!(spent.left(LEADERLESS_MAX), LEADERLESS_MAX - seconds(13));
        spent.waited(seconds(47));
        assert!(spent.left(LEADERLESS_MAX).is_zero());
    }
}
