//! What attach knows about the machine when it works in a container's mount namespace.

use std::collections::HashSet;
use std::fs::File;
use std::io::Read;
use std::os::fd::{AsFd, OwnedFd};

use ambit_kernel::text::mountinfo::{self, Mounted};
use rustix::fs::{CWD, Mode, OFlags};

use crate::error::{Context, Error};
use crate::lookup;

/// Where the files on lease are mounted, below the overlay.
pub const LEASES: &str = ".leases";
/// The magic number of FUSE: statfs(2).
const FUSE: u64 = 0x6573_5546;

/// Facts for the rules of safety.
#[derive(Debug)]
pub struct Facts {
    /// A `/proc` with this process as `self`, opened before the container's mounts were entered.
    proc: OwnedFd,
    /// The pid namespace of the container.
    pid_namespace: u64,
    /// The numbers of the overlay's FUSE connections.
    connections: Vec<u32>,
    /// The processes below `proc` whose mount namespaces are the machine's.
    machine: Vec<String>,
}

impl Facts {
    /// Collects facts where `/proc` is that of the machine. `overlay` is the mounted overlay,
    /// `pid_namespace` the inode of the container's pid namespace, and `machine` are processes in
    /// mount namespaces of the machine, such as 1.
    pub fn collect(
        overlay: impl AsFd,
        pid_namespace: u64,
        machine: Vec<String>,
    ) -> Result<Self, Error> {
        let flags = OFlags::PATH | OFlags::DIRECTORY | OFlags::CLOEXEC;
        let proc =
            rustix::fs::openat(CWD, "/proc", flags, Mode::empty()).context("open of /proc")?;
        let mut connections = vec![connection(&overlay).context("the overlay is not mounted")?];
        // The pressure files and the files on lease are connections of their own.
        connections.extend(["proc/pressure", LEASES].into_iter().filter_map(|name| {
            let folder = rustix::fs::openat(&overlay, name, flags, Mode::empty()).ok()?;
            connection(folder).ok()
        }));
        Ok(Self { proc, pid_namespace, connections, machine })
    }

    /// A procfs with this process as `self`.
    pub(super) fn proc(&self) -> impl AsFd {
        self.proc.as_fd()
    }

    pub(super) fn pid_namespace(&self) -> u64 {
        self.pid_namespace
    }

    /// Returns the mounts of the mount namespace that this process is in.
    pub(super) fn mounts(&self) -> Result<Vec<Mounted>, Error> {
        self.mounts_of("self").context("read of mountinfo")
    }

    fn mounts_of(&self, process: &str) -> std::io::Result<Vec<Mounted>> {
        let flags = OFlags::RDONLY | OFlags::CLOEXEC;
        let path = format!("{process}/mountinfo");
        let file = rustix::fs::openat(&self.proc, path, flags, Mode::empty())?;
        let mut text = Vec::new();
        File::from(file).read_to_end(&mut text)?;
        Ok(mountinfo::all(&text).collect())
    }

    /// True for a mount of the overlay.
    pub(super) fn is_of_overlay(&self, mount: &Mounted) -> bool {
        mount.kind.starts_with("fuse") && self.connections.contains(&mount.minor)
    }

    /// True if what is mounted on this mount would appear on the machine too. If the machine's
    /// mounts cannot be read, that is assumed of each shared mount.
    pub(super) fn is_shared_with_machine(&self, mount: &Mounted) -> bool {
        let Some(group) = mount.peers else { return false };
        let mut groups = HashSet::new();
        for process in &self.machine {
            match self.mounts_of(process) {
                Ok(mounts) => groups.extend(mounts.iter().filter_map(|mount| mount.peers)),
                Err(_) => return true,
            }
        }
        self.machine.is_empty() || groups.contains(&group)
    }
}

/// Returns the number of the connection of a mounted FUSE filesystem.
fn connection(folder: impl AsFd) -> Result<u32, rustix::io::Errno> {
    let kind = rustix::fs::fstatfs(&folder)?.f_type;
    let on = lookup::on(folder)?;
    let is_fuse = u64::try_from(kind).is_ok_and(|kind| kind == FUSE);
    on.minor.filter(|_| is_fuse).ok_or(rustix::io::Errno::NODEV)
}
