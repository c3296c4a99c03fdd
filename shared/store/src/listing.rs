//! What the NAR of a path holds, as JSON (`.ls`): read from the NAR when somebody asks first, and kept.

use std::io;
use std::sync::Arc;

use bytes::Bytes;
use kiln_nix::nar::{Listing, NarError};
use kiln_wire::PathInfo;
use kiln_wire::limits::LISTING_BYTES_MAX;

use crate::blob::BlobReader;
use crate::error::StoreError;
use crate::keep::off_thread;
use crate::lie::Lie;
use crate::store::{NARINFO_BYTES_MAX, Store, damaged_narinfo};
use crate::unpack::NarReader;
use crate::{key, narinfo};

impl Store {
    /// Returns the listing of the NAR of the path with this hash part. `None`: there is no such path, or the text is no hash part.
    /// One NAR is read at a time: whoever asks for much waits, and takes one processor.
    ///
    /// # Errors
    /// [`StoreError::Listing`] if the listing is too long, [`StoreError::DamagedBlob`] if the NAR is not the path's,
    /// [`StoreError::Object`] if the store fails.
    pub async fn listing(&self, hash_part: &str) -> Result<Option<Bytes>, StoreError> {
        if !key::is_hash_part(hash_part) {
            return Ok(None);
        }
        let at = key::narinfo(hash_part);
        let Some(text) = self.inner.objects.get_small(&at, NARINFO_BYTES_MAX).await? else { return Ok(None) };
        let info = narinfo::read(self.store_dir(), &text).map_err(|reason| damaged_narinfo(&at, reason))?;
        let key = key::listing(&info.nar_hash);
        if let Some(kept) = self.inner.objects.get_small(&key, LISTING_BYTES_MAX).await? {
            return Ok(Some(kept));
        }
        let turn = Arc::clone(&self.inner.listing).lock_owned().await;
        // Somebody else may have waited for the same.
        if let Some(kept) = self.inner.objects.get_small(&key, LISTING_BYTES_MAX).await? {
            return Ok(Some(kept));
        }
        let blob = self.open_blob(&info).await?;
        // The work goes on when nobody waits for it any more, and so does its turn.
        let (listed, _turn) = off_thread(info.nar_size_bytes, "list a NAR", move || (list(&info, &blob), turn)).await?;
        let listed = listed?;
        self.inner.objects.put(&key, listed.clone()).await?;
        Ok(Some(listed))
    }
}

/// Reads the NAR to its end, so that a listing is kept only of the one that the path has.
fn list(info: &PathInfo, blob: &BlobReader) -> Result<Bytes, StoreError> {
    let refuse = |lie: Lie| StoreError::DamagedBlob { path: info.path.clone(), key: blob.object_key().to_owned(), lie: Box::new(lie) };
    let unlisted = |err| StoreError::Listing { path: info.path.clone(), err };
    let nar = NarReader::new(blob.reader(), info.nar_size_bytes).map_err(|err| refuse(err.into()))?;
    let mut nar = io::BufReader::with_capacity(READ_BYTES, nar);
    let listing = Listing::read_within(&mut nar, LISTING_BYTES_MAX).map_err(unlisted)?;
    let (found, _) = nar.into_inner().finish().map_err(|err| unlisted(NarError::Read(err)))?;
    if found != info.nar_hash {
        return Err(refuse(Lie::NarHash { stated: info.nar_hash, found }));
    }
    let json = listing.to_json();
    match json.len() as u64 <= LISTING_BYTES_MAX {
        true => Ok(json.into()),
        false => Err(unlisted(NarError::LongListing { bytes_max: LISTING_BYTES_MAX })),
    }
}

/// NAR bytes decoded at a time.
const READ_BYTES: usize = 128 << 10;
