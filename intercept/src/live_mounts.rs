//! How many filesystems that were mounted for a container still exist.
//!
//! Each superblock's root has a watch of one inotify instance. A watch keeps neither the mount nor
//! the superblock, and the kernel removes it together with the superblock, wherever in the container
//! that was mounted last. So the watches that there are, are the filesystems that there are. Those of
//! helpers cannot be watched, because only their own users may look at them; the kernel lists them
//! (`ambit_kernel::sys::fuse_connections`). A daemon that starts anew counts from nothing: watches end with the process.

use std::collections::{BTreeSet, HashMap, HashSet};
use std::os::fd::{AsFd, AsRawFd, BorrowedFd, OwnedFd};
use std::sync::{Mutex, MutexGuard, OnceLock, PoisonError};

use rustix::fs::inotify::{self, CreateFlags};

use ambit_kernel::sys::fuse_connections::{Connection, Connections};
use ambit_kernel::text;

/// The filesystems of all containers.
#[derive(Debug, Default)]
pub(super) struct LiveMounts {
    watches: OnceLock<OwnedFd>,
    connections: OnceLock<Connections>,
    owners: Mutex<Owners>,
}

#[derive(Debug, Default)]
struct Owners {
    /// Whose filesystem a watch is on. Containers that mount the same image have the same one.
    of: BTreeSet<(u64, String)>,
    /// Whose filesystem is served by a helper.
    helpers: Vec<(Connection, String)>,
    /// Mounts under way.
    coming: HashMap<String, usize>,
}

/// Room for one more.
#[derive(Debug)]
pub(super) struct Place<'a> {
    all: &'a LiveMounts,
    container: &'a str,
}

impl LiveMounts {
    /// Room for one more filesystem of a container. `None`: it has as many as it may.
    ///
    /// # Errors
    /// They cannot be counted.
    pub(super) fn place<'a>(
        &'a self,
        container: &'a str,
        most: usize,
    ) -> std::io::Result<Option<Place<'a>>> {
        let mut owners = self.lock();
        let watches = self.watches()?;
        let live = live(watches)?;
        owners.of.retain(|(watch, _)| live.contains(watch));
        if !owners.helpers.is_empty() {
            let connections = self.connections()?;
            owners.helpers.retain(|(connection, _)| connections.has(*connection));
        }
        let helpers = owners.helpers.iter().map(|(_, owner)| owner);
        let watched = owners.of.iter().map(|(_, owner)| owner);
        let mounted = watched.chain(helpers).filter(|one| *one == container).count();
        let coming = owners.coming.get(container).copied().unwrap_or(0);
        if mounted + coming >= most {
            return Ok(None);
        }
        *owners.coming.entry(container.to_owned()).or_default() += 1;
        Ok(Some(Place { all: self, container }))
    }

    fn watches(&self) -> std::io::Result<&OwnedFd> {
        if self.watches.get().is_none() {
            let _ = self.watches.set(inotify::init(CreateFlags::CLOEXEC | CreateFlags::NONBLOCK)?);
        }
        self.watches.get().ok_or_else(|| std::io::ErrorKind::NotFound.into())
    }

    fn connections(&self) -> std::io::Result<&Connections> {
        if self.connections.get().is_none() {
            let _ = self.connections.set(Connections::open()?);
        }
        self.connections.get().ok_or_else(|| std::io::ErrorKind::NotFound.into())
    }

    fn lock(&self) -> MutexGuard<'_, Owners> {
        self.owners.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Place<'_> {
    /// The inotify instance that is to watch the filesystem's root.
    pub(super) fn watches(&self) -> std::io::Result<BorrowedFd<'_>> {
        self.all.watches().map(AsFd::as_fd)
    }

    /// The filesystem is there, and has this watch.
    pub(super) fn taken(&self, watch: u64) {
        self.all.lock().of.insert((watch, self.container.to_owned()));
    }

    /// The filesystem is there, on this device, and a helper serves it.
    ///
    /// # Errors
    /// It cannot be counted.
    pub(super) fn served(&self, device: u64) -> std::io::Result<()> {
        // What was unmounted already, or is none of FUSE, is not in the list.
        if let Some(connection) = self.all.connections()?.of(device) {
            self.all.lock().helpers.push((connection, self.container.to_owned()));
        }
        Ok(())
    }
}

impl Drop for Place<'_> {
    fn drop(&mut self) {
        let mut owners = self.all.lock();
        if let Some(coming) = owners.coming.get_mut(self.container) {
            *coming -= 1;
            if *coming == 0 {
                owners.coming.remove(self.container);
            }
        }
    }
}

/// The watches that the kernel still has.
fn live(watches: &OwnedFd) -> std::io::Result<HashSet<u64>> {
    // What they have reported only takes room.
    let mut events = [0; 4096];
    while rustix::io::read(watches, &mut events).is_ok_and(|length| length > 0) {}
    let text = std::fs::read(format!("/proc/self/fdinfo/{}", watches.as_raw_fd()))?;
    Ok(text::watches::parse(&text))
}

#[cfg(test)]
mod tests {
    use rustix::fs::inotify::{WatchFlags, add_watch, remove_watch};

    use super::*;

    #[test]
    fn a_place_is_free_again_when_its_filesystem_is_gone() {
        let all = LiveMounts::default();
        let folder = std::env::temp_dir();
        let one = all.place("a", 1).unwrap().unwrap();
        assert!(all.place("a", 1).unwrap().is_none(), "it is coming");
        let watch = add_watch(one.watches().unwrap(), &folder, WatchFlags::DELETE_SELF).unwrap();
        one.taken(u64::try_from(watch).unwrap());
        drop(one);
        assert!(all.place("a", 1).unwrap().is_none(), "it is there");
        assert!(all.place("a", 2).unwrap().is_some());
        assert!(all.place("b", 1).unwrap().is_some(), "another container");
        let other = all.place("b", 1).unwrap().unwrap();
        other.taken(u64::try_from(watch).unwrap());
        drop(other);
        for container in ["a", "b"] {
            assert!(all.place(container, 1).unwrap().is_none(), "{container} has it too");
        }
        remove_watch(all.watches().unwrap(), watch).unwrap();
        assert!(all.place("a", 1).unwrap().is_some(), "it is gone");
    }
}
