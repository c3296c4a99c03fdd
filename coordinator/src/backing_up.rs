//! Backups on their way out, and back: what a file of a lost farm needs to become a coordinator's directory again.

use std::path::{Path, PathBuf};
use std::sync::Arc;

use kiln_link::{LinkError, Role, Sender};
use kiln_store::keys::{self, KeyFileError};
use kiln_wire::NodeId;
use kiln_wire::client::{Refusal, Response};

use crate::config::Config;
use crate::parts::Parts;
use crate::raft::{Backup, BackupError, ConsensusConfig, FoundError, Member};
use crate::refuse;

/// Bytes of a backup in one frame.
const PIECE_BYTES: usize = 256 << 10;

/// Sends a backup of the farm as it is.
pub(crate) async fn send(parts: &Arc<Parts>, peer: &Role, sender: &mut Sender) -> Result<(), LinkError> {
    match back_up(parts, peer).await {
        Ok(bytes) => {
            for piece in bytes.chunks(PIECE_BYTES) {
                sender.send(&Response::Backup(piece.to_vec())).await?;
            }
            sender.send(&Response::Backup(Vec::new())).await?;
            parts.meter.backed_up(&parts.dir, parts.clock.now());
            Ok(())
        }
        Err(refusal) => sender.send(&Response::Refused(refusal)).await,
    }
}

async fn back_up(parts: &Arc<Parts>, peer: &Role) -> Result<Vec<u8>, Refusal> {
    if !matches!(peer, Role::Admin(_)) {
        return Err(refuse::forbidden(format!(
            "a certificate of `{peer}` does not allow to back up the farm; `kiln ca issue --role admin/NAME` makes one that does"
        )));
    }
    let (parts, taken_at) = (parts.clone(), parts.clock.now());
    let copied = tokio::task::spawn_blocking(move || {
        let about = crate::raft::About { taken_at, ..parts.about.clone() };
        parts.consensus.back_up(about)
    });
    let copied = copied.await.map_err(|error| refuse::unavailable("back up", &error))?;
    copied.map_err(|error| refuse::unavailable("back up", &error))
}

/// A backup that was not restored. Nothing was changed.
#[derive(Debug, thiserror::Error)]
pub enum RestoreError {
    /// The file cannot be read.
    #[error("read backup `{}`", path.display())]
    Read {
        /// Which file.
        path: PathBuf,
        /// What the system said.
        #[source]
        source: std::io::Error,
    },
    /// It is no backup.
    #[error("read backup `{}`", path.display())]
    Backup {
        /// Which file.
        path: PathBuf,
        /// What is wrong with it.
        #[source]
        source: BackupError,
    },
    /// It is of a farm that the configuration does not describe.
    #[error("restore `{}`: its {what} is `{found}`, the configuration's `{wanted}`; what was built would not be found or not be trusted", path.display())]
    OtherFarm {
        /// Which file.
        path: PathBuf,
        /// What differs.
        what: &'static str,
        /// In the backup.
        found: String,
        /// In the configuration.
        wanted: String,
    },
    /// The signing key cannot be read.
    #[error("load signing key")]
    Key(#[from] KeyFileError),
    /// The directory cannot be made.
    #[error("restore a farm")]
    Found(#[from] FoundError),
}

/// What was restored.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Restored {
    /// The farm's name.
    pub farm: String,
    /// The coordinator that has it.
    pub node: NodeId,
    /// When the backup was made, milliseconds since 1970.
    pub taken_at_ms: u64,
    /// Log entries that it covers.
    pub entries: u64,
    /// Where the backed-up farm kept its outputs, if the configuration says another place.
    pub other_store: Option<String>,
}

/// Checks a backup without restoring it.
///
/// # Errors
/// [`BackupError`] says what is wrong.
pub fn check_backup(bytes: &[u8]) -> Result<(), BackupError> {
    Backup::decode(bytes).map(drop)
}

/// Makes the directory of a coordinator from a backup: a farm of one, which others can be added to.
///
/// # Errors
/// [`RestoreError`] names what is wrong; nothing was changed then.
pub async fn restore(config: &Config, file: &Path) -> Result<Restored, RestoreError> {
    let bytes = std::fs::read(file).map_err(|source| RestoreError::Read { path: file.to_owned(), source })?;
    let backup = Backup::decode(&bytes).map_err(|source| RestoreError::Backup { path: file.to_owned(), source })?;
    let about = backup.about.clone();
    let own = keys::load(&config.signing_key.clone().unwrap_or_else(|| config.dir.join("signing.key")))?;
    let keys = keys::ring(own, &config.signing_keys, &config.retired_keys, &config.revoked_keys)?;
    // The farm may have gone over to another key since.
    let known = keys.known().map(|key| key.to_string()).find(|key| *key == about.public_key);
    let same = [
        ("farm", about.farm.clone(), config.farm.clone()),
        ("store directory", about.store_dir.to_string(), config.store_dir.to_string()),
        ("signing key", about.public_key.clone(), known.unwrap_or_else(|| keys.own().public().to_string())),
    ];
    if let Some((what, found, wanted)) = same.into_iter().find(|(_, found, wanted)| found != wanted) {
        return Err(RestoreError::OtherFarm { path: file.to_owned(), what, found, wanted });
    }
    let store = config.store.as_ref().map_or_else(String::new, |store| store.url.clone());
    let consensus = ConsensusConfig::new(config.dir.join("raft"), config.node);
    let member = Member {
        link: config.advertise.clone().unwrap_or_else(|| config.listen.to_string()),
        http: config.advertise_http.clone().unwrap_or_else(|| config.http.to_string()),
        ..Member::default()
    };
    let entries = backup.last.1.0;
    make_private(&config.dir)?;
    backup.found(&consensus.dir, config.node, consensus.segment_bytes, member).await?;
    tracing::debug!(farm = %about.farm, node = %config.node, "restored");
    Ok(Restored {
        farm: about.farm,
        node: config.node,
        taken_at_ms: about.taken_at.0,
        entries,
        other_store: (about.store != store).then_some(about.store),
    })
}

fn make_private(dir: &Path) -> Result<(), FoundError> {
    use std::os::unix::fs::DirBuilderExt;
    let made = std::fs::DirBuilder::new().recursive(true).mode(0o700).create(dir);
    made.map_err(|err| FoundError::Io { operation: "make", path: dir.to_owned(), err })
}
