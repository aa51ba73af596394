//! Which FUSE filesystems exist, whoever mounted them: the kernel's own list of connections.
//!
//! It is mounted privately and attached nowhere. A connection is listed as long as its filesystem
//! exists, even if its server has ended.

use std::io;
use std::os::fd::{AsFd, OwnedFd};

use rustix::fs::{AtFlags, statat};
use rustix::mount::{FsMountFlags, FsOpenFlags, MountAttrFlags};
use rustix::mount::{fsconfig_create, fsmount, fsopen};

/// The list.
#[derive(Debug)]
pub struct Connections(OwnedFd);

/// One that is in the list. A later one on the same device is another one.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Connection {
    device: u64,
    entry: u64,
}

impl Connections {
    /// Opens it.
    ///
    /// # Errors
    /// The kernel has no FUSE, or this process not the host's rights.
    pub fn open() -> io::Result<Self> {
        let context = fsopen("fusectl", FsOpenFlags::FSOPEN_CLOEXEC)?;
        fsconfig_create(context.as_fd())?;
        let flags = FsMountFlags::FSMOUNT_CLOEXEC;
        Ok(Self(fsmount(context.as_fd(), flags, MountAttrFlags::empty())?))
    }

    /// The connection of the filesystem on this device.
    #[must_use]
    pub fn of(&self, device: u64) -> Option<Connection> {
        let entry = statat(&self.0, device.to_string(), AtFlags::SYMLINK_NOFOLLOW).ok()?;
        Some(Connection { device, entry: entry.st_ino })
    }

    /// True while this connection is in the list.
    #[must_use]
    pub fn has(&self, connection: Connection) -> bool {
        self.of(connection.device) == Some(connection)
    }
}
