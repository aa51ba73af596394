//! Messages between the keeper and a server: one line of text and at most one descriptor each,
//! over a SEQPACKET pair, which keeps their boundaries and what was sent by who is dead.

use std::io::{IoSlice, IoSliceMut};
use std::mem::MaybeUninit;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};

use rustix::io::Errno;
use rustix::net::{
    AddressFamily, RecvAncillaryBuffer, RecvAncillaryMessage, RecvFlags, SendAncillaryBuffer,
    SendAncillaryMessage, SendFlags, SocketFlags, SocketType, recvmsg, sendmsg,
};

/// The longest message: a path and what goes before it.
const LONGEST: usize = 8192;

/// What a program hears first that is started beside one that serves. Programs that do not know it
/// pass over it.
pub const CHECK: &str = "check";

/// What a server hears before it goes, if the one before it ended itself: by a fault or by giving up.
/// One that was killed tells less of what it was at. Programs that do not know it pass over it.
pub const CRASHED: &str = "crashed";

/// The same if the keeper killed it because it said nothing any more.
pub const SILENT: &str = "silent";

/// The two ends of a connection.
///
/// # Errors
/// There are no descriptors left.
pub fn pair() -> std::io::Result<(OwnedFd, OwnedFd)> {
    let flags = SocketFlags::CLOEXEC;
    Ok(rustix::net::socketpair(AddressFamily::UNIX, SocketType::SEQPACKET, flags, None)?)
}

/// Sends a message.
///
/// # Errors
/// The other side is gone.
pub fn send(to: BorrowedFd<'_>, text: &str, fd: Option<BorrowedFd<'_>>) -> Result<(), Errno> {
    let mut space = [MaybeUninit::uninit(); rustix::cmsg_space!(ScmRights(1))];
    let mut control = SendAncillaryBuffer::new(&mut space);
    let fds: Vec<_> = fd.into_iter().collect();
    if !fds.is_empty() {
        control.push(SendAncillaryMessage::ScmRights(&fds));
    }
    let text = text.get(..text.floor_char_boundary(LONGEST)).unwrap_or(text);
    loop {
        match sendmsg(to, &[IoSlice::new(text.as_bytes())], &mut control, SendFlags::NOSIGNAL) {
            Ok(_) => return Ok(()),
            Err(Errno::INTR) => {}
            Err(errno) => return Err(errno),
        }
    }
}

/// Receives a message; waits for it unless `flags` say otherwise. `None`: the other side is gone.
///
/// # Errors
/// EAGAIN when there is none and it was not to be waited for.
pub fn receive(
    from: impl AsFd,
    flags: RecvFlags,
) -> Result<Option<(String, Option<OwnedFd>)>, Errno> {
    let mut buffer = [0; LONGEST];
    let mut space = [MaybeUninit::uninit(); rustix::cmsg_space!(ScmRights(1))];
    let mut control = RecvAncillaryBuffer::new(&mut space);
    let message = loop {
        let mut parts = [IoSliceMut::new(&mut buffer)];
        match recvmsg(&from, &mut parts, &mut control, flags | RecvFlags::CMSG_CLOEXEC) {
            Ok(message) => break message,
            Err(Errno::INTR) => {}
            Err(Errno::CONNRESET) => return Ok(None),
            Err(errno) => return Err(errno),
        }
    };
    let mut fd = None;
    for part in control.drain() {
        if let RecvAncillaryMessage::ScmRights(mut fds) = part {
            fd = fds.next();
        }
    }
    if message.bytes == 0 {
        return Ok(None);
    }
    Ok(Some((String::from_utf8_lossy(&buffer[..message.bytes]).into_owned(), fd)))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn messages_outlive_their_sender() {
        let (near, far) = pair().unwrap();
        let file: OwnedFd = tempfile::tempfile().unwrap().into();
        send(near.as_fd(), "store a", Some(file.as_fd())).unwrap();
        send(near.as_fd(), "beat", None).unwrap();
        drop(near);
        let (text, fd) = receive(&far, RecvFlags::empty()).unwrap().unwrap();
        assert_eq!((text.as_str(), fd.is_some()), ("store a", true));
        let (text, fd) = receive(&far, RecvFlags::empty()).unwrap().unwrap();
        assert_eq!((text.as_str(), fd.is_some()), ("beat", false));
        assert!(receive(&far, RecvFlags::empty()).unwrap().is_none());
    }
}
