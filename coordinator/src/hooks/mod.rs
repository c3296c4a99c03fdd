//! Webhooks: people, and their programs, are told what happens.
//!
//! Goals: what [`kiln_core::Outbox`] holds reaches each receiver at least once, in order, signed; a receiver that is away costs a try now and
//! then. Non-goals: telling it fast, or exactly once; a receiver drops what it had by the message's id. Nothing of the farm waits for any of
//! this. The leader sends ([`run`]); that nobody leads is told by whoever misses the leader ([`absent::run`]). Source: ADR 0052.

mod absent;
mod config;
mod message;
mod previous;
mod send;
mod sign;

use std::panic::AssertUnwindSafe;
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use futures::FutureExt;
use kiln_core::{ANNOUNCING, BuildRecord, Command, Courier, Fate, Notice, Outbox, Sending, Task, What};
use kiln_wire::limits::RECEIVERS_MAX;
use kiln_wire::{BuildId, Leader, ReceiverView, StoreDir};
use reqwest::Client;
use tokio::sync::Notify;
use tokio::task::JoinSet;

pub(crate) use self::absent::run as run_without_leader;
use self::config::{Kind, Receiver};
pub use self::config::{Webhook, WebhookError};
use self::message::{Message, Sender};
use self::previous::Known;
use crate::driver::{Chain, propose_patiently};
use crate::leading;
use crate::parts::Parts;

/// What the tasks that tell receivers share.
pub(crate) struct Hooks {
    receivers: Vec<Receiver>,
    /// None if nobody is to be told.
    client: Option<Client>,
    sender: Sender,
    /// Something may be there to be told.
    woken: Notify,
    known: Known,
    /// How the receivers do, while this coordinator leads.
    standing: Mutex<Vec<ReceiverView>>,
}

impl Hooks {
    /// Reads the secrets of receivers.
    ///
    /// # Errors
    /// [`WebhookError`] names the receiver and its file.
    pub(crate) fn open(webhooks: &[Webhook], farm: &str, store_dir: StoreDir, at: Option<&str>) -> Result<Self, WebhookError> {
        let receivers = webhooks.iter().map(Webhook::open).collect::<Result<Vec<_>, _>>()?;
        let client = match receivers.is_empty() {
            true => None,
            false => Some(send::client().map_err(WebhookError::Client)?),
        };
        let sender = Sender { farm: farm.to_owned(), store_dir, dashboard: at.map(|at| format!("http://{at}")) };
        Ok(Self { receivers, client, sender, woken: Notify::new(), known: Default::default(), standing: Mutex::default() })
    }

    /// Says that something may be there to be told.
    pub(crate) fn wake(&self) {
        self.woken.notify_one();
    }

    /// Returns how the receivers do; nothing at a coordinator that does not lead.
    pub(crate) fn standing(&self) -> Vec<ReceiverView> {
        self.standing.lock().unwrap_or_else(PoisonError::into_inner).clone()
    }

    fn names(&self) -> Vec<String> {
        self.receivers.iter().map(|receiver| receiver.name.clone()).collect()
    }

    fn receiver(&self, name: &str) -> Option<&Receiver> {
        self.receivers.iter().find(|receiver| receiver.name == name)
    }

    fn wants(&self, name: &str, notice: &Notice) -> bool {
        let kind = match &notice.what {
            What::Finished(_) => Kind::Finished,
            What::Failing(_) => Kind::NewlyFailing,
            What::Quarantined { .. } => Kind::Quarantined,
        };
        self.receiver(name).is_some_and(|receiver| receiver.events.contains(&kind))
    }

    fn note(&self, standing: Vec<ReceiverView>) {
        *self.standing.lock().unwrap_or_else(PoisonError::into_inner) = standing;
    }
}

/// Tells receivers whenever this coordinator leads.
pub(crate) async fn run(parts: Arc<Parts>) {
    let mut leadership = parts.consensus.leadership();
    loop {
        let Ok(led) = leadership.wait_for(|known| known.is_self).await.map(|known| known.leader) else { return };
        let _ended = leading::while_under(parts.consensus.leadership(), led, lead(&parts, led)).await;
        parts.hooks.note(Vec::new());
    }
}

/// What became of something that was begun.
enum Done {
    Sent(Sending, Fate),
    Noted { receiver: String, upto: u64, is_taken: bool },
    Announced,
}

