//! A connection's bytes: requests in, notes and answers out. Knows when the client is gone.

use std::io;

use kiln_nix::daemon::{Assembler, Encoder, Frames, Item, Note, ProtocolError, Step, Version};
use tokio::io::{AsyncBufReadExt, AsyncRead, AsyncWrite, AsyncWriteExt, BufReader};
use tokio::sync::{mpsc, watch};

use super::content::{Content, PIECES_AHEAD, Piece};

/// The two directions of a connection.
pub(super) struct Stream {
    reader: BufReader<Box<dyn AsyncRead + Send + Unpin>>,
    writer: Box<dyn AsyncWrite + Send + Unpin>,
    /// True once the daemon stops, which is as if the client were gone.
    stopped: watch::Receiver<bool>,
    /// What both sides speak.
    version: Version,
    /// What the client streams after its request, as long as it does.
    frames: Option<Frames>,
}

/// Why a connection is of no more use.
#[derive(Debug, thiserror::Error)]
pub(super) enum Broken {
    /// The client left in the middle, or the daemon stops.
    #[error("the client is gone")]
    Gone,
    /// The kernel's word.
    #[error("talk to a client")]
    Io(#[from] io::Error),
    /// The client cannot be understood from here on.
    #[error(transparent)]
    Protocol(#[from] ProtocolError),
    /// It is no Nix client.
    #[error("the client does not start as Nix does")]
    Alien,
}

/// Why an operation gave no answer.
#[derive(Debug)]
pub(super) enum Failure {
    /// The client is told, and may ask for something else.
    Told(anyhow::Error),
    /// There is nobody to tell.
    Broken(Broken),
}

impl From<anyhow::Error> for Failure {
    fn from(error: anyhow::Error) -> Self {
        Self::Told(error)
    }
}

impl From<Broken> for Failure {
    fn from(error: Broken) -> Self {
        Self::Broken(error)
    }
}

impl Stream {
    /// Takes a fresh connection.
    pub(super) fn new(
        reader: impl AsyncRead + Send + Unpin + 'static,
        writer: impl AsyncWrite + Send + Unpin + 'static,
        stopped: watch::Receiver<bool>,
    ) -> Self {
        let reader = BufReader::with_capacity(READ_BYTES, Box::new(reader) as Box<dyn AsyncRead + Send + Unpin>);
        Self { reader, writer: Box::new(writer), stopped, version: Version::NEWEST, frames: None }
    }

    /// Returns what both sides speak.
    pub(super) fn version(&self) -> Version {
        self.version
    }

    /// Notes what both sides speak.
    pub(super) fn speak(&mut self, version: Version) {
        self.version = version;
    }

    /// Reads arguments; none if the client left before the first byte.
    pub(super) async fn gather(&mut self, items: &'static [Item]) -> Result<Option<Vec<u8>>, Broken> {
        let mut assembler = Assembler::new(items);
        while !assembler.is_complete() {
            let bytes = self.fill().await?;
            if bytes.is_empty() {
                return if assembler.is_empty() { Ok(None) } else { Err(Broken::Gone) };
            }
            let taken = assembler.take(bytes)?;
            self.reader.consume(taken);
        }
        Ok(Some(assembler.into_bytes()))
    }

    /// Reads a number; none if the client left before it.
    pub(super) async fn number(&mut self) -> Result<Option<u64>, Broken> {
        let bytes = self.gather(&[Item::Number]).await?;
        Ok(bytes.and_then(|bytes| bytes.try_into().ok()).map(u64::from_le_bytes))
    }

    /// Sends bytes.
    pub(super) async fn send(&mut self, bytes: Encoder) -> Result<(), Broken> {
        self.send_bytes(&bytes.into_bytes()).await
    }

    /// Sends bytes that are no part of an encoded answer.
    pub(super) async fn send_bytes(&mut self, bytes: &[u8]) -> Result<(), Broken> {
        let (writer, stopped) = (&mut self.writer, &mut self.stopped);
        let writing = async {
            writer.write_all(bytes).await?;
            writer.flush().await
        };
        tokio::select! {
            written = writing => Ok(written?),
            // Who does not read must not hold up the daemon's end.
            _ = stopped.wait_for(|stopped| *stopped) => Err(Broken::Gone),
        }
    }

    /// Sends a note.
    pub(super) async fn note(&mut self, note: Note<'_>) -> Result<(), Broken> {
        let mut bytes = Encoder::default();
        note.encode(self.version, &mut bytes);
        self.send(bytes).await
    }

    /// Waits until the client is gone, or the daemon stops. A client that says something meanwhile is not gone, and is read later. Cancel
    /// safe.
    pub(super) async fn gone(&mut self) {
        if !self.reader.buffer().is_empty() || self.fill().await.is_ok_and(|bytes| !bytes.is_empty()) {
            // It cannot be looked past what it said; its end shows when an answer is sent. Fails if the daemon is gone already.
            let _stopped = self.stopped.wait_for(|stopped| *stopped).await;
        }
    }

    /// Says that the client streams something after its request.
    pub(super) fn expect_frames(&mut self) {
        self.frames = Some(Frames::default());
    }

    /// Has what the client streams read by `work`, on a thread where it may block.
    pub(super) async fn content<T: Send + 'static>(
        &mut self,
        work: impl FnOnce(Content) -> anyhow::Result<T> + Send + 'static,
    ) -> Result<T, Failure> {
        let (pieces, arriving) = mpsc::channel(PIECES_AHEAD);
        let task = tokio::task::spawn_blocking(move || work(Content::new(arriving)));
        let fed = self.feed(pieces).await;
        let worked = task.await.map_err(|error| anyhow::Error::from(error).context("read what was sent"))?;
        fed?;
        worked.map_err(Failure::Told)
    }

    /// Passes on what the client streams, to its end or until nobody takes it.
    async fn feed(&mut self, pieces: mpsc::Sender<Piece>) -> Result<(), Broken> {
        while let Some(piece) = self.next_piece().await? {
            if pieces.send(Piece::Bytes(piece)).await.is_err() {
                return Ok(());
            }
        }
        // Who has read enough by itself need not be told.
        let _read_enough = pieces.send(Piece::End).await;
        Ok(())
    }

    /// Reads over the rest of what the client streams, so that its next request can be read.
    pub(super) async fn skip_frames(&mut self) -> Result<(), Broken> {
        while self.next_piece().await?.is_some() {}
        Ok(())
    }

    async fn next_piece(&mut self) -> Result<Option<Vec<u8>>, Broken> {
        let Some(mut frames) = self.frames.take() else { return Ok(None) };
        loop {
            let bytes = self.fill().await?;
            if bytes.is_empty() {
                return Err(Broken::Gone);
            }
            let (taken, step) = frames.take(bytes);
            let piece = match step {
                Step::More => None,
                Step::Data(data) => Some(Some(data.to_vec())),
                Step::End => Some(None),
            };
            self.reader.consume(taken);
            if let Some(piece) = piece {
                self.frames = piece.is_some().then_some(frames);
                return Ok(piece);
            }
        }
    }

    /// Waits for bytes unless some are there; empty at the end. Cancel safe.
    async fn fill(&mut self) -> Result<&[u8], Broken> {
        tokio::select! {
            filled = self.reader.fill_buf() => drop(filled?.len()),
            // Fails if the daemon is gone already.
            _ = self.stopped.wait_for(|stopped| *stopped) => return Ok(&[]),
        }
        Ok(self.reader.buffer())
    }
}

/// Bytes read at a time.
const READ_BYTES: usize = 64 << 10;
