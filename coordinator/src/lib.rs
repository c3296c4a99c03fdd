//! A Kiln coordinator: keeps the farm's state, dispatches jobs to workers, takes verified outputs, publishes a signed cache.
//!
//! Where to look: `requests` is where peers come in and what each role may ask; `submit` turns roots into jobs; `driver` is the
//! leader's loop, which plans and does what effects say; `dispatch` sends a job out; `transfer` takes its outputs; `worker_session`
//! hears how it ended; `publish` makes the result visible; `garbage` deletes what nobody keeps. Decisions are in `kiln-core`: nothing here knows why a job is ready.

mod absent;
mod access;
mod archive;
mod archiving;
mod backing_up;
mod body;
mod brought;
mod brought_back;
mod checked;
mod clock;
mod closure;
mod cluster;
mod config;
mod derivations;
mod dispatch;
mod drain;
mod driver;
mod drv_closure;
mod durations;
mod follow;
mod followed_log;
mod garbage;
mod granted;
mod grown;
mod heavy;
mod history;
mod hold;
pub mod http;
mod intake;
mod kept_logs;
mod leading;
mod live;
mod logs;
mod made;
mod mend;
mod meter;
mod needed;
mod parts;
mod pauses;
mod publish;
pub mod raft;
mod readable;
mod realised;
mod refuse;
mod register;
mod reports;
mod requests;
mod resolve;
mod round;
mod scrape;
mod sessions;
mod shared_store;
mod shares;
mod start;
mod submit;
mod substitute;
mod tokens;
mod transfer;
mod turns;
mod upstream;
mod verified;
mod views;
mod watch;
mod worker_session;

pub use archive::ArchiveError;
pub use backing_up::{RestoreError, Restored, check_backup, restore};
pub use config::{Config, ConfigError, PeersError};
pub use garbage::Gc;
pub use shared_store::{SharedStore, SharedStoreError};
pub use start::{Coordinator, StartError};
pub use tokens::{Scope, Token, TokenHash};
pub use upstream::Substituter;