/// Tells receivers until it is dropped, whenever this coordinator leads as `led` says: one that the others have cut off begins nothing.
async fn lead(parts: &Arc<Parts>, led: Leader) {
    let hooks = &parts.hooks;
    let mut courier = Courier::default();
    let mut begun: JoinSet<Done> = JoinSet::new();
    let mut announcing = false;
    loop {
        let leads = leading::own(parts) == Some(led);
        let is_due = parts.farm(|farm| !farm.outbox().is_for(&hooks.names()));
        let may = parts.consensus.version() >= ANNOUNCING;
        if leads && is_due && may && !announcing {
            announcing = true;
            begun.spawn(announce(parts.clone()));
        }
        let now = parts.clock.now();
        // Until they are announced it is not known who is told of what.
        let (tasks, due) = match leads && !is_due {
            true => parts.farm(|farm| courier.tasks(farm.outbox(), |name, notice| hooks.wants(name, notice), now)),
            false => (Vec::new(), None),
        };
        for task in tasks {
            begin(parts, &mut begun, task);
        }
        hooks.note(views(parts, &courier));
        let idle = if !leads || is_due && !may { SOON } else { IDLE };
        let pause = due.map_or(idle, |due| Duration::from_millis(due.since_ms(parts.clock.now()).max(1)).min(idle));
        tokio::select! {
            Some(done) = begun.join_next() => match done {
                Ok(Done::Sent(sending, fate)) => settle(parts, &mut courier, &sending, fate),
                Ok(Done::Noted { receiver, upto, is_taken }) => courier.noted(&receiver, upto, is_taken, parts.clock.now(), chance()),
                Ok(Done::Announced) => announcing = false,
                // Panics are caught where they can come from, and nothing here is aborted.
                Err(error) => tracing::error!(%error, "tell a receiver of webhooks"),
            },
            () = hooks.woken.notified() => {}
            () = tokio::time::sleep(pause) => {}
        }
    }
}

fn begin(parts: &Arc<Parts>, begun: &mut JoinSet<Done>, task: Task) {
    match task {
        Task::Send(sending) => {
            let parts = parts.clone();
            begun.spawn(async move {
                let fate = caught(deliver(&parts, &sending)).await.unwrap_or_else(Fate::Failed);
                Done::Sent(sending, fate)
            });
        }
        Task::Told { receiver, upto } => {
            let parts = parts.clone();
            begun.spawn(async move {
                let now = parts.clock.now();
                let noted = propose_patiently(parts, Command::Told { receiver: receiver.clone(), upto, now }).await;
                let noted = noted.inspect_err(|error| tracing::warn!(receiver, error = %Chain(error), "note what was told"));
                Done::Noted { receiver, upto, is_taken: noted.is_ok() }
            });
        }
        Task::Lost { receiver, count } => {
            tracing::warn!(receiver, count, "too many messages waited for a receiver of webhooks: it will not get the oldest");
            parts.meter.hooks.lost(count);
        }
    }
}

async fn announce(parts: Arc<Parts>) -> Done {
    let (receivers, now) = (parts.hooks.names(), parts.clock.now());
    let dropped = parts.farm(|farm| dropped(farm.outbox(), &receivers));
    match propose_patiently(parts.clone(), Command::Announce { receivers, now }).await {
        Ok(_) => {
            for (receiver, count) in dropped {
                tracing::warn!(receiver, count, "it is not in this leader's configuration any longer: it will not get what waited for it");
                parts.meter.hooks.lost(count);
            }
        }
        Err(error) => {
            tracing::warn!(error = %Chain(&error), "say who is told by webhook; tried again in {IDLE:?}");
            tokio::time::sleep(IDLE).await;
        }
    }
    Done::Announced
}

/// Returns the receivers that an announcement leaves out, each with how many notices waited for it.
fn dropped(outbox: &Outbox, receivers: &[String]) -> Vec<(String, u64)> {
    let is_left_out = |name: &&str| !receivers.iter().any(|receiver| receiver == name);
    let waiting = |name: &str| {
        let told = outbox.told_upto(name).unwrap_or_default();
        u64::try_from(outbox.after(told).count()).unwrap_or(u64::MAX).saturating_add(outbox.lost_after(told))
    };
    outbox.receivers().filter(is_left_out).map(|name| (name.to_owned(), waiting(name))).collect()
}

/// Works, and returns a panic as an error: a bug of ours in one message must not hold up the others.
async fn caught<T>(work: impl Future<Output = T>) -> Result<T, String> {
    let done = AssertUnwindSafe(work).catch_unwind().await;
    done.map_err(|_| "a bug of Kiln: the task that tells it panicked; the log says where".to_owned())
}

