//! Bodies that break off in their midst.

use bytes::Bytes;
use futures::{StreamExt, stream};
use http_body_util::{BodyExt, StreamBody};
use hyper::body::{Body as HttpBody, Frame};
use s3s::{Body, StdError};

/// Returns a body that fails after half of its `size_bytes`, and at the latest before its end.
pub(crate) fn half<B>(body: B, size_bytes: u64) -> Body
where
    B: HttpBody<Data = Bytes> + Send + 'static,
    B::Error: Into<StdError>,
{
    let frames = body.into_data_stream().map(|piece| piece.map_err(Into::into));
    let state = (Box::pin(frames), size_bytes / 2);
    let cut = stream::unfold(Some(state), |state| async move {
        let (mut frames, left_bytes) = state?;
        let piece = match frames.next().await {
            Some(Ok(piece)) if left_bytes > 0 => piece,
            Some(Err(error)) => return Some((Err(error), None)),
            Some(Ok(_)) | None => return Some((Err(StdError::from("cut in the midst, as was asked")), None)),
        };
        let taken = usize::try_from(left_bytes).map_or(piece.len(), |left| left.min(piece.len()));
        Some((Ok(Frame::data(piece.slice(..taken))), Some((frames, left_bytes - taken as u64))))
    });
    Body::http_body_unsync(StreamBody::new(cut))
}
