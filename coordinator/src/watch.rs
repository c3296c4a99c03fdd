//! Tells watchers of builds what happens. Memory only: a watcher that falls behind gets a fresh view instead of what it missed.

use kiln_wire::BuildId;
use kiln_wire::client::Event;
use std::sync::Arc;
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
}

impl Watchers {
    pub(crate) fn new() -> Self {
        Self { notices: broadcast::Sender::new(NOTICES_MAX) }
    }

    pub(crate) fn subscribe(&self) -> broadcast::Receiver<Notice> {
        self.notices.subscribe()
    }

    pub(crate) fn event(&self, builds: Vec<BuildId>, event: Event) {
        self.tell(Notice::Event(Arc::new((builds, event))));
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
