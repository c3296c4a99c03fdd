//! What the tasks of one coordinator share. Each part guards itself; nothing here holds a decision.

use std::path::PathBuf;
use std::sync::Arc;

use kiln_core::Farm;
use kiln_nix::Keyring;
use kiln_store::{Store, StoreError, Uploads};
use kiln_wire::{PathInfo, StoreDir, StorePath};
use tokio::sync::Semaphore;

use crate::access::Access;
use crate::archive::Archive;
use crate::checked::Checked;
use crate::clock::Clock;
use crate::config::PeersError;
use crate::derivations::Derivations;
use crate::garbage::Garbage;
use crate::granted::Granted;
use crate::hold::Holders;
use crate::hooks::Hooks;
use crate::intake::Intake;
use crate::live::Live;
use crate::logs::Logs;
use crate::meter::Meter;
use crate::raft::{About, Consensus};
use crate::reports::Reports;
use crate::sessions::Sessions;
use crate::substitute::Substitution;
use crate::traces::Traces;
use crate::turns::Turns;
use crate::verified::Verified;
use crate::watch::Watchers;

/// The parts of a running coordinator.
pub(crate) struct Parts {
    pub(crate) consensus: Consensus,
    /// Where this coordinator keeps what is its own.
    pub(crate) dir: PathBuf,
    /// Coordinators that an empty directory waits for.
    pub(crate) join: Vec<String>,
    pub(crate) store: Store,
    pub(crate) store_dir: StoreDir,
    pub(crate) keys: Keyring,
    /// Whether this coordinator may be one of several.
    pub(crate) may_have_peers: Result<(), PeersError>,
    /// What a backup says that it is of.
    pub(crate) about: About,
    pub(crate) cache_url: Option<String>,
    pub(crate) derivations: Derivations,
    pub(crate) checked: Checked,
    pub(crate) sessions: Sessions,
    /// Uploads whose connection broke, and those that ended well.
    pub(crate) uploads: Uploads,
    pub(crate) verified: Verified,
    pub(crate) substitution: Substitution,
    pub(crate) intake: Intake,
    /// Who may use the HTTP API.
    pub(crate) access: Access,
    pub(crate) granted: Granted,
    pub(crate) turns: Turns,
    /// Reports of attempts that made nothing.
    pub(crate) reports: Reports,
    /// Growths of builds that are prepared at a time.
    pub(crate) growths: Semaphore,
    /// Builds that last as long as their clients.
    pub(crate) holders: Holders,
    /// What is deleted, and what must not be.
    pub(crate) garbage: Garbage,
    /// Who is told by webhook.
    pub(crate) hooks: Hooks,
    pub(crate) watchers: Watchers,
    /// What everybody is told of.
    pub(crate) live: Live,
    pub(crate) logs: Arc<Logs>,
    pub(crate) archive: Archive,
    pub(crate) meter: Meter,
    /// Where what happens is told in traces.
    pub(crate) traces: Traces,
    pub(crate) clock: Clock,
}

impl Parts {
    /// Reads the farm's replicated state; `look` must be short, for commands wait meanwhile.
    pub(crate) fn farm<R>(&self, look: impl FnOnce(&Farm) -> R) -> R {
        self.consensus.read(look)
    }

    /// Returns the term that this coordinator knows to be the present one, for log lines.
    pub(crate) fn term(&self) -> Option<u64> {
        self.consensus.leader().map(|(leader, _)| leader.term)
    }

    /// Returns what is known of a path: from the live jobs' committed outputs, or from what is published.
    pub(crate) async fn path_info(&self, path: &StorePath) -> Result<Option<PathInfo>, StoreError> {
        match self.farm(|farm| farm.path_info(path).cloned()) {
            Some(info) => Ok(Some(info)),
            None => Ok(self.store.path_info(path).await?.map(|info| info.as_ref().clone())),
        }
    }
}
