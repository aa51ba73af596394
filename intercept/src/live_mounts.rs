//! Counts the filesystems that were mounted for a container and still exist, for `limit.mounts`.
//!
//! One inotify instance has a watch on the root of each superblock. A watch keeps neither the mount
//! nor the superblock alive, and the kernel removes it together with the superblock. So the number
//! of watches is the number of filesystems. Filesystems of helpers cannot be watched, because only
//! their own users may access them; the kernel lists their connections
//! (`ambit_kernel::sys::fuse_connections`). Watches end with the process, so a server that is
//! started again counts from zero. Start reading at [`LiveMounts::reserve`].

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
    /// Watches and their containers. Containers that mount the same image share a watch.
    of: BTreeSet<(u64, String)>,
    /// FUSE connections of helpers and their containers.
    helpers: Vec<(Connection, String)>,
    /// The number of mounts of a container that are under way.
    coming: HashMap<String, usize>,
}

/// A reserved place for one more filesystem. Dropping it ends the reservation.
#[derive(Debug)]
pub(super) struct Reservation<'a> {
    all: &'a LiveMounts,
    container: &'a str,
}

impl LiveMounts {
    /// Reserves a place for one more filesystem of a container. `None` if it has `most` already.
    pub(super) fn reserve<'a>(
        &'a self,
        container: &'a str,
        most: usize,
    ) -> std::io::Result<Option<Reservation<'a>>> {
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
        Ok(Some(Reservation { all: self, container }))
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

impl Reservation<'_> {
    /// Returns the inotify instance for the watch on the filesystem's root.
    pub(super) fn watches(&self) -> std::io::Result<BorrowedFd<'_>> {
        self.all.watches().map(AsFd::as_fd)
    }

    /// Counts a filesystem that was mounted and has this watch.
    pub(super) fn count_watch(&self, watch: u64) {
        self.all.lock().of.insert((watch, self.container.to_owned()));
    }

    /// Counts a filesystem that a helper serves and that has this device number.
    pub(super) fn count_helper(&self, device: u64) -> std::io::Result<()> {
        // It is not in the list if it was unmounted meanwhile, or if it is not FUSE.
        if let Some(connection) = self.all.connections()?.of(device) {
            self.all.lock().helpers.push((connection, self.container.to_owned()));
        }
        Ok(())
    }
}

impl Drop for Reservation<'_> {
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

/// Returns the watches that the kernel still has.
fn live(watches: &OwnedFd) -> std::io::Result<HashSet<u64>> {
    // Discard the events, which would fill the queue.
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
    fn room_is_free_again_when_a_filesystem_is_gone() {
        let all = LiveMounts::default();
        let folder = std::env::temp_dir();
        let one = all.reserve("a", 1).unwrap().unwrap();
        assert!(all.reserve("a", 1).unwrap().is_none(), "a mount is under way");
        let watch = add_watch(one.watches().unwrap(), &folder, WatchFlags::DELETE_SELF).unwrap();
        one.count_watch(u64::try_from(watch).unwrap());
        drop(one);
        assert!(all.reserve("a", 1).unwrap().is_none(), "the filesystem exists");
        assert!(all.reserve("a", 2).unwrap().is_some());
        assert!(all.reserve("b", 1).unwrap().is_some(), "another container");
        let other = all.reserve("b", 1).unwrap().unwrap();
        other.count_watch(u64::try_from(watch).unwrap());
        drop(other);
        for container in ["a", "b"] {
            assert!(all.reserve(container, 1).unwrap().is_none(), "{container} has it too");
        }
        remove_watch(all.watches().unwrap(), watch).unwrap();
        assert!(all.reserve("a", 1).unwrap().is_some(), "the filesystem is gone");
    }
}
