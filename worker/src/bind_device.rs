//! Bind-mounts a device node below a container's `/dev` where the filesystem does not support
//! nodes: the node is made on a new tmpfs and mounted over an empty file.
//!
//! The file and the mount are made as the caller, in its namespaces and with its rights: what the
//! caller could not do itself fails here too. Only the node is made with the host's rights, in a
//! root where no path of the container is looked up ([`super::mount::detached_node`]).

use std::os::fd::{AsFd, BorrowedFd, OwnedFd};

use rustix::fs::{AtFlags, CWD, Mode, OFlags};
use rustix::io::Errno;
use rustix::mount::{MoveMountFlags, move_mount};
use serde::{Deserialize, Serialize};

use super::caller::WholeCaller;
use super::error::{Context, Error, MarkUntried};
use super::lookup::{self, open_path};
use super::mount::detached_node;
use super::operation::Mknod;

/// The alarm(2) of the process, in seconds.
const LONGEST: u32 = 6;

/// A device node to be mounted in a container.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Bind {
    /// The path, the mode and the device number.
    pub node: Mknod,
    /// Its owner and group, as ids of the host.
    pub owner: (u32, u32),
    /// The caller's umask(2).
    pub umask: u32,
}

/// Makes the node, makes this process the caller, and mounts the node.
pub(super) fn bind_device(bind: &Bind, caller: &WholeCaller) -> Result<(), Error> {
    nix::unistd::alarm::set(LONGEST);
    // First: all that this takes is charged to the container.
    caller.enter_groups()?;
    let mode = bind.node.mode & 0o777 & !bind.umask;
    let node = detached_node(bind.node.device, mode, bind.owner).mark_untried()?;
    caller.enter_users()?;
    caller.enter_within_groups()?;
    let (folder, name) =
        bind.node.split_path().ok_or_else(|| refused("the path has no last component"))?;
    let folder = open_folder(folder)?;
    if !is_on_mount(open_folder(b"/dev")?.as_fd(), folder.as_fd())? {
        return Err(refused("device nodes are bind-mounted below /dev only"));
    }
    let flags = OFlags::WRONLY | OFlags::CREATE | OFlags::EXCL | OFlags::NOFOLLOW | OFlags::CLOEXEC;
    let file = rustix::fs::openat(&folder, name, flags, Mode::empty())
        .context("open of a new file as the caller")?;
    let flags = MoveMountFlags::MOVE_MOUNT_F_EMPTY_PATH | MoveMountFlags::MOVE_MOUNT_T_EMPTY_PATH;
    move_mount(&node, "", &file, "", flags).context("move_mount of a node").inspect_err(|_| {
        let _ = rustix::fs::unlinkat(&folder, name, AtFlags::empty());
    })
}

fn refused(why: &str) -> Error {
    Error::new(Errno::PERM, why)
}

fn open_folder(path: &[u8]) -> Result<OwnedFd, Error> {
    open_path(CWD, path, OFlags::DIRECTORY).context("openat2 of the node's folder as the caller")
}

/// True if `top` is the root of a mount, and a directory is on that mount. All of a mount at `/dev`
/// is below `/dev`. False before Linux 5.8, which has no numbers of mounts.
fn is_on_mount(top: BorrowedFd<'_>, folder: BorrowedFd<'_>) -> Result<bool, Error> {
    let on = |folder| lookup::on(folder).context("statx of a folder").map(|on| on.mount);
    let mount = on(top)?;
    Ok(mount != 0 && mount == on(folder)? && lookup::is_mount_root(top))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_device_is_mounted_on_the_mount_at_dev_alone() {
        let is_on = |top: &[u8], folder: &[u8]| {
            is_on_mount(open_folder(top).unwrap().as_fd(), open_folder(folder).unwrap().as_fd())
                .unwrap()
        };
        assert!(is_on(b"/proc", b"/proc") && is_on(b"/proc", b"/proc/self/net/.."));
        assert!(!is_on(b"/proc", b"/") && !is_on(b"/proc", b"/etc"));
        // A `/dev` that is a directory of the root filesystem.
        assert!(!is_on(b"/proc/self", b"/proc/self"));
    }
}
