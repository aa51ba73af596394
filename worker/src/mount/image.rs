//! Checks the filesystem on which an image file is.
//!
//! The kernel reads an image with the host's rights and waits for it without a timeout. On a FUSE
//! filesystem of the container, or an overlay on top of one, the container decides how long that
//! takes. While a superblock is being made even sync(2) on the host waits. So an image must be on a
//! filesystem that belongs to the host, or in memory. Start reading at [`refuse_a_containers_own`].

use std::os::fd::{AsFd, OwnedFd};
use std::time::Instant;

use ambit_kernel::sys::superblock_owner::is_within_our_users;
use ambit_kernel::sys::user_namespace;
use nix::sched::{CloneFlags, setns};
use rustix::fs::{fstat, fstatfs};
use rustix::io::Errno;

use crate::caller::WholeCaller;
use crate::child::{Child, OnDrop};
use crate::error::{Context, Error, MarkUntried};
use crate::report_channel::ReportChannel;

/// `TMPFS_MAGIC` and `RAMFS_MAGIC`
const MEMORY: [u64; 2] = [0x0102_1994, 0x8584_58f6];

/// Returns EACCES for an image on a filesystem of the container's own. The check runs in a process
/// of its own, which enters the container's user namespace.
pub(super) fn refuse_a_containers_own(
    source: &OwnedFd,
    caller: &WholeCaller,
    until: Instant,
) -> Result<(), Error> {
    let (channel, theirs) = ReportChannel::pair()?;
    let asking = Child::start(OnDrop::Kill, || {
        theirs.report(look(source, caller).map(|()| Vec::new()));
    })?;
    drop(theirs);
    channel.receive(until)?;
    asking.finish();
    Ok(())
}

fn look(source: &OwnedFd, caller: &WholeCaller) -> Result<(), Error> {
    // If the check blocks after all, the process is charged to the container.
    caller.enter_groups()?;
    let filesystem = fstatfs(source).context("fstatfs of the source").mark_untried()?;
    if MEMORY.contains(&filesystem.f_type.cast_unsigned()) {
        return Ok(());
    }
    // The filesystem may belong to another user namespace of the container.
    let users = outermost(caller.users.try_clone().context("dup").mark_untried()?);
    setns(users, CloneFlags::CLONE_NEWUSER)
        .context("setns to the container's users")
        .mark_untried()?;
    if !is_within_our_users(source.as_fd()) {
        return Ok(());
    }
    Err(Error::new(
        Errno::ACCESS,
        "the image is on a filesystem of the container's own (FUSE or overlay), which could keep \
         the host waiting: put it on a disk or a tmpfs",
    ))
}

/// Returns the outermost user namespace of the container: the ancestor just below the host's.
fn outermost(mut users: OwnedFd) -> OwnedFd {
    let own = std::fs::File::open("/proc/self/ns/user").ok().and_then(|own| file_id(&own));
    while let Ok(above) = user_namespace::parent(users.as_fd()) {
        if file_id(&above) == own {
            break;
        }
        users = above;
    }
    users
}

fn file_id(namespace: impl AsFd) -> Option<(u64, u64)> {
    fstat(namespace).ok().map(|status| (status.st_dev, status.st_ino))
}
