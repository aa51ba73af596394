//! Messages with descriptors over Unix sockets.
//!
//! [`Channel`] is for two processes of this program: it sends values of one type and receives values
//! of one type over a SOCK_SEQPACKET pair, which keeps messages whole. A peer that ended is an end of
//! file, never a hang. [`send`] and [`receive`] are the level below, for peers whose format is not
//! ours to choose. Nothing here looks into what a message means.

use std::io::{IoSlice, IoSliceMut};
use std::marker::PhantomData;
use std::mem::MaybeUninit;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};

use rustix::io::Errno;
use rustix::net::{
    AddressFamily, RecvAncillaryBuffer, RecvAncillaryMessage, RecvFlags, ReturnFlags,
    SendAncillaryBuffer, SendAncillaryMessage, SendFlags, SocketAddrUnix, SocketFlags, SocketType,
    recvmsg, sendmsg, sendmsg_addr,
};
use serde::Serialize;
use serde::de::DeserializeOwned;

/// The most descriptors that one message may have.
pub const MAX_DESCRIPTORS: usize = 48;

/// The longest value of a [`Channel`], in bytes.
const MAX_LENGTH: usize = 64 << 10;

/// What arrived by [`receive`].
#[derive(Debug)]
pub struct Received {
    /// The number of bytes. 0: the peer has closed its end.
    pub length: usize,
    /// The descriptors, with `FD_CLOEXEC` set.
    pub fds: Vec<OwnedFd>,
    /// The message had more bytes than the buffer.
    pub is_cut: bool,
    /// The message had more descriptors than [`MAX_DESCRIPTORS`], or this process had no number left
    /// for one of them.
    pub has_lost_fds: bool,
}

/// Returns the two ends of a new connection that keeps the boundaries of messages.
pub fn pair() -> Result<(OwnedFd, OwnedFd), Errno> {
    let (kind, flags) = (SocketType::SEQPACKET, SocketFlags::CLOEXEC);
    rustix::net::socketpair(AddressFamily::UNIX, kind, flags, None)
}

