//! Tells watchers of builds what happens. Memory only: a watcher that falls behind gets a fresh view instead of what it missed.
//!
//! A build starts the moment it is submitted, which is before its client can watch it. So what happens to a build that nobody has watched
//! yet is kept, within limits, for its first watcher.

use std::collections::BTreeMap;
use std::sync::{Arc, Mutex, PoisonError};

use kiln_wire::BuildId;
use kiln_wire::client::Event;
use tokio::sync::broadcast;

/// What a watcher is told.
#[derive(Clone, Debug)]
pub(crate) enum Notice {
    /// Something happened to a job of these builds.
    Event(Arc<(Vec<BuildId>, Event)>),
    /// The build is in the archive.
    Ended(BuildId),
}

/// Spreads notices to all watchers.
#[derive(Debug)]
pub(crate) struct Watchers {
    notices: broadcast::Sender<Notice>,
    unwatched: Mutex<BTreeMap<BuildId, Early>>,
}

/// What happened to a build.
#[derive(Debug)]
enum Early {
    /// Nobody has watched it: this was first.
    Kept(Vec<Event>),
    /// Somebody has watched it, and was told.
    Told,
}

impl Watchers {
    pub(crate) fn new() -> Self {
        Self { notices: broadcast::Sender::new(NOTICES_MAX), unwatched: Mutex::default() }
    }

    /// Returns what happened to the build so far, if nobody was told yet, and what will happen to any: nothing is lost or told twice.
    pub(crate) fn subscribe(&self, build: BuildId) -> (Vec<Event>, broadcast::Receiver<Notice>) {
        let mut unwatched = self.unwatched.lock().unwrap_or_else(PoisonError::into_inner);
        let early = unwatched.get_mut(&build).map_or(Early::Told, |early| std::mem::replace(early, Early::Told));
        let early = match early {
            Early::Kept(events) => events,
            Early::Told => Vec::new(),
        };
        (early, self.notices.subscribe())
    }

    pub(crate) fn event(&self, builds: Vec<BuildId>, event: Event) {
        // Held until the notice is out: who subscribes gets the event by one of both ways.
        let mut unwatched = self.unwatched.lock().unwrap_or_else(PoisonError::into_inner);
        for build in &builds {
            match unwatched.entry(*build).or_insert_with(|| Early::Kept(Vec::new())) {
                Early::Kept(events) if events.len() < EARLY_EVENTS_MAX => events.push(event.clone()),
                Early::Kept(_) | Early::Told => {}
            }
        }
        while unwatched.len() > EARLY_BUILDS_MAX {
            unwatched.pop_first();
        }
        self.tell(Notice::Event(Arc::new((builds, event))));
    }

    /// Forgets what is kept for first watchers: this coordinator leads no more, and their builds end elsewhere.
    pub(crate) fn forget_all(&self) {
        self.unwatched.lock().unwrap_or_else(PoisonError::into_inner).clear();
    }

    pub(crate) fn ended(&self, build: BuildId) {
        self.tell(Notice::Ended(build));
    }

    fn tell(&self, notice: Notice) {
        if self.notices.send(notice).is_err() {
            tracing::trace!("nobody watches");
        }
    }
}

/// Notices that a slow watcher may lag behind before it gets a fresh view.
const NOTICES_MAX: usize = 8192;
/// Events kept of a build that nobody watches: more than happen before a client's next request arrives.
const EARLY_EVENTS_MAX: usize = 1024;
/// Builds of which events are kept, about 10 MB at most; the oldest are forgotten first, for their clients came or never will.
const EARLY_BUILDS_MAX: usize = 32;

#[cfg(test)]
mod tests {
    use kiln_wire::client::EventKind;
    use kiln_wire::{DrvPath, Timestamp};

    use super::*;

    fn event(at: u64) -> Event {
        let derivation = DrvPath::parse("0hm2f1psjpcwg8fijsmr4wwxrx59s092-bar.drv").expect("a path");
        Event { at: Timestamp(at), derivation, kind: EventKind::Ready }
    }

    fn times(events: &[Event]) -> Vec<u64> {
        events.iter().map(|event| event.at.0).collect()
    }

    #[test]
    fn the_first_watcher_is_told_what_happened_before_it_came_and_nobody_is_told_twice() {
        let watchers = Watchers::new();
        watchers.event(vec![BuildId(1), BuildId(2)], event(10));
        watchers.event(vec![BuildId(1)], event(11));
        let (early, mut notices) = watchers.subscribe(BuildId(1));
        assert_eq!(times(&early), [10, 11]);
        watchers.event(vec![BuildId(1)], event(12));
        assert!(matches!(notices.try_recv(), Ok(Notice::Event(told)) if told.1.at.0 == 12));
        assert_eq!(times(&watchers.subscribe(BuildId(1)).0), [0; 0]);
        assert_eq!(times(&watchers.subscribe(BuildId(2)).0), [10]);
    }

    #[test]
    fn builds_that_nobody_watches_are_kept_within_limits() {
        let watchers = Watchers::new();
        for at in 0..EARLY_EVENTS_MAX as u64 + 5 {
            watchers.event(vec![BuildId(100)], event(at));
        }
        assert_eq!(watchers.subscribe(BuildId(100)).0.len(), EARLY_EVENTS_MAX);
        for build in 0..=EARLY_BUILDS_MAX as u64 {
            watchers.event(vec![BuildId(build)], event(build));
        }
        assert_eq!(times(&watchers.subscribe(BuildId(0)).0), [0; 0], "the oldest is forgotten");
        assert_eq!(times(&watchers.subscribe(BuildId(2)).0), [2]);
    }
}
