//! How a path that an upstream cache gave becomes valid: never in the place of what is valid, or committed, already.

use kiln_nix::Keyring;
use kiln_store::{Endorsed, Store, StoreError};
use kiln_wire::PathInfo;

use crate::turns::Turns;

/// Makes a path valid, unless it is; `committed` says what a build of the farm has committed for it. Returns whether it is valid now; if
/// not, something that it refers to is not.
///
/// # Errors
/// As [`Store::publish`].
pub(crate) async fn publish(
    store: &Store,
    keys: &Keyring,
    turns: &Turns,
    committed: impl Fn() -> Option<PathInfo>,
    endorsed: &Endorsed,
) -> Result<bool, StoreError> {
    // A build that makes the same path looks for what is valid when it has its turn.
    let _turn = turns.take(std::iter::once(&endorsed.info.path)).await;
    // In this order: what is committed is forgotten by the farm only after it is published.
    let committed = committed();
    if store.path_info(&endorsed.info.path).await?.is_some() {
        return Ok(true);
    }
    let published = match committed {
        Some(info) => store.publish(&[info], keys).await,
        None => store.publish_endorsed(endorsed, keys).await,
    };
    match published {
        Ok(()) => Ok(true),
        Err(StoreError::MissingReference { .. }) => Ok(false),
        Err(error) => Err(error),
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

        async fn publish(&self, committed: Option<&PathInfo>, brought: &PathInfo) -> bool {
            let endorsed = Endorsed { info: brought.clone(), signatures: Vec::new() };
            publish(&self.store, &self.keys, &self.turns, || committed.cloned(), &endorsed).await.expect("publishes")
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
            assert!(place.publish(is_committed.then_some(&made), &brought).await);
            let expected = if is_valid || is_committed { made } else { brought };
            assert_eq!(place.valid().await, Some(expected), "valid: {is_valid}, committed: {is_committed}");
        }
    }

    #[tokio::test]
    async fn a_build_that_ends_meanwhile_has_its_turn_first() {
        let place = Place::new().await;
        let (made, brought) = (place.stored("made here").await, place.stored("made there").await);
        let turn = place.turns.take([path()].iter()).await;
        let mut publication = pin!(place.publish(None, &brought));
        let mut context = Context::from_waker(Waker::noop());
        assert!(matches!(publication.as_mut().poll(&mut context), Poll::Pending));
        place.store.publish(std::slice::from_ref(&made), &place.keys).await.expect("publishes");
        drop(turn);
        assert!(publication.await);
        assert_eq!(place.valid().await, Some(made));
    }
}
