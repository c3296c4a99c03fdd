//! What the NAR of a path holds, as JSON (`.ls`): read from the NAR when somebody asks first, and kept. An empty object is kept of a NAR
//! whose listing is too long, so that it is read once only.

use std::io;
use std::path::Path as FilePath;
use std::sync::Arc;

use bytes::Bytes;
use kiln_nix::nar::{Listing, NarError};
use kiln_wire::limits::LISTING_BYTES_MAX;
use kiln_wire::{PathInfo, Sha256Hash};
use object_store::path::Path;

use crate::blob::BlobReader;
use crate::error::StoreError;
use crate::keep::off_thread;
use crate::lie::Lie;
use crate::spool::Spool;
use crate::store::{NARINFO_BYTES_MAX, Store, damaged_narinfo};
use crate::unpack::NarReader;
use crate::{key, narinfo};

/// The listing of a NAR, open for reading.
#[derive(Debug)]
pub struct KeptListing {
    /// Of which NAR. It has no other listing.
    pub nar_hash: Sha256Hash,
    /// The JSON.
    pub json: BlobReader,
}

impl Store {
    /// Returns the listing of the NAR of the path with this hash part. `None`: there is no such path, the text is no hash part, or the
    /// listing is longer than [`LISTING_BYTES_MAX`]. One NAR is read at a time: whoever asks for much waits, and takes one processor.
    ///
    /// # Errors
    /// [`StoreError::Listing`] if the NAR cannot be read, [`StoreError::DamagedBlob`] if it is not the path's,
    /// [`StoreError::Object`] if the store fails.
    pub async fn listing(&self, hash_part: &str) -> Result<Option<KeptListing>, StoreError> {
        if !key::is_hash_part(hash_part) {
            return Ok(None);
        }
        let at = key::narinfo(hash_part);
        let Some(text) = self.inner.objects.get_small(&at, NARINFO_BYTES_MAX).await? else { return Ok(None) };
        let info = narinfo::read(self.store_dir(), &text).map_err(|reason| damaged_narinfo(&at, reason))?;
        let (key, nar_hash) = (key::listing(&info.nar_hash), info.nar_hash);
        let kept = match self.open_object(&key).await? {
            None => self.make_listing(&key, info).await?,
            kept => kept,
        };
        Ok(kept.filter(|json| json.size_bytes() > 0).map(|json| KeptListing { nar_hash, json }))
    }

    /// Lists a NAR and keeps what it holds; returns what is kept.
    async fn make_listing(&self, key: &Path, info: PathInfo) -> Result<Option<BlobReader>, StoreError> {
        let turn = Arc::clone(&self.inner.listing).lock_owned().await;
        // Somebody else may have waited for the same.
        if let Some(kept) = self.open_object(key).await? {
            return Ok(Some(kept));
        }
        let blob = self.open_blob(&info).await?;
        let (at, spool_dir) = (key.clone(), self.spool_dir().to_owned());
        // The work goes on when nobody waits for it any more, and so does its turn.
        let (listed, _turn) = off_thread(info.nar_size_bytes, "list a NAR", move || (list(&info, &blob, &at, &spool_dir), turn)).await?;
        match listed? {
            Some(json) => self.inner.objects.put_spool(key, Arc::new(json)).await?,
            None => {
                tracing::warn!(%key, bytes_max = LISTING_BYTES_MAX, "the listing of a NAR is too long and is not served");
                self.inner.objects.put(key, Bytes::new()).await?;
            }
        }
        self.open_object(key).await
    }
}

/// Reads the NAR to its end, so that a listing, or that it is too long (`None`), is kept only of the one that the path has.
fn list(info: &PathInfo, blob: &BlobReader, key: &Path, spool_dir: &FilePath) -> Result<Option<Spool>, StoreError> {
    let refuse = |lie: Lie| StoreError::DamagedBlob { path: info.path.clone(), key: blob.object_key().to_owned(), lie: Box::new(lie) };
    let unlisted = |err| StoreError::Listing { path: info.path.clone(), err };
    let nar = NarReader::new(blob.reader(), info.nar_size_bytes).map_err(|err| refuse(err.into()))?;
    let mut nar = io::BufReader::with_capacity(READ_BYTES, nar);
    let listing = match Listing::read_within(&mut nar, LISTING_BYTES_MAX) {
        Err(NarError::LongListing { .. }) => {
            io::copy(&mut nar, &mut io::sink()).map_err(|err| unlisted(NarError::Read(err)))?;
            None
        }
        read => Some(read.map_err(unlisted)?),
    };
    let (found, _) = nar.into_inner().finish().map_err(|err| unlisted(NarError::Read(err)))?;
    if found != info.nar_hash {
        return Err(refuse(Lie::NarHash { stated: info.nar_hash, found }));
    }
    let Some(listing) = listing else { return Ok(None) };
    let mut json = Spool::new(spool_dir);
    let failed = |err: io::Error| object_store::Error::Generic { store: "spool", source: err.into() };
    let written = listing.write_json(&mut json, LISTING_BYTES_MAX);
    let fits = written.map_err(|err| StoreError::Object { operation: "write", key: key.to_string(), err: failed(err) })?;
    Ok(fits.then_some(json))
}

/// NAR bytes decoded at a time.
const READ_BYTES: usize = 128 << 10;
