//! What the keeper holds: descriptors by name. systemd's store gets a copy of each, where there is
//! one, and gives them back when the keeper itself starts again.

use std::os::fd::OwnedFd;
use std::rc::Rc;

use ambit_kernel::output::stderr;

use super::manager::Manager;

/// Descriptors at most: each container has two, and each monitor of LXC one.
const MOST: usize = 16 << 10;

/// The descriptors, in the order in which they came.
#[derive(Debug)]
pub(super) struct Store {
    held: Vec<(String, Rc<OwnedFd>)>,
    manager: Option<Manager>,
}

impl Store {
    /// With what systemd kept, where there is a systemd that keeps.
    pub(super) fn open() -> Self {
        Self { held: inherited(), manager: Manager::find() }
    }

    /// True if another process holds these when the keeper is gone.
    pub(super) fn outlives_us(&self) -> bool {
        self.manager.as_ref().is_some_and(Manager::stores)
    }

    /// True if nothing is held.
    pub(super) fn is_empty(&self) -> bool {
        self.held.is_empty()
    }

    /// Holds a descriptor. One of the same name is replaced.
    pub(super) fn put(&mut self, name: &str, fd: OwnedFd) {
        self.put_shared(name, Rc::new(fd));
    }

    /// The same with a descriptor that the keeper uses itself.
    pub(super) fn put_shared(&mut self, name: &str, fd: Rc<OwnedFd>) {
        self.remove(name);
        if self.held.len() >= MOST {
            stderr::line(&format!(
                "the keeper holds {MOST} descriptors already; {name} is not kept"
            ));
            return;
        }
        if let Some(manager) = self.manager.as_mut().filter(|manager| manager.stores()) {
            manager.tell(format!("FDSTORE=1\nFDNAME={name}\nFDPOLL=0"), Some(Rc::clone(&fd)));
        }
        self.held.push((name.to_owned(), fd));
    }

    /// Lets go of one.
    pub(super) fn remove(&mut self, name: &str) {
        let before = self.held.len();
        self.held.retain(|(held, _)| held != name);
        if self.held.len() != before {
            self.forget(name);
        }
    }

    /// Lets go of all.
    pub(super) fn clear(&mut self) {
        for (name, _) in std::mem::take(&mut self.held) {
            self.forget(&name);
        }
    }

    fn forget(&mut self, name: &str) {
        if let Some(manager) = self.manager.as_mut().filter(|manager| manager.stores()) {
            manager.tell(format!("FDSTOREREMOVE=1\nFDNAME={name}"), None);
        }
    }

    /// The one of this name.
    pub(super) fn get(&self, name: &str) -> Option<&Rc<OwnedFd>> {
        self.held.iter().find(|(held, _)| held == name).map(|(_, fd)| fd)
    }

    /// All of them.
    pub(super) fn iter(&self) -> impl Iterator<Item = (&str, &Rc<OwnedFd>)> {
        self.held.iter().map(|(name, fd)| (name.as_str(), fd))
    }

    /// Tells the service manager about the service, where there is one.
    pub(super) fn notify(&mut self, state: &str) {
        if let Some(manager) = &mut self.manager {
            manager.tell(state.to_owned(), None);
        }
    }

    /// True if the service manager knows everything.
    pub(super) fn has_told(&self) -> bool {
        self.manager.as_ref().is_none_or(Manager::has_told)
    }

    /// Tells the service manager what it did not take before. True if it knows everything then.
    pub(super) fn flush(&mut self) -> bool {
        self.manager.as_mut().is_none_or(Manager::flush)
    }
}

/// What systemd passed on, by the names under which it was stored.
fn inherited() -> Vec<(String, Rc<OwnedFd>)> {
    let own = |name: &str| std::env::var(name).ok();
    if own("LISTEN_PID").as_deref() != Some(&*std::process::id().to_string()) {
        return Vec::new();
    }
    let count: i32 = own("LISTEN_FDS").and_then(|count| count.parse().ok()).unwrap_or(0);
    let names = own("LISTEN_FDNAMES").unwrap_or_default();
    let names = names.split(':').map(str::to_owned);
    let fds = (3..).take(usize::try_from(count).unwrap_or(0));
    let own = |(name, fd)| Some((name, Rc::new(ambit_kernel::sys::inherited::take(fd)?)));
    names.zip(fds).filter_map(own).collect()
}

/// True if a service manager keeps for the next start what the keeper holds.
#[must_use]
pub fn has_manager() -> bool {
    Manager::find().is_some_and(|manager| manager.stores())
}
