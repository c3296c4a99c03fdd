//! Realisations: what derived outputs became, one object each, where a Nix binary cache has them.

use bytes::Bytes;
use kiln_nix::Keyring;
use kiln_nix::realisation::{DerivedOutput, Realisation};

use crate::error::StoreError;
use crate::key;
use crate::store::Store;

/// Bytes of a realisation at most: a path and a signature of each key.
const REALISATION_BYTES_MAX: u64 = 64 << 10;

impl Store {
    /// Keeps a realisation, durably, in place of what was there. The caller has made sure that its path is published.
    ///
    /// # Errors
    /// [`StoreError::Object`] if the store fails.
    pub async fn put_realisation(&self, realisation: &Realisation) -> Result<(), StoreError> {
        self.inner.objects.put(&key::realisation(&realisation.of), Bytes::from(realisation.to_json())).await
    }

    /// Returns the realisation of an output. `None`: the store has none that can be read and that a key of the ring vouches for. What is damaged
    /// is logged; the next that is kept takes its place.
    ///
    /// # Errors
    /// [`StoreError::Object`] if the store fails.
    pub async fn realisation(&self, of: &DerivedOutput, keys: &Keyring) -> Result<Option<Realisation>, StoreError> {
        let key = key::realisation(of);
        let text = match self.inner.objects.get_small(&key, REALISATION_BYTES_MAX).await {
            Ok(Some(text)) => text,
            Ok(None) => return Ok(None),
            Err(error @ StoreError::Oversize { .. }) => {
                tracing::warn!(%key, error = crate::store::chain(&error), "a realisation is damaged, and read as none");
                return Ok(None);
            }
            Err(error) => return Err(error),
        };
        match Realisation::parse(of.clone(), &text) {
            Ok(realisation) => Ok(realisation.is_vouched(keys).then_some(realisation)),
            Err(error) => {
                tracing::warn!(%key, error = crate::store::chain(&error), "a realisation is damaged, and read as none");
                Ok(None)
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use kiln_nix::SecretKey;
    use kiln_wire::{DrvPath, OutputName, Sha256Hash, StoreDir, StorePath};

    use super::*;
    use crate::{Location, StoreConfig};

    #[tokio::test]
    async fn a_realisation_comes_back_if_the_farm_vouches_for_it() {
        let dir = tempfile::tempdir().expect("a directory");
        let config = StoreConfig {
            store_dir: StoreDir::default(),
            location: Location::Memory,
            spool_dir: dir.path().to_owned(),
            cached_paths_max: 10,
        };
        let store = Store::open(config).await.expect("opens");
        let keys = |seed| Keyring::of(SecretKey::from_seed("farm-1", [seed; 32]).expect("a name"));
        let output = OutputName::parse("out").expect("a name");
        let derivation = DrvPath::parse("0hm2f1psjpcwg8fijsmr4wwxrx59s092-a.drv").expect("a path");
        let path = StorePath::parse("0hm2f1psjpcwg8fijsmr4wwxrx59s092-a").expect("a path");
        for of in
            [DerivedOutput::ByHash { identity: Sha256Hash([7; 32]), output: output.clone() }, DerivedOutput::ByPath { derivation, output }]
        {
            assert_eq!(store.realisation(&of, &keys(1)).await.expect("reads"), None);
            let signed = Realisation::signed(of.clone(), path.clone(), &keys(1));
            store.put_realisation(&signed).await.expect("writes");
            assert_eq!(store.realisation(&of, &keys(1)).await.expect("reads"), Some(signed));
            assert_eq!(store.realisation(&of, &keys(2)).await.expect("reads"), None, "another farm's word");
            store.inner.objects.put(&key::realisation(&of), Bytes::from_static(b"{")).await.expect("writes");
            assert_eq!(store.realisation(&of, &keys(1)).await.expect("reads"), None, "it is damaged");
            let huge = Bytes::from(vec![b' '; 1 << 17]);
            store.inner.objects.put(&key::realisation(&of), huge).await.expect("writes");
            assert_eq!(store.realisation(&of, &keys(1)).await.expect("reads"), None, "it is far too large");
            let healed = Realisation::signed(of.clone(), path.clone(), &keys(1));
            store.put_realisation(&healed).await.expect("writes");
            assert_eq!(store.realisation(&of, &keys(1)).await.expect("reads"), Some(healed));
        }
    }
}
