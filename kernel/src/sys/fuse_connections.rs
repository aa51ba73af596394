//! The kernel's list of FUSE connections (`fusectl`), which has the filesystems of all mount namespaces.
//!
//! It is mounted detached, at no path. A connection is listed as long as its filesystem
//! exists, even if its server has ended.

use std::io;
use std::os::fd::{AsFd, OwnedFd};

use rustix::fs::{AtFlags, statat};
use rustix::mount::{FsMountFlags, FsOpenFlags, MountAttrFlags};
use rustix::mount::{fsconfig_create, fsmount, fsopen};

/// The list of connections.
#[derive(Debug)]
pub struct Connections(OwnedFd);

/// A connection of the list. The inode of its entry distinguishes it from a later connection that gets
/// the same device number.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Connection {
    device: u64,
    entry: u64,
}

impl Connections {
    /// Opens the list.
    ///
    /// # Errors
    /// The kernel has no FUSE, or this process lacks `CAP_SYS_ADMIN` on the host.
    pub fn open() -> io::Result<Self> {
        let context = fsopen("fusectl", FsOpenFlags::FSOPEN_CLOEXEC)?;
        fsconfig_create(context.as_fd())?;
        let flags = FsMountFlags::FSMOUNT_CLOEXEC;
        Ok(Self(fsmount(context.as_fd(), flags, MountAttrFlags::empty())?))
    }

    /// Returns the connection of the filesystem on this device.
    pub fn of(&self, device: u64) -> Option<Connection> {
        let entry = statat(&self.0, device.to_string(), AtFlags::SYMLINK_NOFOLLOW).ok()?;
        Some(Connection { device, entry: entry.st_ino })
    }

    /// True while this connection is in the list.
    pub fn has(&self, connection: Connection) -> bool {
        self.of(connection.device) == Some(connection)
    }
}
