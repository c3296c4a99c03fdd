//! The farm as openraft's state machine: applies committed entries, answers proposers, owes effects, makes snapshots.
//!
//! The farm lives in memory behind a lock that is held for a few entries at a time; durable are the log and the snapshots. Effects are
//! owed only for entries that this process wrote as leader: what a restart applies again was answered by an earlier leader, and
//! what that one left undone is in `Farm::pending_effects`.

use std::io;
use std::path::PathBuf;
use std::sync::{Arc, RwLock, RwLockReadGuard};
use std::time::{Duration, Instant};

use futures::{FutureExt, Stream, StreamExt};
use kiln_core::{Answer, Command, Effect, Farm};
use kiln_wire::{Leader, LogIndex, Program};
use openraft::storage::{EntryResponder, RaftStateMachine};
use openraft::{EntryPayload, OptionalSend, RaftSnapshotBuilder};
use tokio::sync::mpsc;

use super::api::Owed;
use super::disk;
use super::happened::{self, Fact, Happened, Telling};
use super::record::{self, from_leader_id};
use super::snapshot::{self, Snapshot, SnapshotDir, SnapshotError};
use super::trace;
use super::types::{Change, Entry, LogId, SnapshotMeta, SnapshotOf, StoredMembership, TypeConfig};
use crate::history::History;
use crate::tally::Tally;

/// openraft's word for a snapshot and what is known about it.
pub type StoredSnapshot = SnapshotOf<SnapshotFile>;

/// A snapshot on disk.
#[derive(Clone, Debug)]
pub struct SnapshotFile {
    /// Where it lies.
    pub path: PathBuf,
}

/// The state machine. Clones share the farm.
#[derive(Clone, Debug)]
pub struct StateMachine {
    shared: Arc<Shared>,
}

#[derive(Debug)]
struct Shared {
    state: RwLock<Snapshot>,
    snapshots: SnapshotDir,
    led: Led,
    program: Program,
    effects: mpsc::UnboundedSender<Owed>,
    telling: Telling,
    history: History,
    tally: Tally,
}

/// Which entries this process wrote as leader: this node's, of terms later than any that its disk knew at the start.
#[derive(Clone, Copy, Debug)]
pub struct Led {
    /// This node.
    pub node: u64,
    /// The last term that the disk knew.
    pub after_term: u64,
    /// The last entry that the disk held: what comes up to it was applied before, or is of others' making.
    pub after_index: u64,
}

impl StateMachine {
    /// Returns the farm as of `snapshot`, which came from `snapshots`; `program` is what applies entries to it.
    pub fn new(snapshot: Snapshot, snapshots: SnapshotDir, led: Led, program: Program, effects: mpsc::UnboundedSender<Owed>) -> Self {
        let telling = Telling::default();
        telling.skip_to(LogIndex(snapshot.last.map_or(0, |last| last.index)));
        Self {
            shared: Arc::new(Shared {
                state: RwLock::new(snapshot),
                snapshots,
                led,
                program,
                effects,
                telling,
                history: History::default(),
                tally: Tally::after(LogIndex(led.after_index)),
            }),
        }
    }

    /// Returns where it is heard what entries do; the first who asks has it.
    pub fn heard(&self) -> Option<mpsc::Receiver<Happened>> {
        self.shared.telling.heard()
    }

    /// Returns where it is heard for traces; the first who asks has it.
    pub fn heard_for_traces(&self) -> Option<mpsc::Receiver<Happened>> {
        self.shared.telling.heard_for_traces()
    }

    /// Returns the last entry that the disk held when this process began.
    pub fn held_at_start(&self) -> LogIndex {
        LogIndex(self.shared.led.after_index)
    }

    /// Returns what was told lately of attempts.
    pub fn history(&self) -> &History {
        &self.shared.history
    }

    /// Returns what applied entries did, counted.
    pub fn tally(&self) -> &Tally {
        &self.shared.tally
    }

