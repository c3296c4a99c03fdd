//! Events as browsers read them. Source: the HTML standard, section on server-sent events.

use std::collections::BTreeMap;
use std::fmt::{self, Write};
use std::sync::{Arc, Mutex, PoisonError};

use bytes::Bytes;
use kiln_api::{Ailing, BuildEvent, BuildState, JobEvent, LeaderEvent, ManyEvent, WorkerEvent};
use kiln_core::Sight;
use kiln_wire::{BuildId, LogIndex, StoreDir};
use serde::Serialize;

use super::Owner;
use crate::raft::Fact;

/// Which event: the entry, and the place among what it did.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, PartialOrd, Ord)]
pub(crate) struct EventId {
    pub(crate) index: LogIndex,
    pub(crate) place: u32,
}

impl EventId {
    /// Returns what comes before everything that an entry did.
    pub(crate) fn before(index: LogIndex) -> Self {
        Self { index: LogIndex(index.0.saturating_sub(1)), place: u32::MAX }
    }

    /// Reads `INDEX.PLACE`.
    pub(crate) fn parse(text: &str) -> Option<Self> {
        let (index, place) = text.split_once('.')?;
        Some(Self { index: LogIndex(index.parse().ok()?), place: place.parse().ok()? })
    }
}

impl fmt::Display for EventId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}.{}", self.index, self.place)
    }
}

/// One event.
#[derive(Debug)]
pub(crate) struct Told {
    pub(crate) id: EventId,
    kind: &'static str,
    /// Whom it is for: those who see one of these builds; everybody if there are none.
    builds: Vec<(BuildId, Owner)>,
    data: Data,
    /// As those read it who see everything.
    text: String,
}

#[derive(Debug)]
enum Data {
    /// Names builds, of which a tenant sees its own.
    Job(JobEvent),
    /// The same for everybody.
    Plain,
}

impl Told {
    /// Returns what is told of a fact.
    pub(crate) fn of(id: EventId, fact: &Fact, store_dir: &StoreDir, mut owner: impl FnMut(BuildId) -> Owner) -> Self {
        let mut owned = |builds: &[BuildId]| builds.iter().map(|build| (*build, owner(*build))).collect::<Vec<_>>();
        let worker = |worker: &kiln_wire::WorkerId, state: &str| WorkerEvent { worker: worker.to_string(), state: state.to_owned() };
        match fact {
            Fact::Job(builds, event) => {
                let event = JobEvent::of(event, builds, store_dir);
                let text = text(id, "job", &event);
                Self { id, kind: "job", builds: owned(builds), data: Data::Job(event), text }
            }
            Fact::Submitted(build, _) => {
                Self::plain(id, "build", owned(&[*build]), &BuildEvent { build: build.0, state: "submitted".to_owned() })
            }
            Fact::Ended(build, state, _, _) => {
                let state = BuildState::from(*state).word().to_owned();
                Self::plain(id, "build", owned(&[*build]), &BuildEvent { build: build.0, state })
            }
            Fact::Registered(id_of) => Self::plain(id, "worker", Vec::new(), &worker(id_of, "registered")),
            Fact::Lost(id_of) => Self::plain(id, "worker", Vec::new(), &worker(id_of, "lost")),
            Fact::Judged(id_of, ailing) => {
                Self::plain(id, "worker", Vec::new(), &worker(id_of, ailing.as_ref().map_or("working", Ailing::word)))
            }
            Fact::Leads(leader) => Self::plain(id, "leader", Vec::new(), &LeaderEvent { node: leader.node.0, term: leader.term }),
        }
    }

    /// Returns that so many jobs changed that none is named.
    pub(crate) fn many(id: EventId, jobs: u64) -> Self {
        Self::plain(id, "many", Vec::new(), &ManyEvent { jobs })
    }

    fn plain(id: EventId, kind: &'static str, builds: Vec<(BuildId, Owner)>, data: &impl Serialize) -> Self {
        Self { id, kind, builds, data: Data::Plain, text: text(id, kind, data) }
    }

    /// Adds the event, if it is for somebody who sees so much and wants to hear of this build.
    pub(crate) fn write(&self, sight: &Sight, build: Option<BuildId>, into: &mut String) {
        if build.is_some_and(|build| !self.builds.is_empty() && self.builds.iter().all(|(of, _)| *of != build)) {
            return;
        }
        if *sight == Sight::All || self.builds.is_empty() {
            return into.push_str(&self.text);
        }
        let seen: Vec<u64> = self.builds.iter().filter(|(_, owner)| owner.is_seen(sight)).map(|(build, _)| build.0).collect();
        if seen.is_empty() || build.is_some_and(|build| !seen.contains(&build.0)) {
            return;
        }
        match &self.data {
            Data::Job(event) if seen.len() < self.builds.len() => {
                into.push_str(&text(self.id, self.kind, &JobEvent { builds: seen, ..event.clone() }));
            }
            Data::Job(_) | Data::Plain => into.push_str(&self.text),
        }
    }
}

/// Events that are told together.
#[derive(Debug)]
pub(crate) struct Batch {
    told: Vec<Arc<Told>>,
    /// The last id that it stands for.
    pub(crate) upto: EventId,
    /// What happened before it is not known here.
    pub(crate) after_gap: bool,
    /// As it was written for those who asked.
    written: Mutex<BTreeMap<Sight, Bytes>>,
}

impl Batch {
    pub(crate) fn new(told: Vec<Arc<Told>>, upto: EventId, after_gap: bool) -> Self {
        Self { told, upto, after_gap, written: Mutex::default() }
    }

    /// Returns the events after one, as somebody sees them who sees so much and wants to hear of this build.
    pub(crate) fn bytes(&self, sight: &Sight, build: Option<BuildId>, after: EventId) -> Bytes {
        let is_whole = self.told.first().is_none_or(|first| first.id > after);
        let write = || {
            let mut text = String::new();
            self.told.iter().filter(|told| told.id > after).for_each(|told| told.write(sight, build, &mut text));
            Bytes::from(text)
        };
        if build.is_some() || !is_whole {
            return write();
        }
        let mut written = self.written.lock().unwrap_or_else(PoisonError::into_inner);
        if let Some(bytes) = written.get(sight) {
            return bytes.clone();
        }
        let bytes = write();
        written.insert(sight.clone(), bytes.clone());
        bytes
    }
}

/// Returns an event as a browser reads it.
pub(crate) fn text(id: EventId, kind: &str, data: &impl Serialize) -> String {
    let data = serde_json::to_string(data).expect("its maps have texts for keys");
    let mut text = String::new();
    write!(text, "event: {kind}\nid: {id}\ndata: {data}\n\n").expect("a string takes everything");
    text
}
