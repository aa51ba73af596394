//! A device node under `/dev` of a container where the filesystem forbids them: made on a filesystem
//! of its own, and mounted over an empty file.
//!
//! The file is made as the caller, in its namespaces and with its rights, and so is the mount: what
//! it could not do itself fails here too. Only the node is made with the host's rights, in a place
//! where no name of the container leads ([`super::mount::clean_node`]).

use std::os::fd::{AsFd, BorrowedFd, OwnedFd};

use nix::errno::Errno;
use rustix::fs::{
    AtFlags, CWD, Mode, OFlags, ResolveFlags, Statx, StatxAttributes, StatxFlags, openat2, statx,
};
use rustix::mount::{MoveMountFlags, move_mount};
use serde::{Deserialize, Serialize};

use super::act::Mknod;
use super::caller::Caller;
use super::failure::{Failure, OnOurSide, OrFail};
use super::mount::clean_node;

/// Seconds that it may take.
const LONGEST: u32 = 6;

/// A node that is to appear in a container.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Bind {
    /// Where, and which.
    pub node: Mknod,
    /// Whose it is, in the host's numbers.
    pub owner: (u32, u32),
    /// The caller's mask for modes.
    pub umask: u32,
}

/// Makes it appear, as a process that becomes the caller.
pub(super) fn bind(bind: &Bind, caller: &Caller) -> Result<(), Failure> {
    nix::unistd::alarm::set(LONGEST);
    // What the node's filesystem takes is the container's to pay for.
    caller.enter_groups()?;
    let mode = bind.node.mode & 0o777 & !bind.umask;
    let node = clean_node(bind.node.device, mode, bind.owner).on_our_side()?;
    caller.enter_users()?;
    caller.enter()?;
    let (folder, name) = bind.node.place().ok_or_else(|| refused("the path has no name"))?;
    let folder = open_folder(folder)?;
    if !is_below_dev(folder.as_fd())? {
        return Err(refused("only below /dev nodes are mounted where none can be made"));
    }
    let flags = OFlags::WRONLY | OFlags::CREATE | OFlags::EXCL | OFlags::NOFOLLOW | OFlags::CLOEXEC;
    let file = rustix::fs::openat(&folder, name, flags, Mode::empty())
        .or_fail("open of a new file as the caller")?;
    let flags = MoveMountFlags::MOVE_MOUNT_F_EMPTY_PATH | MoveMountFlags::MOVE_MOUNT_T_EMPTY_PATH;
    move_mount(&node, "", &file, "", flags).or_fail("move_mount of a node").inspect_err(|_| {
        let _ = rustix::fs::unlinkat(&folder, name, AtFlags::empty());
    })
}

fn refused(why: &str) -> Failure {
    Failure::new(Errno::EPERM, why)
}

fn open_folder(path: &[u8]) -> Result<OwnedFd, Failure> {
    let flags = OFlags::PATH | OFlags::DIRECTORY | OFlags::CLOEXEC;
    openat2(CWD, path, flags, Mode::empty(), ResolveFlags::NO_MAGICLINKS)
        .or_fail("openat2 of the node's folder as the caller")
}

/// Is a folder on the filesystem that is mounted on `/dev`? All of that mount is below.
fn is_below_dev(folder: BorrowedFd<'_>) -> Result<bool, Failure> {
    let look = |folder: BorrowedFd<'_>| -> Result<Statx, Failure> {
        let flags = AtFlags::EMPTY_PATH | AtFlags::STATX_DONT_SYNC;
        statx(folder, "", flags, StatxFlags::MNT_ID).or_fail("statx of a folder")
    };
    let (dev, folder) = (look(open_folder(b"/dev")?.as_fd())?, look(folder)?);
    let tells = |stat: &Statx| stat.stx_mask & StatxFlags::MNT_ID.bits() != 0;
    Ok(dev.stx_attributes.contains(StatxAttributes::MOUNT_ROOT)
        && tells(&dev)
        && tells(&folder)
        && dev.stx_mnt_id == folder.stx_mnt_id)
}
