//! Messages between the keeper and a server: one line of text and at most one descriptor each, over
//! a SEQPACKET pair. It keeps message boundaries, and what a dead sender sent can still be read.
//!
//! Sending never blocks, because the peer may be stopped (SIGSTOP). Messages that do not fit into
//! the socket wait in an [`Outbox`].

use std::collections::VecDeque;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};

use ambit_kernel::channel;
pub(crate) use ambit_kernel::channel::pair;
use rustix::io::Errno;
use rustix::net::{RecvFlags, SendFlags};

/// The longest message in bytes: a command and a path.
const MAX_LENGTH: usize = 8192;

/// The first message to a candidate, a new program that is started beside the server: check
/// yourself. Programs that do not know it ignore it.
pub const CHECK: &str = "check";

/// Sent before `go` if the previous server ended itself, by a fatal signal of its own or with an
/// error. The crash guard needs it: a server that was killed did not crash because of a request.
/// Programs that do not know it ignore it.
pub const CRASHED: &str = "crashed";

/// Sent before `go` if the keeper killed the previous server because it sent nothing any more.
pub const SILENT: &str = "silent";

/// An early message to a server, with the text of the last good configuration: it is used if the
/// file on disk is invalid.
pub const CONFIGURATION: &str = "configuration";

/// Like [`CONFIGURATION`], but the text is used instead of the file on disk, because servers with
/// that file died early.
pub const INSTEAD: &str = "configuration-instead";

/// Sent by a server, with the text of the configuration that it has read from disk.
pub const CONFIGURED: &str = "configured";

/// The socket of the server's broker, and the number of brokers that were replaced. Without a
/// descriptor, the broker is not started yet.
pub const BROKER: &str = "broker";

/// The prefix of the names of sockets that a socket unit holds, before `control`, `oci` or `lxc`.
pub const ACTIVATED: &str = "activated-";

/// Sends a message.
///
/// # Errors
/// The peer has closed the connection, or the socket's buffer is full (EAGAIN).
pub fn send(to: BorrowedFd<'_>, text: &str, fd: Option<BorrowedFd<'_>>) -> Result<(), Errno> {
    let fds: Vec<_> = fd.into_iter().collect();
    let text = text.get(..text.floor_char_boundary(MAX_LENGTH)).unwrap_or(text);
    channel::send(to, text.as_bytes(), &fds, SendFlags::DONTWAIT)
}

/// Messages that wait until the peer reads, in order.
///
/// A later `store` or `remove` of a name replaces the earlier one. So there are at most as many
/// messages as names that changed, however long the peer does not read.
#[derive(Debug)]
pub struct Outbox<F>(VecDeque<(String, Option<F>)>);

impl<F> Default for Outbox<F> {
    fn default() -> Self {
        Self(VecDeque::new())
    }
}

impl<F: AsFd> Outbox<F> {
    /// True if no message waits.
    #[must_use]
    pub fn is_empty(&self) -> bool {
        self.0.is_empty()
    }

    /// Adds a message.
    pub fn push(&mut self, text: String, fd: Option<F>) {
        if let Some(name) = name_of(&text) {
            self.0.retain(|(earlier, _)| name_of(earlier) != Some(name));
        }
        self.0.push_back((text, fd));
    }

    /// Sends as many messages as the socket takes. True if none is left.
    ///
    /// # Errors
    /// The peer has closed the connection.
    pub fn flush(&mut self, to: BorrowedFd<'_>) -> Result<bool, Errno> {
        while let Some((text, fd)) = self.0.front() {
            match send(to, text, fd.as_ref().map(AsFd::as_fd)) {
                Ok(()) => drop(self.0.pop_front()),
                // ETOOMANYREFS: too many descriptors are in flight.
                Err(Errno::AGAIN | Errno::TOOMANYREFS | Errno::NOMEM | Errno::NOBUFS) => {
                    return Ok(false);
                }
                Err(errno) => return Err(errno),
            }
        }
        Ok(true)
    }
}

/// The name that a message stores or removes.
fn name_of(text: &str) -> Option<&str> {
    text.strip_prefix("store ").or_else(|| text.strip_prefix("remove "))
}

/// Receives a message, and blocks unless `flags` has `DONTWAIT`. `None` if the peer has closed the
/// connection.
///
/// # Errors
/// EAGAIN if there is no message, with `DONTWAIT`.
pub fn receive(
    from: impl AsFd,
    flags: RecvFlags,
) -> Result<Option<(String, Option<OwnedFd>)>, Errno> {
    let mut buffer = [0; MAX_LENGTH];
    let received = match channel::receive(from, &mut buffer, flags) {
        Err(Errno::CONNRESET) => return Ok(None),
        other => other?,
    };
    if received.length == 0 {
        return Ok(None);
    }
    let text = String::from_utf8_lossy(&buffer[..received.length]).into_owned();
    Ok(Some((text, received.fds.into_iter().next())))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_peer_that_does_not_read_blocks_nothing_and_misses_nothing() {
        let (near, far) = pair().unwrap();
        let mut outbox = Outbox::default();
        let file = || Some(OwnedFd::from(tempfile::tempfile().unwrap()));
        for number in 0..1000 {
            outbox.push(format!("store {number}"), None);
            let _ = outbox.flush(near.as_fd()).unwrap();
        }
        assert!(!outbox.is_empty());
        let waiting = outbox.0.len();
        for _ in 0..100 {
            outbox.push("store again".to_owned(), file());
            outbox.push("remove again".to_owned(), None);
        }
        outbox.push("store again".to_owned(), file());
        assert_eq!(outbox.0.len(), waiting + 1);
        let mut received = Vec::new();
        while received.len() < 1001 {
            let _ = outbox.flush(near.as_fd()).unwrap();
            received.push(receive(&far, RecvFlags::DONTWAIT).unwrap().unwrap());
        }
        let names = (0..1000).map(|number| format!("store {number}"));
        assert!(
            names.chain(["store again".to_owned()]).eq(received.iter().map(|(t, _)| t.clone()))
        );
        assert!(received.pop().unwrap().1.is_some());
        rustix::net::shutdown(&far, rustix::net::Shutdown::Both).unwrap();
        outbox.push("beat".to_owned(), None);
        assert!(outbox.flush(near.as_fd()).is_err());
    }

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