fn settle(parts: &Parts, courier: &mut Courier, sending: &Sending, fate: Fate) {
    let meter = &parts.meter.hooks;
    match &fate {
        Fate::Taken => meter.delivered(),
        Fate::Void => {}
        Fate::Failed(error) => {
            tracing::warn!(receiver = sending.receiver, number = sending.number, error, "a webhook was not taken");
            meter.failed();
        }
    }
    if let Some(failing) = courier.settle(sending, fate, parts.clock.now(), chance()) {
        let (receiver, number) = (&sending.receiver, sending.number);
        tracing::error!(receiver, number, failing.tries, failing.error, "a webhook is given up");
        meter.given_up();
    }
}

/// Makes a message and posts it.
async fn deliver(parts: &Parts, sending: &Sending) -> Fate {
    let hooks = &parts.hooks;
    let (Some(receiver), Some(client)) = (hooks.receiver(&sending.receiver), &hooks.client) else { return Fate::Void };
    let message = match message(parts, sending).await {
        Ok(Some(message)) => message,
        Ok(None) => return Fate::Void,
        Err(error) => return Fate::Failed(error),
    };
    match send::post(client, receiver, &message, parts.clock.now().0 / 1000).await {
        Ok(()) => Fate::Taken,
        Err(error) => Fate::Failed(error),
    }
}

/// Returns what is to be told; none if that is nothing, or the record of its build was deleted meanwhile.
async fn message(parts: &Parts, sending: &Sending) -> Result<Option<Message>, String> {
    let (sender, number, at) = (&parts.hooks.sender, sending.number, sending.notice.at);
    match &sending.notice.what {
        What::Finished(build) => Ok(record(parts, *build).await?.map(|record| sender.finished(number, at, &record))),
        What::Failing(build) => {
            let Some(record) = record(parts, *build).await? else { return Ok(None) };
            let before = parts.hooks.known.before(parts, &record).await.map_err(|error| Chain(&error).to_string())?;
            Ok(before.and_then(|before| sender.newly_failing(number, at, &before, &record)))
        }
        What::Quarantined { worker, message } => Ok(Some(sender.quarantined(number, at, worker, message))),
    }
}

async fn record(parts: &Parts, build: BuildId) -> Result<Option<BuildRecord>, String> {
    parts.archive.get(build).await.map_err(|error| Chain(&error).to_string())
}

fn views(parts: &Parts, courier: &Courier) -> Vec<ReceiverView> {
    let view = |receiver: &Receiver| {
        let (delivered, given_up, settled, failing) = courier.standing(&receiver.name);
        let waiting = parts.farm(|farm| farm.outbox().after(settled).filter(|(_, of)| parts.hooks.wants(&receiver.name, of)).count());
        let waiting = u64::try_from(waiting).unwrap_or(u64::MAX);
        ReceiverView { name: receiver.name.clone(), host: receiver.url.host(), delivered, given_up, waiting, failing }
    };
    // Who is not announced yet is told of nothing.
    let is_known = |receiver: &&Receiver| parts.farm(|farm| farm.outbox().told_upto(&receiver.name).is_some());
    parts.hooks.receivers.iter().take(RECEIVERS_MAX).filter(is_known).map(view).collect()
}

/// Draws a number, so that whoever failed together does not come back together.
fn chance() -> u64 {
    use std::hash::{BuildHasher, Hasher};
    // The standard library's hasher is seeded from the system's randomness.
    std::hash::RandomState::new().build_hasher().finish()
}

/// How long nothing is looked at if nothing happens.
const IDLE: Duration = Duration::from_secs(10);
/// How long if the farm is not at the version yet that can tell: a new one is in a moment.
const SOON: Duration = Duration::from_millis(500);

#[cfg(test)]
mod tests {
    use kiln_core::Farm;
    use kiln_wire::{LogIndex, Timestamp};

    use super::*;

    #[tokio::test]
    async fn a_message_that_panics_has_failed_and_ends_nothing_else() {
        let fate = caught(async { panic!("a bug") }).await.unwrap_or_else(Fate::Failed);
        assert!(matches!(&fate, Fate::Failed(why) if why.contains("panicked")), "{fate:?}");
        assert_eq!(caught(async { Fate::Taken }).await, Ok(Fate::Taken));
    }

    #[test]
    fn who_is_left_out_of_an_announcement_is_known_before_it_is_made() {
        let mut farm = Farm::new();
        let receivers = vec!["chat".to_owned(), "mail".to_owned()];
        farm.apply(LogIndex(1), Command::Announce { receivers, now: Timestamp(1) });
        assert_eq!(dropped(farm.outbox(), &["mail".to_owned(), "new".to_owned()]), [("chat".to_owned(), 0)]);
        assert_eq!(dropped(farm.outbox(), &["mail".to_owned(), "chat".to_owned()]), []);
    }
}
