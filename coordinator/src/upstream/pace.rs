//! How fast an archive has to come. What the cache is not waited for does not count: this machine may be slow itself.

use std::fmt::Display;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;

use bytes::Bytes;
use futures::{Stream, StreamExt, stream};
use kiln_wire::limits::UPSTREAM_BYTES_PER_SECOND_MIN;
use tokio::time::Instant;

/// What has come, and how long was waited for it.
#[derive(Clone, Copy, Debug, Default)]
struct Pace {
    bytes: u64,
    waited: Duration,
}

impl Pace {
    /// Notes bytes that came after a wait; returns whether all of it is fast enough.
    fn took(&mut self, bytes: usize, waited: Duration) -> bool {
        self.bytes += bytes as u64;
        self.waited += waited;
        let counted_seconds = self.waited.saturating_sub(GRACE).as_secs();
        self.bytes >= counted_seconds.saturating_mul(UPSTREAM_BYTES_PER_SECOND_MIN)
    }
}

/// Ends a body that comes too slowly with an error. Notes in `broke` whether it ended with one of its own.
pub(super) fn paced<E: Display>(
    body: impl Stream<Item = Result<Bytes, E>> + Send,
    broke: Arc<AtomicBool>,
) -> impl Stream<Item = Result<Bytes, String>> {
    stream::unfold((Box::pin(body), Pace::default()), move |(mut body, mut pace)| {
        let broke = broke.clone();
        async move {
            let begun = Instant::now();
            let piece = match body.next().await? {
                Ok(bytes) if pace.took(bytes.len(), begun.elapsed()) => Ok(bytes),
                Ok(_) => Err(format!("it was sent too slowly: {} bytes in {} seconds", pace.bytes, pace.waited.as_secs())),
                Err(error) => {
                    broke.store(true, Ordering::Relaxed);
                    Err(error.to_string())
                }
            };
            Some((piece, (body, pace)))
        }
    })
}

/// Time for which the pace does not count.
const GRACE: Duration = Duration::from_secs(60);

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_cache_that_dribbles_is_too_slow_and_one_that_pauses_is_not() {
        let second = UPSTREAM_BYTES_PER_SECOND_MIN as usize;
        let byte_by_byte = vec![(1, 29); 3];
        /// Bytes and the seconds that they took, and which of them are too slow.
        type Row<'a> = (&'a [(usize, u64)], Option<usize>);
        let table: [Row<'_>; 6] = [
            (&[(0, 0), (10, 60)], None),
            (&byte_by_byte, Some(2)),
            (&[(second, 60), (0, 1), (0, 1)], Some(2)),
            (&[(second * 10, 5), (1, 65)], None),
            (&[(second / 2, 1); 130], Some(120)),
            (&[(second, 1); 1000], None),
        ];
        for (pieces, expected) in table {
            let mut pace = Pace::default();
            let slow = pieces.iter().position(|(bytes, seconds)| !pace.took(*bytes, Duration::from_secs(*seconds)));
            assert_eq!(slow, expected, "{:?}", pieces.first());
        }
    }

    #[tokio::test]
    async fn a_body_that_breaks_is_told_from_one_that_is_bad() {
        for (pieces, breaks) in [(vec![Ok("a"), Ok("b")], false), (vec![Ok("a"), Err("reset")], true)] {
            let expected: Vec<Result<Bytes, String>> = pieces.iter().map(|piece| piece.map(Bytes::from).map_err(str::to_owned)).collect();
            let broke = Arc::<AtomicBool>::default();
            let body = stream::iter(pieces).map(|piece| piece.map(Bytes::from));
            assert_eq!(paced(body, broke.clone()).collect::<Vec<_>>().await, expected);
            assert_eq!(broke.load(Ordering::Relaxed), breaks);
        }
    }
}
