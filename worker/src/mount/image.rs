//! Where an image file may be.
//!
//! The kernel reads an image with the host's rights and waits for it without an end. On a filesystem
//! that a container serves itself, or has put over such a one, the container decides how long: as
//! long as a superblock is being made, even `sync` on the host waits. So an image has to be on a
//! filesystem of the host's, or in memory.

use std::os::fd::{AsFd, OwnedFd};
use std::time::Instant;

use ambit_kernel::sys::superblock_owner::is_within_our_users;
use ambit_kernel::sys::user_namespace;
use nix::errno::Errno;
use nix::sched::{CloneFlags, setns};
use rustix::fs::{fstat, fstatfs};

use crate::caller::Caller;
use crate::child::{Child, End};
use crate::failure::{Failure, OnOurSide, OrFail};
use crate::line::Line;

/// `TMPFS_MAGIC` and `RAMFS_MAGIC`
const MEMORY: [u64; 2] = [0x0102_1994, 0x8584_58f6];

/// Refuses an image that a container could withhold. A process of its own asks, because it has to be
/// among the container's users for it.
pub(super) fn refuse_a_containers_own(
    source: &OwnedFd,
    caller: &Caller,
    until: Instant,
) -> Result<(), Failure> {
    let (line, theirs) = Line::pair()?;
    let asking = Child::start(End::Alone, || {
        theirs.report(look(source, caller).map(|()| Vec::new()));
    })?;
    drop(theirs);
    line.receive(until)?;
    asking.finish();
    Ok(())
}

fn look(source: &OwnedFd, caller: &Caller) -> Result<(), Failure> {
    // Should it have to wait after all, then on the container's account.
    caller.enter_groups()?;
    let filesystem = fstatfs(source).or_fail("fstatfs of the source").on_our_side()?;
    if MEMORY.contains(&filesystem.f_type.cast_unsigned()) {
        return Ok(());
    }
    // It may be that of another one of the container's user namespaces.
    let users = outermost(caller.users.try_clone().or_fail("dup").on_our_side()?);
    setns(users, CloneFlags::CLONE_NEWUSER)
        .or_fail("setns to the container's users")
        .on_our_side()?;
    if !is_within_our_users(source.as_fd()) {
        return Ok(());
    }
    Err(Failure::new(
        Errno::EACCES,
        "the image is on a filesystem of the container's own (FUSE or overlay), which could keep \
         the host waiting: put it on a disk or a tmpfs",
    ))
}

/// The user namespace of the container in which this one is: the last one below ours.
fn outermost(mut users: OwnedFd) -> OwnedFd {
    let own = std::fs::File::open("/proc/self/ns/user").ok().and_then(|own| place(&own));
    while let Ok(above) = user_namespace::parent(users.as_fd()) {
        if place(&above) == own {
            break;
        }
        users = above;
    }
    users
}

fn place(namespace: impl AsFd) -> Option<(u64, u64)> {
    fstat(namespace).ok().map(|status| (status.st_dev, status.st_ino))
}
