//! The folders of a sandbox that are in memory: one tmpfs, and a bind mount for each of them.
//!
//! One filesystem has one size, which follows the sandbox's limit of memory, and is one line of
//! `df`. The folder that covers what is hidden belongs to it too.

use std::os::fd::AsRawFd;

use anyhow::{Context, Result};
use rustix::fs::{AtFlags, Gid, Mode, Uid};
use rustix::mount::{MountAttrFlags, UnmountFlags};

use super::mounts::{Detached, Root};
use super::owners::{ActingAs, Owners};

/// The folders and their modes.
const FOLDERS: [(&str, u32); 7] = [
    ("cgroup", 0o755),
    ("dev", 0o755),
    ("hidden", 0o755),
    ("run", 0o755),
    ("shm", 0o1777),
    ("tmp", 0o1777),
    ("var-tmp", 0o1777),
];
/// The fewest files that fit, which is enough for `/dev`.
const FEWEST_FILES: u64 = 1024;

/// The mounts, each to be attached once.
#[derive(Debug)]
pub(super) struct Scratch(Vec<(&'static str, Detached)>);

impl Scratch {
    /// Makes the tmpfs. As the kernel does for the machine, half of the memory and a file for each
    /// page of that half are the most.
    pub(super) fn new(root: &Root, owners: &Owners, memory: Option<u64>) -> Result<Self> {
        /// A folder of the root that nothing is mounted on yet. Folders of a mount can be copied only
        /// while it is attached.
        const FOR_NOW: &str = "proc";

        let size = memory.map(|memory| (memory / 2).to_string());
        let files = memory.map(|memory| (memory / 2 / 4096).max(FEWEST_FILES).to_string());
        let (uid, gid) = (owners.uid.to_string(), owners.gid.to_string());
        let mut options = vec![("mode", "755"), ("uid", &uid), ("gid", &gid)];
        options.extend(size.as_deref().map(|size| ("size", size)));
        options.extend(files.as_deref().map(|files| ("nr_inodes", files)));
        let tmpfs = Detached::new("tmpfs", &options, MountAttrFlags::empty())?;
        root.attach(&tmpfs, FOR_NOW)?;

        let mut folders = Vec::new();
        for (name, mode) in FOLDERS {
            let acting = ActingAs::root_of(owners)?;
            rustix::fs::mkdirat(&tmpfs.0, name, Mode::from(mode))
                .with_context(|| format!("cannot make the folder {name} of a tmpfs: mkdirat"))?;
            drop(acting);
            rustix::fs::chownat(
                &tmpfs.0,
                name,
                Some(Uid::from_raw(owners.uid)),
                Some(Gid::from_raw(owners.gid)),
                AtFlags::SYMLINK_NOFOLLOW,
            )
            .with_context(|| format!("cannot give the folder {name} away: fchownat"))?;
            folders.push((name, Detached::copy_in(root, &format!("{FOR_NOW}/{name}"))?));
        }
        let mounted = format!("/proc/self/fd/{}", tmpfs.0.as_raw_fd());
        rustix::mount::unmount(mounted, UnmountFlags::DETACH)
            .context("cannot detach a tmpfs: umount2")?;
        Ok(Self(folders))
    }

    /// Takes a folder, with attributes of its mount.
    pub(super) fn take(&mut self, name: &str, set: MountAttrFlags) -> Result<Detached> {
        let at = self.0.iter().position(|(other, _)| *other == name);
        let (_, mut folder) = self.0.swap_remove(at.with_context(|| format!("no folder {name}"))?);
        folder.set(set)?;
        Ok(folder)
    }
}
