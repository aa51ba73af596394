//! Copies files of the overlay as detached mounts, while other processes look their names up.
//!
//! The kernel can drop the dentry of a name that two processes look up at the same time
//! (`ambit_fuse::visit` explains why), and an unhashed dentry cannot be mounted. Start reading at
//! [`copy`].

use std::os::fd::{AsFd, AsRawFd, OwnedFd};
use std::path::Path;

use rustix::mount::OpenTreeFlags;

/// How often a copy is repeated if the kernel has dropped the name at once.
const TRIES: usize = 100;

/// Copies what is at a path below a folder, without the mounts on it. `None` if its name vanishes
/// each time.
pub fn copy(folder: impl AsFd, path: &Path) -> rustix::io::Result<Option<OwnedFd>> {
    let flags = OpenTreeFlags::OPEN_TREE_CLONE | OpenTreeFlags::OPEN_TREE_CLOEXEC;
    for _ in 0..TRIES {
        let copy = rustix::mount::open_tree(&folder, path, flags)?;
        let shown = format!("/proc/self/fd/{}", copy.as_raw_fd());
        if rustix::fs::readlink(shown, Vec::new())
            .is_ok_and(|place| !place.to_bytes().ends_with(b" (deleted)"))
        {
            return Ok(Some(copy));
        }
    }
    Ok(None)
}

/// Copies the container's file on lease for a target, or else the file that all containers share.
/// `leased` are targets with the names of these files.
pub fn leased_or_shared<T, E>(
    leased: &[(String, String)],
    target: &str,
    copy: impl Fn(&Path) -> Result<T, E>,
) -> Result<T, E> {
    let named = leased.iter().find(|(leased, _)| leased == target);
    let copied = named.and_then(|(_, name)| copy(Path::new(name)).ok());
    copied.map_or_else(|| copy(Path::new(target)), Ok)
}
