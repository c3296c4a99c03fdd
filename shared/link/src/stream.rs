//! Messages on a stream: frames of `kiln_wire::frame`, then an end mark (a header that says zero bytes, which no message has).
//!
//! QUIC ends a stream in good order when its sender is dropped, also when that was a crash half-way through an answer. The mark
//! tells the two apart: [`Receiver::recv`] says `None` only if the peer called [`Sender::finish`].

use std::sync::Arc;

use bytes::{Buf, Bytes};
use kiln_wire::frame::{self, Assembler, Step};
use quinn::VarInt;
use serde::Serialize;
use serde::de::DeserializeOwned;

use crate::LinkError;
use crate::connection::Inner;

/// The end mark.
const END_MARK: [u8; frame::HEADER_BYTES] = [0; frame::HEADER_BYTES];
/// Why a receiver stopped: it has read whole messages and wants no more.
const ENOUGH: VarInt = VarInt::from_u32(0);
/// Why a receiver stopped, or a sender reset: something went wrong in the middle of a message or blob.
const GIVEN_UP: VarInt = VarInt::from_u32(1);

/// The sending half of a stream. Dropped without [`Sender::finish`], what was sent still arrives (while the connection lives),
/// and the receiver then gets [`LinkError::Truncated`].
pub struct Sender {
    pub(crate) quinn: quinn::SendStream,
    /// Frames that were fed since the last flush.
    pending: Vec<u8>,
    /// What a flush has begun to hand over.
    leaving: Bytes,
    pub(crate) open: bool,
    _connection: Arc<Inner>,
}

/// The receiving half of a stream. Dropped early, the peer's sends fail with [`LinkError::Stopped`].
pub struct Receiver {
    quinn: quinn::RecvStream,
    /// What has arrived and is not consumed.
    chunk: Bytes,
    /// The message that is arriving.
    assembler: Assembler,
    /// The end mark has come; the stream's own end may not have.
    marked: bool,
    ended: bool,
    failed: bool,
    _connection: Arc<Inner>,
}

impl Sender {
    pub(crate) fn new(quinn: quinn::SendStream, connection: Arc<Inner>) -> Self {
        Self { quinn, pending: Vec::new(), leaving: Bytes::new(), open: true, _connection: connection }
    }

    /// Sends a message, after those that wait. Returns once the transport has taken it, which waits for a slow peer.
    ///
    /// Cancel safe in that messages never tear: if this is dropped early, the rest of the message goes out with the next send,
    /// flush or finish. It must not be sent again.
    ///
    /// # Errors
    /// [`LinkError::Frame`] if it cannot be encoded or is over the limit (the stream stays usable); [`LinkError::Stopped`],
    /// [`LinkError::Lost`], [`LinkError::NotOpen`].
    pub async fn send<T: Serialize + ?Sized>(&mut self, message: &T) -> Result<(), LinkError> {
        self.feed(message)?;
        self.flush().await
    }

    /// Queues a message without sending it, and returns how many bytes wait. The caller flushes before that grows too large.
    ///
    /// # Errors
    /// [`LinkError::Frame`] if it cannot be encoded or is over the limit; [`LinkError::NotOpen`].
    pub fn feed<T: Serialize + ?Sized>(&mut self, message: &T) -> Result<usize, LinkError> {
        if !self.open {
            return Err(LinkError::NotOpen);
        }
        frame::append_frame(&mut self.pending, &message)?;
        Ok(self.leaving.len() + self.pending.len())
    }

    /// Hands all that waits to the transport. Cancel safe: what is left goes out with the next call.
    ///
    /// # Errors
    /// [`LinkError::Stopped`], [`LinkError::Lost`], [`LinkError::NotOpen`].
    pub async fn flush(&mut self) -> Result<(), LinkError> {
        loop {
            if self.leaving.is_empty() {
                // The transport takes the buffer itself: nothing is copied.
                self.leaving = std::mem::take(&mut self.pending).into();
            }
            if self.leaving.is_empty() {
                return Ok(());
            }
            self.quinn.write_chunks(std::slice::from_mut(&mut self.leaving)).await?;
        }
    }

    /// Ends the stream in good order and waits until the peer has all of it (or has said that it has read enough). Without this
    /// wait, what was sent last is lost when the connection is closed. Cancel safe; may be called again.
    ///
    /// # Errors
    /// [`LinkError::Stopped`] if the peer gave up in the middle, [`LinkError::Lost`].
    pub async fn finish(&mut self) -> Result<(), LinkError> {
        match self.end().await {
            Ok(()) | Err(LinkError::Stopped) => {}
            Err(err) => return Err(err),
        }
        match self.quinn.stopped().await {
            Ok(None) => Ok(()),
            Ok(Some(code)) if code == ENOUGH => Ok(()),
            Ok(Some(_)) => Err(LinkError::Stopped),
            Err(quinn::StoppedError::ConnectionLost(err)) => Err(err.into()),
            Err(quinn::StoppedError::ZeroRttRejected) => Err(LinkError::NotOpen),
        }
    }

