//! Standard input and output as a connection: pipes or sockets, as `sshd` and Nix give them.

use std::fs::File;
use std::io;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::os::unix::fs::FileTypeExt;

use anyhow::Context;
use tokio::io::{AsyncRead, AsyncWrite};
use tokio::net::UnixStream;
use tokio::net::unix::pipe;

use crate::words::bad_input;

/// Returns what this process was given to read from and to write to.
pub(super) fn halves() -> anyhow::Result<(Box<dyn AsyncRead + Send + Unpin>, Box<dyn AsyncWrite + Send + Unpin>)> {
    let reader: Box<dyn AsyncRead + Send + Unpin> = match given(io::stdin().as_fd(), "input")? {
        Given::Pipe(fd) => Box::new(pipe::Receiver::from_owned_fd(fd).context("read standard input")?),
        Given::Socket(socket) => Box::new(socket),
    };
    let writer: Box<dyn AsyncWrite + Send + Unpin> = match given(io::stdout().as_fd(), "output")? {
        Given::Pipe(fd) => Box::new(pipe::Sender::from_owned_fd(fd).context("write to standard output")?),
        Given::Socket(socket) => Box::new(socket),
    };
    Ok((reader, writer))
}

enum Given {
    Pipe(OwnedFd),
    Socket(UnixStream),
}

fn given(fd: BorrowedFd<'_>, name: &str) -> anyhow::Result<Given> {
    let file = File::from(fd.try_clone_to_owned().with_context(|| format!("take standard {name}"))?);
    let kind = file.metadata().with_context(|| format!("look at standard {name}"))?.file_type();
    if kind.is_fifo() {
        return Ok(Given::Pipe(file.into()));
    }
    if kind.is_socket() {
        let socket = std::os::unix::net::UnixStream::from(OwnedFd::from(file));
        socket.set_nonblocking(true)?;
        return Ok(Given::Socket(UnixStream::from_std(socket).with_context(|| format!("take standard {name}"))?));
    }
    Err(bad_input(format!(
        "--stdio is for Nix, which starts this by `ssh-ng://HOST?remote-program=…`; standard {name} is no pipe and no socket"
    )))
}
