//! The service manager (`sd_notify(3)`): is told the state of the service, and given descriptors to
//! store. Telling waits for a moment at most, because what it does not have yet is lost if the keeper
//! is killed. What it does not take in that time is told later, in order and without waiting.

use std::collections::VecDeque;
use std::os::fd::{AsFd, OwnedFd};
use std::rc::Rc;
use std::time::Duration;

use rustix::io::Errno;
use rustix::net::sockopt::{Timeout, set_socket_timeout};
use rustix::net::{AddressFamily, SendFlags, SocketAddrUnix, SocketFlags, SocketType};

use ambit_kernel::channel;
use ambit_kernel::output::stderr;

/// How long it may take to take something.
const MOMENT: Duration = Duration::from_millis(500);

/// systemd, or what stands in for it.
#[derive(Debug)]
pub(super) struct Manager {
    socket: OwnedFd,
    address: SocketAddrUnix,
    stores: bool,
    waiting: VecDeque<(String, Option<Rc<OwnedFd>>)>,
}

impl Manager {
    /// The one that started this process. systemd says in `FDSTORE` how many descriptors it stores
    /// (version 254).
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
        let _ = set_socket_timeout(&socket, Timeout::Send, Some(MOMENT));
        Some(Self { socket, address, stores, waiting: VecDeque::new() })
    }

    /// True if it stores descriptors.
    pub(super) fn stores(&self) -> bool {
        self.stores
    }

    /// True if nothing is left to tell.
    pub(super) fn has_told(&self) -> bool {
        self.waiting.is_empty()
    }

    /// Tells it something. What is removed need not be stored before.
    pub(super) fn tell(&mut self, text: String, fd: Option<Rc<OwnedFd>>) {
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

    /// Tells what it did not take before. True if nothing is left.
    pub(super) fn flush(&mut self) -> bool {
        while let Some((text, fd)) = self.waiting.front() {
            match self.send(text, fd.as_ref(), SendFlags::DONTWAIT) {
                // EAGAIN: its queue is full. ECONNREFUSED, ENOENT: it is being executed anew.
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
    fn a_manager_that_does_not_read_is_not_waited_for_and_is_told_later() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("notify");
        let socket = UnixDatagram::bind(&path).unwrap();
        socket.set_nonblocking(true).unwrap();
        let mut manager = Manager::at(path.to_str().unwrap(), true).unwrap();
        let file = Rc::new(OwnedFd::from(tempfile::tempfile().unwrap()));
        for number in 0..2000 {
            manager.tell(number.to_string(), Some(Rc::clone(&file)));
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
