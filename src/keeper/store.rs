//! What the keeper holds: descriptors by name. systemd's store gets a copy of each, where there is
//! one, and gives them back when the keeper itself starts again.

use std::os::fd::{AsFd, BorrowedFd, OwnedFd};

use rustix::net::{AddressFamily, SendFlags, SocketAddrUnix, SocketFlags, SocketType};

/// Descriptors at most: each container has two, and each monitor of LXC one.
const MOST: usize = 16 << 10;

/// The descriptors, in the order in which they came.
#[derive(Debug, Default)]
pub(super) struct Store {
    held: Vec<(String, OwnedFd)>,
    manager: Option<Manager>,
}

impl Store {
    /// With what systemd kept, where there is a systemd that keeps.
    pub(super) fn open() -> Self {
        let held = inherited();
        Self { held, manager: Manager::find() }
    }

    /// Will somebody hold these when the keeper is gone?
    pub(super) fn outlives_us(&self) -> bool {
        self.manager.is_some()
    }

    /// Holds a descriptor. One of the same name is replaced.
    pub(super) fn put(&mut self, name: &str, fd: OwnedFd) {
        self.remove(name);
        if self.held.len() >= MOST {
            eprintln!("ambit: the keeper holds {MOST} descriptors already; {name} is not kept");
            return;
        }
        if let Some(manager) = &self.manager {
            manager.tell(&format!("FDSTORE=1\nFDNAME={name}\nFDPOLL=0"), Some(fd.as_fd()));
        }
        self.held.push((name.to_owned(), fd));
    }

    /// Lets go of one.
    pub(super) fn remove(&mut self, name: &str) {
        let before = self.held.len();
        self.held.retain(|(held, _)| held != name);
        if self.held.len() != before
            && let Some(manager) = &self.manager
        {
            manager.tell(&format!("FDSTOREREMOVE=1\nFDNAME={name}"), None);
        }
    }

    /// Lets go of all.
    pub(super) fn clear(&mut self) {
        for (name, _) in std::mem::take(&mut self.held) {
            if let Some(manager) = &self.manager {
                manager.tell(&format!("FDSTOREREMOVE=1\nFDNAME={name}"), None);
            }
        }
    }

    /// All of them.
    pub(super) fn iter(&self) -> impl Iterator<Item = (&str, BorrowedFd<'_>)> {
        self.held.iter().map(|(name, fd)| (name.as_str(), fd.as_fd()))
    }
}

/// What systemd passed on, by the names under which it was stored.
fn inherited() -> Vec<(String, OwnedFd)> {
    let own = |name: &str| std::env::var(name).ok();
    if own("LISTEN_PID").as_deref() != Some(&*std::process::id().to_string()) {
        return Vec::new();
    }
    let count: i32 = own("LISTEN_FDS").and_then(|count| count.parse().ok()).unwrap_or(0);
    let names = own("LISTEN_FDNAMES").unwrap_or_default();
    let names = names.split(':').map(str::to_owned);
    let fds = (3..).take(usize::try_from(count).unwrap_or(0));
    names.zip(fds).filter_map(|(name, fd)| Some((name, crate::sys::inherited::take(fd)?))).collect()
}

/// True if a service manager keeps for the next start what the keeper holds.
#[must_use]
pub fn has_manager() -> bool {
    Manager::find().is_some()
}

/// systemd, or who stands in for it.
#[derive(Debug)]
struct Manager {
    socket: OwnedFd,
    address: SocketAddrUnix,
}

impl Manager {
    /// Finds one that stores descriptors: systemd says how many in `FDSTORE` (version 254).
    fn find() -> Option<Self> {
        let most: u32 = std::env::var("FDSTORE").ok()?.parse().ok()?;
        let path = std::env::var("NOTIFY_SOCKET").ok().filter(|_| most > 0)?;
        let address = match path.strip_prefix('@') {
            Some(name) => SocketAddrUnix::new_abstract_name(name.as_bytes()).ok()?,
            None => SocketAddrUnix::new(path.as_str()).ok()?,
        };
        let flags = SocketFlags::CLOEXEC;
        let kind = SocketType::DGRAM;
        let socket = rustix::net::socket_with(AddressFamily::UNIX, kind, flags, None).ok()?;
        Some(Self { socket, address })
    }

    fn tell(&self, text: &str, fd: Option<BorrowedFd<'_>>) {
        use std::io::IoSlice;
        use std::mem::MaybeUninit;

        use rustix::net::{SendAncillaryBuffer, SendAncillaryMessage, sendmsg_addr};

        let mut space = [MaybeUninit::uninit(); rustix::cmsg_space!(ScmRights(1))];
        let mut control = SendAncillaryBuffer::new(&mut space);
        let fds: Vec<_> = fd.into_iter().collect();
        if !fds.is_empty() {
            control.push(SendAncillaryMessage::ScmRights(&fds));
        }
        let text = [IoSlice::new(text.as_bytes())];
        let flags = SendFlags::NOSIGNAL;
        if let Err(errno) = sendmsg_addr(&self.socket, &self.address, &text, &mut control, flags) {
            eprintln!("ambit: systemd does not take a descriptor: sendmsg: {errno}");
        }
    }
}