    /// Returns the farm and how far it is. Held briefly: nothing is applied meanwhile.
    pub fn state(&self) -> RwLockReadGuard<'_, Snapshot> {
        self.shared.state.read().expect("no user of the farm panics while changing it")
    }

    /// Applies entries that are there at one time, and tells what the farm answered and owes.
    ///
    /// # Errors
    /// As [`StateMachine::apply_entry`]; what came before the entry is applied and told.
    fn apply_all(&self, entries: &mut Vec<EntryResponder<TypeConfig>>) -> io::Result<()> {
        let mut told = Vec::with_capacity(entries.len());
        let mut outcome = Ok(());
        {
            let mut state = self.shared.state.write().expect("no user of the farm panics while changing it");
            for (entry, responder) in entries.drain(..) {
                match self.apply_entry(&mut state, entry) {
                    Ok((owed, answers)) => told.push((owed, answers, responder)),
                    Err(err) => {
                        outcome = Err(err);
                        break;
                    }
                }
            }
        }
        for (owed, answers, responder) in told {
            if let Some(owed) = owed {
                // The driver may have ended before consensus.
                let _ = self.shared.effects.send(owed);
            }
            if let Some(responder) = responder {
                responder.send(answers);
            }
        }
        outcome
    }

    /// Applies one entry; returns what the leader owes because of it, if that is this process, and what the farm answered.
    ///
    /// # Errors
    /// If this program is too old for what the entry asks for: skipped, it would make another farm of this one.
    fn apply_entry(&self, state: &mut Snapshot, entry: Entry) -> io::Result<(Option<Owed>, Vec<Answer>)> {
        let needs = record::needs(&entry);
        if self.shared.program.is_too_old_for(needs) {
            let why = format!("log entry {} cannot be applied: {} cannot read version {needs}", entry.log_id.index, self.shared.program);
            return Err(io::Error::new(io::ErrorKind::Unsupported, why));
        }
        let index = LogIndex(entry.log_id.index);
        let leader = from_leader_id(&entry.log_id.leader_id);
        let mut effects = Vec::new();
        let (mut lost, mut published) = (None, None);
        match entry.payload {
            EntryPayload::Blank => {}
            EntryPayload::Normal(Change::Command(command)) => {
                (lost, published) = (happened::loses(&command), happened::publishes(&command));
                effects = self.apply_command(&mut state.farm, index, command);
            }
            EntryPayload::Normal(Change::Raise(to)) => {
                tracing::info!(version = to.0, "the farm is raised: what all coordinators can read is written from here on");
                state.version = state.version.max(to);
            }
            EntryPayload::Membership(members) => state.change_members(StoredMembership::new(Some(entry.log_id), members)),
        }
        let leads = state.last.is_none_or(|last| last.leader_id != entry.log_id.leader_id);
        state.last = Some(entry.log_id);
        trace::tell(index, leader.term, &effects);
        let mut facts = happened::facts(index, lost, &effects, &state.farm);
        if leads {
            facts.insert(0, Fact::Leads(leader));
        }
        self.shared.telling.tell(index, facts, published);
        self.shared.history.note(&effects, &state.farm);
        self.shared.tally.note(index, &effects, &state.farm);
        let mut answers = Vec::new();
        effects.retain(|effect| match effect {
            Effect::Answer(answer) => {
                answers.push(answer.clone());
                false
            }
            Effect::Welcome { .. }
            | Effect::Dispatch { .. }
            | Effect::Revoke(_)
            | Effect::Acknowledge { .. }
            | Effect::Publish { .. }
            | Effect::Resolve { .. }
            | Effect::Notify { .. }
            | Effect::Judged { .. }
            | Effect::Copied { .. }
            | Effect::Archive(_) => true,
        });
        // A command that was only answered changed the farm all the same: the driver must plan again.
        let is_owed = self.shared.led.holds(leader) && (!effects.is_empty() || !answers.is_empty());
        Ok((is_owed.then_some(Owed { index, leader, effects }), answers))
    }

    #[cfg(not(feature = "simulation"))]
    fn apply_command(&self, farm: &mut Farm, index: LogIndex, command: Command) -> Vec<Effect> {
        farm.apply(index, command)
    }

    #[cfg(feature = "simulation")]
    fn apply_command(&self, farm: &mut Farm, index: LogIndex, command: Command) -> Vec<Effect> {
        super::planted::apply(kiln_wire::NodeId(self.shared.led.node), farm, index, command)
    }

    /// Replaces the farm by a snapshot; on return that one is current on disk too.
    fn install(&self, path: &std::path::Path) -> Result<(), SnapshotError> {
        let begin = Instant::now();
        let snapshot = snapshot::read(path)?;
        let path = match self.shared.snapshots.newest()? {
            Some(newest) if newest == path => newest,
            _ => self.shared.snapshots.adopt(path, snapshot.last)?,
        };
        let upto = LogIndex(snapshot.last.map_or(0, |last| last.index));
        *self.shared.state.write().expect("no user of the farm panics while changing it") = snapshot;
        self.shared.telling.skip_to(upto);
        self.shared.history.skip();
        tell("installed a snapshot", &path, begin);
        Ok(())
    }
}

