//! The control socket between a worker and its launcher: one message each way at the start, then a new conversation's socket with each
//! byte. Keeps message boundaries (`SOCK_SEQPACKET`), so that several threads may send at once.

use std::io::{self, IoSlice, IoSliceMut};
use std::mem::MaybeUninit;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};

use rustix::net::{
    AddressFamily, RecvAncillaryBuffer, RecvAncillaryMessage, RecvFlags, SendAncillaryBuffer, SendAncillaryMessage, SendFlags, SocketFlags,
    SocketType, recvmsg, send, sendmsg, socketpair,
};

/// Longest message of the start: paths, names and networks.
const START_BYTES_MAX: usize = 64 << 10;

/// Makes the two ends.
pub(super) fn pair() -> io::Result<(OwnedFd, OwnedFd)> {
    Ok(socketpair(AddressFamily::UNIX, SocketType::SEQPACKET, SocketFlags::CLOEXEC, None)?)
}

/// Sends one message of the start.
pub(super) fn send_start(control: impl AsFd, bytes: &[u8]) -> io::Result<()> {
    let sent = send(control, bytes, SendFlags::NOSIGNAL)?;
    if sent == bytes.len() { Ok(()) } else { Err(io::ErrorKind::WriteZero.into()) }
}

/// Receives one message of the start; empty if the other side is gone.
pub(super) fn receive_start(control: impl AsFd) -> io::Result<Vec<u8>> {
    receive(control, RecvFlags::empty())
}

/// Does [`receive_start`] and leaves the message where it is.
pub(super) fn peek_start(control: impl AsFd) -> io::Result<Vec<u8>> {
    receive(control, RecvFlags::PEEK)
}

fn receive(control: impl AsFd, flags: RecvFlags) -> io::Result<Vec<u8>> {
    let mut bytes = vec![0; START_BYTES_MAX];
    let (got, _) = retry(|| rustix::net::recv(control.as_fd(), bytes.as_mut_slice(), flags))?;
    bytes.truncate(got);
    Ok(bytes)
}

/// Sends one end of a conversation.
pub(super) fn send_conversation(control: impl AsFd, conversation: BorrowedFd<'_>) -> io::Result<()> {
    let mut space = [MaybeUninit::uninit(); rustix::cmsg_space!(ScmRights(1))];
    let mut ancillary = SendAncillaryBuffer::new(&mut space);
    let conversations = [conversation];
    let fits = ancillary.push(SendAncillaryMessage::ScmRights(&conversations));
    debug_assert!(fits, "the space is for one descriptor");
    sendmsg(control, &[IoSlice::new(b"c")], &mut ancillary, SendFlags::NOSIGNAL)?;
    Ok(())
}

/// What came over the control socket.
pub(super) enum Received {
    /// The end of a conversation.
    Conversation(OwnedFd),
    /// Something else, which has no meaning.
    Nothing,
    /// The other side is gone.
    End,
}

/// Waits for the next conversation. Descriptors beyond the first of a message are closed.
pub(super) fn receive_conversation(control: impl AsFd) -> io::Result<Received> {
    let mut space = [MaybeUninit::uninit(); rustix::cmsg_space!(ScmRights(4))];
    let mut ancillary = RecvAncillaryBuffer::new(&mut space);
    let mut byte = [0_u8; 1];
    let received = loop {
        match recvmsg(control.as_fd(), &mut [IoSliceMut::new(&mut byte)], &mut ancillary, RecvFlags::CMSG_CLOEXEC) {
            Err(rustix::io::Errno::INTR) => {}
            other => break other?,
        }
    };
    let mut found = None;
    for message in ancillary.drain() {
        if let RecvAncillaryMessage::ScmRights(descriptors) = message {
            descriptors.for_each(|descriptor| found = found.take().or(Some(descriptor)));
        }
    }
    Ok(match found {
        Some(conversation) => Received::Conversation(conversation),
        None if received.bytes == 0 => Received::End,
        None => Received::Nothing,
    })
}

fn retry<T>(mut call: impl FnMut() -> rustix::io::Result<T>) -> io::Result<T> {
    loop {
        match call() {
            Err(rustix::io::Errno::INTR) => {}
            other => return Ok(other?),
        }
    }
}

#[cfg(test)]
mod tests {
    use std::fs::File;
    use std::io::{Read as _, Write as _};
    use std::os::unix::net::UnixStream;

    use super::*;

    #[test]
    fn a_conversation_crosses_the_control_socket_and_its_end_is_seen() {
        let (ours, theirs) = pair().expect("a socket");
        send_start(&ours, b"policy").expect("room");
        assert_eq!(peek_start(&theirs).expect("a message"), b"policy");
        assert_eq!(receive_start(&theirs).expect("a message"), b"policy");
        let (mut near, far) = UnixStream::pair().expect("a socket");
        send_conversation(&ours, far.as_fd()).expect("room");
        drop(far);
        let Received::Conversation(far) = receive_conversation(&theirs).expect("a message") else { panic!("no conversation") };
        near.write_all(b"hello").expect("room");
        let mut heard = [0; 5];
        File::from(far).read_exact(&mut heard).expect("five bytes");
        assert_eq!(&heard, b"hello");
        send_start(&ours, b"x").expect("room");
        assert!(matches!(receive_conversation(&theirs).expect("a message"), Received::Nothing));
        drop(ours);
        assert!(matches!(receive_conversation(&theirs).expect("the end"), Received::End));
    }
}