/// Sends bytes with descriptors. A peer that is gone raises no SIGPIPE.
///
/// # Errors
/// What sendmsg(2) says; E2BIG for more than [`MAX_DESCRIPTORS`].
pub fn send(
    socket: impl AsFd,
    bytes: &[u8],
    fds: &[BorrowedFd<'_>],
    flags: SendFlags,
) -> Result<(), Errno> {
    with_fds(fds, |control| {
        sendmsg(&socket, &[IoSlice::new(bytes)], control, flags | SendFlags::NOSIGNAL)
    })
}

/// Sends bytes with descriptors to an address. The socket need not be connected.
pub fn send_to(
    socket: impl AsFd,
    address: &SocketAddrUnix,
    bytes: &[u8],
    fds: &[BorrowedFd<'_>],
    flags: SendFlags,
) -> Result<(), Errno> {
    let flags = flags | SendFlags::NOSIGNAL;
    with_fds(fds, |control| sendmsg_addr(&socket, address, &[IoSlice::new(bytes)], control, flags))
}

fn with_fds(
    fds: &[BorrowedFd<'_>],
    mut send: impl FnMut(&mut SendAncillaryBuffer<'_, '_, '_>) -> Result<usize, Errno>,
) -> Result<(), Errno> {
    let mut space = [MaybeUninit::uninit(); rustix::cmsg_space!(ScmRights(MAX_DESCRIPTORS))];
    let mut control = SendAncillaryBuffer::new(&mut space);
    // The space is rounded up: one more may fit.
    if fds.len() > MAX_DESCRIPTORS {
        return Err(Errno::TOOBIG);
    }
    if !fds.is_empty() {
        control.push(SendAncillaryMessage::ScmRights(fds));
    }
    rustix::io::retry_on_intr(|| send(&mut control)).map(drop)
}

/// Receives bytes and descriptors; waits for them unless `flags` say otherwise.
///
/// # Errors
/// What recvmsg(2) says.
pub fn receive(socket: impl AsFd, buffer: &mut [u8], flags: RecvFlags) -> Result<Received, Errno> {
    let mut space = [MaybeUninit::uninit(); rustix::cmsg_space!(ScmRights(MAX_DESCRIPTORS))];
    let mut control = RecvAncillaryBuffer::new(&mut space);
    let flags = flags | RecvFlags::CMSG_CLOEXEC;
    let message = loop {
        match recvmsg(&socket, &mut [IoSliceMut::new(buffer)], &mut control, flags) {
            Err(Errno::INTR) => {}
            other => break other?,
        }
    };
    let mut fds = Vec::new();
    for part in control.drain() {
        if let RecvAncillaryMessage::ScmRights(rights) = part {
            fds.extend(rights);
        }
    }
    let (length, is_cut) = (message.bytes, message.flags.contains(ReturnFlags::TRUNC));
    let has_lost_fds = message.flags.contains(ReturnFlags::CTRUNC) || fds.len() > MAX_DESCRIPTORS;
    Ok(Received { length, fds, is_cut, has_lost_fds })
}

/// Why a value was not sent or received.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    /// The peer is gone, or this process has no room.
    #[error("sendmsg: {0}")]
    Send(#[source] Errno),
    /// The message was cut, or this process has no room.
    #[error("recvmsg: {0}")]
    Receive(#[source] Errno),
    /// The value has more bytes than a message may have.
    #[error("a message of {0} bytes is too long: {MAX_LENGTH} are allowed")]
    Long(usize),
    /// The bytes are no value of the type that was expected.
    #[error("a message is malformed: {0}")]
    Malformed(postcard::Error),
}

/// One end of a connection between two processes of this program, which sends `S` and receives `R`.
#[derive(Debug)]
pub struct Channel<S, R = S> {
    socket: OwnedFd,
    values: PhantomData<fn(S) -> R>,
}

impl<S: Serialize, R: DeserializeOwned> Channel<S, R> {
    /// Returns the two ends of a new connection.
    pub fn pair() -> Result<(Self, Channel<R, S>), Errno> {
        let (one, other) = pair()?;
        Ok((one.into(), other.into()))
    }

    /// Sends a value and the descriptors that belong to it. Waits while the peer does not read.
    pub fn send(&self, value: &S, fds: &[BorrowedFd<'_>]) -> Result<(), Error> {
        let bytes = postcard::to_allocvec(value).map_err(Error::Malformed)?;
        if bytes.len() > MAX_LENGTH {
            return Err(Error::Long(bytes.len()));
        }
        send(&self.socket, &bytes, fds, SendFlags::empty()).map_err(Error::Send)
    }

    /// Waits for a value. `None`: the peer has closed its end.
    ///
    /// # Errors
    /// The message is malformed, or was cut (EMSGSIZE). The descriptors that arrived are closed then.
    pub fn receive(&self) -> Result<Option<(R, Vec<OwnedFd>)>, Error> {
        let mut bytes = vec![0; MAX_LENGTH];
        let received = match receive(&self.socket, &mut bytes, RecvFlags::empty()) {
            Err(Errno::CONNRESET) => return Ok(None),
            other => other.map_err(Error::Receive)?,
        };
        if received.is_cut || received.has_lost_fds {
            return Err(Error::Receive(Errno::MSGSIZE));
        }
        // A value has one byte at least if there are two values of its type.
        if received.length == 0 {
            return Ok(None);
        }
        let value = postcard::from_bytes(&bytes[..received.length]).map_err(Error::Malformed)?;
        Ok(Some((value, received.fds)))
    }
}

impl<S, R> From<OwnedFd> for Channel<S, R> {
    fn from(socket: OwnedFd) -> Self {
        Self { socket, values: PhantomData }
    }
}

impl<S, R> From<Channel<S, R>> for OwnedFd {
    fn from(channel: Channel<S, R>) -> Self {
        channel.socket
    }
}

impl<S, R> AsFd for Channel<S, R> {
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.socket.as_fd()
    }
}

#[cfg(test)]
mod tests {
    use std::io::Read;

    use serde::Deserialize;

    use super::*;

    #[derive(Debug, PartialEq, Serialize, Deserialize)]
    enum Word {
        Text(String),
        Done,
    }

    fn words() -> (Channel<Word>, Channel<Word>) {
        Channel::pair().unwrap()
    }

    #[test]
    fn values_and_descriptors_arrive() {
        let (one, other) = words();
        let (mut reader, writer) = std::io::pipe().unwrap();
        one.send(&Word::Text("proc/meminfo".into()), &[writer.as_fd(), one.as_fd()]).unwrap();
        one.send(&Word::Done, &[]).unwrap();
        drop(writer);
        let (word, fds) = other.receive().unwrap().unwrap();
        assert_eq!((word, fds.len()), (Word::Text("proc/meminfo".into()), 2));
        for fd in &fds {
            let flags = rustix::io::fcntl_getfd(fd).unwrap();
            assert!(flags.contains(rustix::io::FdFlags::CLOEXEC));
        }
        assert_eq!(other.receive().unwrap().unwrap().0, Word::Done);
        drop(fds);
        assert_eq!(reader.read(&mut [0]).unwrap(), 0);
    }

    #[test]
    fn a_dead_peer_is_the_end_and_not_a_hang() {
        let (one, other) = words();
        drop(one);
        assert!(other.receive().unwrap().is_none());
        assert!(matches!(other.send(&Word::Done, &[]), Err(Error::Send(Errno::PIPE))));
        // One that has left a message unread.
        let (one, other) = words();
        other.send(&Word::Done, &[]).unwrap();
        drop(one);
        assert!(other.receive().unwrap().is_none());
    }

    #[test]
    fn what_is_too_long_is_neither_sent_nor_received() {
        let (one, other) = words();
        let long = Word::Text("x".repeat(MAX_LENGTH));
        assert!(matches!(one.send(&long, &[]), Err(Error::Long(_))));
        send(&one, &vec![0; MAX_LENGTH + 1], &[], SendFlags::empty()).unwrap();
        assert!(matches!(other.receive(), Err(Error::Receive(Errno::MSGSIZE))));
        let many = vec![one.as_fd(); MAX_DESCRIPTORS + 1];
        assert!(matches!(one.send(&Word::Done, &many), Err(Error::Send(Errno::TOOBIG))));
    }

    #[test]
    fn descriptors_beyond_the_bound_are_closed_and_an_error() {
        let (one, other) = words();
        let (mut reader, writer) = std::io::pipe().unwrap();
        {
            let all = vec![writer.as_fd(); MAX_DESCRIPTORS + 10];
            let mut space = [MaybeUninit::uninit(); rustix::cmsg_space!(ScmRights(100))];
            let mut control = SendAncillaryBuffer::new(&mut space);
            assert!(control.push(SendAncillaryMessage::ScmRights(&all)));
            sendmsg(&one, &[IoSlice::new(&[1])], &mut control, SendFlags::empty()).unwrap();
        }
        assert!(matches!(other.receive(), Err(Error::Receive(Errno::MSGSIZE))));
        drop(writer);
        assert_eq!(reader.read(&mut [0]).unwrap(), 0);
    }

    #[test]
    fn bytes_that_are_no_value_are_an_error() {
        let (one, other) = words();
        send(&one, &[9], &[], SendFlags::empty()).unwrap();
        assert!(matches!(other.receive(), Err(Error::Malformed(_))));
    }
}
