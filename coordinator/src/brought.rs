//! How a path that no build of this farm made becomes valid: one that an upstream cache gave, or a client brought. Never in the place of what
//! is valid, or committed, already, and never by a coordinator that does not lead any more: it does not know what is deleted meanwhile.

use kiln_nix::Keyring;
use kiln_store::{Endorsed, Store, StoreError};
use kiln_wire::{Leader, PathInfo};

use crate::garbage::touch;
use crate::leading;
use crate::parts::Parts;
use crate::transfer::keys_of;
use crate::turns::Turns;

/// A path that is not made valid.
#[derive(Debug, thiserror::Error)]
pub(crate) enum PublishError {
    /// What was touched here counts no more: another leader may be deleting it.
    #[error("publish a path: this coordinator does not lead any more; try again")]
    NotLeader,
    #[error(transparent)]
    Store(#[from] StoreError),
}

/// Makes a path valid, unless it is. Returns what is valid then. `leader` is the leadership under which this began.
///
/// # Errors
/// [`PublishError::NotLeader`], and as of [`Store::publish`].
pub(crate) async fn publish(parts: &Parts, leader: Option<Leader>, endorsed: &Endorsed) -> Result<PathInfo, PublishError> {
    touch(parts, keys_of(&endorsed.info)).await;
    let committed = || parts.farm(|farm| farm.path_info(&endorsed.info.path).cloned());
    let leads = || leader.is_some() && leading::own(parts) == leader;
    in_turn(&parts.store, &parts.keys, &parts.turns, leads, committed, endorsed).await
}

/// As [`publish`]; `committed` says what a build of the farm has committed for the path.
async fn in_turn(
    store: &Store,
    keys: &Keyring,
    turns: &Turns,
    leads: impl Fn() -> bool,
    committed: impl Fn() -> Option<PathInfo>,
    endorsed: &Endorsed,
) -> Result<PathInfo, PublishError> {
    // A build that makes the same path looks for what is valid when it has its turn.
    let _turn = turns.take(std::iter::once(&endorsed.info.path)).await;
    // In this order: what is committed is forgotten by the farm only after it is published.
    let committed = committed();
    if let Some(valid) = store.path_info(&endorsed.info.path).await? {
        return Ok(valid.as_ref().clone());
    }
    // Only under the leadership that something was touched under does that count.
    if !leads() {
        return Err(PublishError::NotLeader);
    }
    match committed {
        Some(info) => {
            store.publish(std::slice::from_ref(&info), keys).await?;
            Ok(info)
        }
        None => {
            store.publish_endorsed(endorsed, keys).await?;
            Ok(endorsed.info.clone())
        }
    }
}

#[cfg(test)]
mod tests {
    use std::future::Future;
    use std::pin::pin;
    use std::task::{Context, Poll, Waker};

    use kiln_nix::SecretKey;
    use kiln_store::{Location, Packer, Provenance, StoreConfig};
    use kiln_wire::{StoreDir, StorePath};
    use tempfile::TempDir;

    use super::*;

    struct Place {
        store: Store,
        keys: Keyring,
        turns: Turns,
        dir: TempDir,
    }

    impl Place {
        async fn new() -> Self {
            let dir = tempfile::tempdir().expect("a temporary directory");
            let config = StoreConfig {
                location: Location::Memory,
                store_dir: StoreDir::default(),
                spool_dir: dir.path().join("spool"),
                cached_paths_max: 10,
            };
            let keys = Keyring::of(SecretKey::from_seed("farm-1", [7; 32]).expect("a good name"));
            Self { store: Store::open(config).await.expect("opens"), keys, turns: Turns::default(), dir }
        }

        /// Stores what somebody has for the path, and publishes nothing.
        async fn stored(&self, contents: &str) -> PathInfo {
            let packer = Packer { level: 1, spool_dir: self.dir.path().to_owned() };
            let nothing = kiln_nix::scan::Candidates::new([]);
            let packed = packer.pack_file("x", contents.as_bytes(), &nothing).expect("packs");
            let info = packed.path_info(path(), None, None);
            let mut receiver = self.store.receive(info.clone(), Provenance::Built { candidates: [].into() }).expect("begins");
            receiver.write(packed.spool.as_memory().expect("small")).expect("takes");
            self.store.finish_upload(receiver).await.expect("stores")
        }

        async fn publish(&self, leads: bool, committed: Option<&PathInfo>, brought: &PathInfo) -> Result<PathInfo, PublishError> {
            let endorsed = Endorsed { info: brought.clone(), signatures: Vec::new() };
            in_turn(&self.store, &self.keys, &self.turns, || leads, || committed.cloned(), &endorsed).await
        }

        async fn valid(&self) -> Option<PathInfo> {
            self.store.path_info(&path()).await.expect("looks").as_deref().cloned()
        }
    }

    fn path() -> StorePath {
        StorePath::parse("0hm2f1psjpcwg8fijsmr4wwxrx59s092-bar").expect("a path")
    }

    #[tokio::test]
    async fn what_is_valid_or_committed_stays_whatever_a_cache_has() {
        for (is_valid, is_committed) in [(false, false), (true, false), (false, true), (true, true)] {
            let place = Place::new().await;
            let (made, brought) = (place.stored("made here").await, place.stored("made there").await);
            if is_valid {
                place.store.publish(std::slice::from_ref(&made), &place.keys).await.expect("publishes");
            }
            let expected = if is_valid || is_committed { made.clone() } else { brought.clone() };
            let told = place.publish(true, is_committed.then_some(&made), &brought).await.expect("publishes");
            assert_eq!((Some(&told), &told), (place.valid().await.as_ref(), &expected), "valid: {is_valid}, committed: {is_committed}");
        }
    }

    #[tokio::test]
    async fn a_coordinator_that_leads_no_more_makes_nothing_valid() {
        let place = Place::new().await;
        let (made, brought) = (place.stored("made here").await, place.stored("made there").await);
        for committed in [None, Some(&made)] {
            assert!(matches!(place.publish(false, committed, &brought).await, Err(PublishError::NotLeader)));
            assert_eq!(place.valid().await, None);
        }
        place.store.publish(std::slice::from_ref(&made), &place.keys).await.expect("publishes");
        assert_eq!(place.publish(false, None, &brought).await.expect("there is nothing to do"), made);
    }

    #[tokio::test]
    async fn a_build_that_ends_meanwhile_has_its_turn_first() {
        let place = Place::new().await;
        let (made, brought) = (place.stored("made here").await, place.stored("made there").await);
        let turn = place.turns.take([path()].iter()).await;
        let mut publication = pin!(place.publish(true, None, &brought));
        let mut context = Context::from_waker(Waker::noop());
        assert!(matches!(publication.as_mut().poll(&mut context), Poll::Pending));
        place.store.publish(std::slice::from_ref(&made), &place.keys).await.expect("publishes");
        drop(turn);
        assert_eq!(publication.await.expect("publishes"), made);
        assert_eq!(place.valid().await, Some(made));
    }
}