    /// Waits until the peer wants nothing more of this stream, or has gone, and returns the error that a send would give. A peer that has only
    /// finished what it sends itself is not gone. Cancel safe.
    pub async fn gone(&self) -> LinkError {
        match self.quinn.stopped().await {
            Ok(Some(_)) => LinkError::Stopped,
            // The stream has been finished, and all of it has arrived.
            Ok(None) => LinkError::NotOpen,
            Err(quinn::StoppedError::ConnectionLost(err)) => err.into(),
            Err(quinn::StoppedError::ZeroRttRejected) => LinkError::NotOpen,
        }
    }

    /// Gives the stream up: what has not arrived is dropped, and the peer gets [`LinkError::Aborted`].
    pub fn abort(mut self) {
        self.give_up();
    }

    /// Sends what waits and the end mark, and ends the stream, without waiting for the peer.
    async fn end(&mut self) -> Result<(), LinkError> {
        if self.open {
            self.pending.extend_from_slice(&END_MARK);
            self.open = false;
        }
        self.flush().await?;
        self.close();
        Ok(())
    }

    /// Ends the stream without a mark, after a blob, whose length is known. Doing it twice is harmless.
    pub(crate) fn close(&mut self) {
        self.open = false;
        let _already_closed = self.quinn.finish();
    }

    pub(crate) fn give_up(&mut self) {
        self.open = false;
        (self.pending, self.leaving) = (Vec::new(), Bytes::new());
        let _already_closed = self.quinn.reset(GIVEN_UP);
    }
}

impl Receiver {
    pub(crate) fn new(quinn: quinn::RecvStream, connection: Arc<Inner>) -> Self {
        Self {
            quinn,
            chunk: Bytes::new(),
            assembler: Assembler::default(),
            marked: false,
            ended: false,
            failed: false,
            _connection: connection,
        }
    }

    /// Waits for the next message; `None` if the peer finished the stream. Memory grows with the bytes that arrive, never with the
    /// length that a peer claims. Cancel safe: no message is lost if this is dropped early.
    ///
    /// # Errors
    /// [`LinkError::Truncated`] if the stream ends without its mark, [`LinkError::Frame`] if a message is too long or is no such
    /// message, [`LinkError::Trailing`] if bytes follow the mark, [`LinkError::Aborted`], [`LinkError::Lost`]. After an error the
    /// stream is of no more use: [`LinkError::NotOpen`].
    pub async fn recv<T: DeserializeOwned>(&mut self) -> Result<Option<T>, LinkError> {
        if self.failed {
            return Err(LinkError::NotOpen);
        }
        if self.ended {
            return Ok(None);
        }
        let body = match self.next_body().await {
            Ok(Some(body)) => body,
            Ok(None) => return Ok(None),
            Err(err) => return Err(self.fail(err)),
        };
        frame::from_bytes(&body).map(Some).map_err(|err| self.fail(err.into()))
    }

    async fn next_body(&mut self) -> Result<Option<Bytes>, LinkError> {
        loop {
            if self.marked {
                self.expect_end().await?;
                return Ok(None);
            }
            if !self.fill().await? {
                return Err(LinkError::Truncated);
            }
            let (taken, step) = self.assembler.take(&self.chunk)?;
            self.chunk.advance(taken);
            match step {
                Step::More => {}
                Step::End => self.marked = true,
                Step::Whole(body) => return Ok(Some(body.into())),
                Step::Ahead(size) => return Ok(Some(self.chunk.split_to(size))),
            }
        }
    }

    /// Makes sure that nothing follows on the stream.
    pub(crate) async fn expect_end(&mut self) -> Result<(), LinkError> {
        if self.fill().await? {
            return Err(LinkError::Trailing);
        }
        self.ended = true;
        Ok(())
    }

    /// Waits for bytes unless some are there; false at the stream's end. Cancel safe.
    pub(crate) async fn fill(&mut self) -> Result<bool, LinkError> {
        while self.chunk.is_empty() {
            match self.quinn.read_chunk(usize::MAX, true).await? {
                Some(chunk) => self.chunk = chunk.bytes,
                None => return Ok(false),
            }
        }
        Ok(true)
    }

    /// Takes up to `size` of the bytes that are there.
    pub(crate) fn take(&mut self, size: usize) -> Bytes {
        self.chunk.split_to(self.chunk.len().min(size))
    }

    /// Marks the stream as useless and tells the peer, unless it has sent all.
    pub(crate) fn fail(&mut self, err: LinkError) -> LinkError {
        self.failed = true;
        let _already_closed = self.quinn.stop(GIVEN_UP);
        err
    }

    pub(crate) fn is_open(&self) -> bool {
        !self.failed && !self.marked && !self.ended && self.assembler.is_between()
    }

    pub(crate) fn mark_busy(&mut self, busy: bool) {
        self.failed = busy;
    }
}

impl Drop for Receiver {
    fn drop(&mut self) {
        let is_amid = !self.assembler.is_between() || self.marked && !self.ended;
        let code = if self.failed || is_amid { GIVEN_UP } else { ENOUGH };
        let _already_closed = self.quinn.stop(code);
    }
}