impl Led {
    fn holds(self, leader: Leader) -> bool {
        leader.node.0 == self.node && leader.term > self.after_term
    }
}

impl RaftStateMachine<TypeConfig> for StateMachine {
    type SnapshotData = SnapshotFile;
    type SnapshotBuilder = Self;

    async fn applied_state(&mut self) -> io::Result<(Option<LogId>, StoredMembership)> {
        let state = self.state();
        Ok((state.last, state.members.clone()))
    }

    async fn apply<Entries>(&mut self, mut entries: Entries) -> io::Result<()>
    where
        Entries: Stream<Item = io::Result<EntryResponder<TypeConfig>>> + Unpin + OptionalSend,
    {
        let mut some = Vec::new();
        while let Some(next) = entries.next().await {
            some.push(next?);
            while some.len() < TOGETHER_MAX
                && let Some(Some(next)) = entries.next().now_or_never()
            {
                some.push(next?);
            }
            self.apply_all(&mut some)?;
        }
        Ok(())
    }

    async fn get_snapshot_builder(&mut self) -> Self {
        self.clone()
    }

    async fn install_snapshot(&mut self, _: &SnapshotMeta, snapshot: SnapshotFile) -> io::Result<()> {
        let machine = self.clone();
        blocking(move || machine.install(&snapshot.path)).await
    }

    async fn get_current_snapshot(&mut self) -> io::Result<Option<StoredSnapshot>> {
        let snapshots = self.shared.snapshots.clone();
        blocking(move || {
            let Some(path) = snapshots.newest()? else { return Ok(None) };
            let meta = snapshot::read_meta(&path)?;
            Ok(Some(StoredSnapshot { meta, snapshot: SnapshotFile { path } }))
        })
        .await
    }
}

impl RaftSnapshotBuilder<TypeConfig> for StateMachine {
    type SnapshotData = SnapshotFile;

    /// Copies the farm under the lock and writes the copy on a thread of its own, so that commits go on meanwhile.
    async fn build_snapshot(&mut self) -> io::Result<StoredSnapshot> {
        loop {
            let machine = self.clone();
            let built = blocking(move || {
                let begin = Instant::now();
                let copy = machine.state().clone();
                match machine.shared.snapshots.write(&copy) {
                    Ok(path) => {
                        tell("wrote a snapshot", &path, begin);
                        Ok(Some(StoredSnapshot { meta: copy.meta(), snapshot: SnapshotFile { path } }))
                    }
                    Err(err) if err.is_full() => Ok(None),
                    Err(err) => Err(err),
                }
            });
            match built.await? {
                Some(snapshot) => return Ok(snapshot),
                // The log stays until there is a snapshot: nothing is lost by waiting.
                None => tracing::error!("the disk is full: there is no room for a snapshot; tried again in {FULL_RETRY:?}"),
            }
            tokio::time::sleep(FULL_RETRY).await;
        }
    }
}

async fn blocking<T: Send + 'static>(work: impl FnOnce() -> Result<T, SnapshotError> + Send + 'static) -> io::Result<T> {
    disk::blocking(work).await?.map_err(io::Error::other)
}

/// Logs what was done with a snapshot, how large it is and how long that took.
fn tell(what: &'static str, path: &std::path::Path, begin: Instant) {
    // It was there a moment ago; should it be superseded already, its size is not worth an error.
    let bytes = path.metadata().map_or(0, |meta| meta.len());
    tracing::info!(bytes, ms = begin.elapsed().as_millis() as u64, "{what}");
}

/// Entries that are applied under one hold of the lock: whoever looks at the farm meanwhile waits for some tenths of a millisecond.
const TOGETHER_MAX: usize = 32;
/// How often a snapshot that found no room is tried again.
const FULL_RETRY: Duration = Duration::from_secs(5);
