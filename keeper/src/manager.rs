//! The service manager (sd_notify(3)), which gets the state of the service and descriptors to
//! store.
//!
//! Sending blocks for up to [`SEND_TIMEOUT`], because what the service manager does not have yet is
//! lost if the keeper is killed. What it does not take in that time is sent later, in order and
//! without blocking.

use std::collections::VecDeque;
use std::os::fd::{AsFd, OwnedFd};
use std::rc::Rc;
use std::time::Duration;

use rustix::io::Errno;
use rustix::net::sockopt::{Timeout, set_socket_timeout};
use rustix::net::{AddressFamily, SendFlags, SocketAddrUnix, SocketFlags, SocketType};

use ambit_kernel::channel;
use ambit_kernel::output::stderr;

/// How long sending a message may block.
const SEND_TIMEOUT: Duration = Duration::from_millis(500);

/// The connection to systemd, or to another service manager with its protocol.
#[derive(Debug)]
pub(super) struct Manager {
    socket: OwnedFd,
    address: SocketAddrUnix,
    stores: bool,
    waiting: VecDeque<(String, Option<Rc<OwnedFd>>)>,
}

impl Manager {
    /// Finds the service manager that started this process, by `NOTIFY_SOCKET`. `FDSTORE` has the
    /// number of descriptors that systemd stores (since version 254).
    pub(super) fn find() -> Option<Self> {
        let path = std::env::var("NOTIFY_SOCKET").ok()?;
        let most = std::env::var("FDSTORE").ok().and_then(|most| most.parse::<u32>().ok());
        Self::at(&path, most.is_some_and(|most| most > 0))
    }

    fn at(path: &str, stores: bool) -> Option<Self> {
        let address = match path.strip_prefix('@') {
            Some(name) => SocketAddrUnix::new_abstract_name(name.as_bytes()).ok()?,
            None => SocketAddrUnix::new(path).ok()?,
        };
        let flags = SocketFlags::CLOEXEC;
        let kind = SocketType::DGRAM;
        let socket = rustix::net::socket_with(AddressFamily::UNIX, kind, flags, None).ok()?;
        let _ = set_socket_timeout(&socket, Timeout::Send, Some(SEND_TIMEOUT));
        Some(Self { socket, address, stores, waiting: VecDeque::new() })
    }

    /// True if the service manager stores descriptors.
    pub(super) fn stores(&self) -> bool {
        self.stores
    }

    /// True if no message is pending.
    pub(super) fn is_flushed(&self) -> bool {
        self.waiting.is_empty()
    }

    /// Sends a message, now or later. A removal cancels the pending messages of the same name.
    pub(super) fn notify(&mut self, text: String, fd: Option<Rc<OwnedFd>>) {
        if let Some(removed) = text.strip_prefix("FDSTOREREMOVE=1\n") {
            let of_it = |text: &str| text.lines().any(|line| line == removed);
            self.waiting.retain(|(earlier, _)| !of_it(earlier));
        }
        let taken =
            self.waiting.is_empty() && self.send(&text, fd.as_ref(), SendFlags::empty()).is_ok();
        if !taken {
            self.waiting.push_back((text, fd));
            self.flush();
        }
    }

    /// Sends the pending messages. True if none is left.
    pub(super) fn flush(&mut self) -> bool {
        while let Some((text, fd)) = self.waiting.front() {
            match self.send(text, fd.as_ref(), SendFlags::DONTWAIT) {
                // EAGAIN: its queue is full. ECONNREFUSED, ENOENT: systemd is in daemon-reexec.
                Err(Errno::AGAIN | Errno::INTR | Errno::TOOMANYREFS | Errno::NOMEM) => {
                    return false;
                }
                Err(Errno::CONNREFUSED | Errno::NOENT) if fd.is_some() => return false,
                Err(errno) => {
                    let first = text.lines().next().unwrap_or_default();
                    let said =
                        format!("the service manager does not take {first}: sendmsg: {errno}");
                    stderr::line(&said);
                }
                Ok(()) => {}
            }
            self.waiting.pop_front();
        }
        true
    }

    fn send(&self, text: &str, fd: Option<&Rc<OwnedFd>>, flags: SendFlags) -> Result<(), Errno> {
        let fds: Vec<_> = fd.into_iter().map(|fd| fd.as_fd()).collect();
        channel::send_to(&self.socket, &self.address, text.as_bytes(), &fds, flags)
    }
}

#[cfg(test)]
mod tests {
    use std::os::unix::net::UnixDatagram;

    use super::*;

    #[test]
    fn messages_to_a_manager_that_does_not_read_are_sent_later() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("notify");
        let socket = UnixDatagram::bind(&path).unwrap();
        socket.set_nonblocking(true).unwrap();
        let mut manager = Manager::at(path.to_str().unwrap(), true).unwrap();
        let file = Rc::new(OwnedFd::from(tempfile::tempfile().unwrap()));
        for number in 0..2000 {
            manager.notify(number.to_string(), Some(Rc::clone(&file)));
        }
        assert!(!manager.waiting.is_empty());
        let mut buffer = [0; 16];
        for number in 0..2000 {
            manager.flush();
            let read = socket.recv(&mut buffer).unwrap();
            assert_eq!(buffer[..read], *number.to_string().as_bytes());
        }
        assert!(manager.flush());
    }
}
