//! The descriptors that the keeper holds, by name. systemd's file descriptor store gets a copy of
//! each, if there is one, and passes them on when the keeper itself is started again.

use std::os::fd::OwnedFd;
use std::os::unix::ffi::OsStrExt;
use std::path::Path;
use std::rc::Rc;

use ambit_kernel::output::stderr;

use super::manager::Manager;
use super::wire::ACTIVATED;

/// The most descriptors that are held: two for each container, one for each monitor of LXC.
const MAX_DESCRIPTORS: usize = 16 << 10;

/// The descriptors, in the order in which they were stored.
#[derive(Debug)]
pub(super) struct Store {
    held: Vec<(String, Rc<OwnedFd>)>,
    manager: Option<Manager>,
}

impl Store {
    /// Opens the store with the descriptors that systemd passed on, if any.
    pub(super) fn open() -> Self {
        Self { held: inherited(), manager: Manager::find() }
    }

    /// True if systemd holds the descriptors when the keeper has ended.
    pub(super) fn outlives_us(&self) -> bool {
        self.manager.as_ref().is_some_and(Manager::stores)
    }

    /// True if a server has left descriptors. The sockets of a socket unit do not count.
    pub(super) fn has_left(&self) -> bool {
        self.held.iter().any(|(name, _)| !name.starts_with(ACTIVATED))
    }

    /// Stores a descriptor. One of the same name is replaced.
    pub(super) fn put(&mut self, name: &str, fd: OwnedFd) {
        self.put_shared(name, Rc::new(fd));
    }

    /// Like [`Self::put`], with a descriptor that the keeper uses itself.
    pub(super) fn put_shared(&mut self, name: &str, fd: Rc<OwnedFd>) {
        self.remove(name);
        if self.held.len() >= MAX_DESCRIPTORS {
            stderr::line(&format!(
                "the keeper holds {MAX_DESCRIPTORS} descriptors already; {name} is not kept"
            ));
            return;
        }
        if let Some(manager) = self.manager.as_mut().filter(|manager| manager.stores()) {
            manager.notify(format!("FDSTORE=1\nFDNAME={name}\nFDPOLL=0"), Some(Rc::clone(&fd)));
        }
        self.held.push((name.to_owned(), fd));
    }

    /// Removes the descriptor of this name.
    pub(super) fn remove(&mut self, name: &str) {
        let before = self.held.len();
        self.held.retain(|(held, _)| held != name);
        if self.held.len() != before {
            self.forget(name);
        }
    }

    /// Removes all descriptors.
    pub(super) fn clear(&mut self) {
        for (name, _) in std::mem::take(&mut self.held) {
            self.forget(&name);
        }
    }

    fn forget(&mut self, name: &str) {
        if let Some(manager) = self.manager.as_mut().filter(|manager| manager.stores()) {
            manager.notify(format!("FDSTOREREMOVE=1\nFDNAME={name}"), None);
        }
    }

    /// Returns the descriptor of this name.
    pub(super) fn get(&self, name: &str) -> Option<&Rc<OwnedFd>> {
        self.held.iter().find(|(held, _)| held == name).map(|(_, fd)| fd)
    }

    /// Iterates over names and descriptors.
    pub(super) fn iter(&self) -> impl Iterator<Item = (&str, &Rc<OwnedFd>)> {
        self.held.iter().map(|(name, fd)| (name.as_str(), fd))
    }

    /// Sends a state of the service to the service manager, if there is one.
    pub(super) fn notify(&mut self, state: &str) {
        if let Some(manager) = &mut self.manager {
            manager.notify(state.to_owned(), None);
        }
    }

    /// True if no message to the service manager is pending.
    pub(super) fn is_flushed(&self) -> bool {
        self.manager.as_ref().is_none_or(Manager::is_flushed)
    }

    /// Sends the pending messages to the service manager. True if none is left.
    pub(super) fn flush(&mut self) -> bool {
        self.manager.as_mut().is_none_or(Manager::flush)
    }
}

/// Returns the descriptors that systemd passed on (sd_listen_fds_with_names(3)). The sockets of a
/// socket unit, which share one name, are named after their paths: `activated-control`.
fn inherited() -> Vec<(String, Rc<OwnedFd>)> {
    let own = |name: &str| std::env::var(name).ok();
    if own("LISTEN_PID").as_deref() != Some(&*std::process::id().to_string()) {
        return Vec::new();
    }
    let count: i32 = own("LISTEN_FDS").and_then(|count| count.parse().ok()).unwrap_or(0);
    let names = own("LISTEN_FDNAMES").unwrap_or_default();
    let names = names.split(':').map(str::to_owned);
    let fds = (3..).take(usize::try_from(count).unwrap_or(0));
    let own = |(name, fd): (String, i32)| {
        let fd = ambit_kernel::sys::inherited::take(fd)?;
        let name = if name.ends_with(".socket") { activated_name(&fd)? } else { name };
        Some((name, Rc::new(fd)))
    };
    names.zip(fds).filter_map(own).collect()
}

/// Returns the name under which the socket of a socket unit is held.
fn activated_name(fd: &OwnedFd) -> Option<String> {
    let address: rustix::net::SocketAddrUnix =
        rustix::net::getsockname(fd).ok()?.try_into().ok()?;
    let path = Path::new(std::ffi::OsStr::from_bytes(address.path_bytes()?));
    Some(format!("{ACTIVATED}{}", path.file_stem()?.to_str()?))
}

/// True if a service manager holds the keeper's descriptors for the next start.
#[must_use]
pub fn has_manager() -> bool {
    Manager::find().is_some_and(|manager| manager.stores())
}
