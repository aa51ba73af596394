//! Makes a mount by the kernel: the source is opened as the caller, the superblock is made with the
//! host's rights, and the mount is attached as the caller.
//!
//! There are two processes. One is the caller in everything but its pid, so the container's device
//! policy, permissions and root decide what it can open and where it can mount. The other one has
//! the host's rights and must never look up a path of the container. Start reading at [`mount`].

use std::os::fd::{AsFd, AsRawFd, BorrowedFd, OwnedFd};
use std::time::Instant;

use ambit_kernel::text::shown::shown;
use rustix::fs::inotify::{self, WatchFlags};
use rustix::fs::{AtFlags, CWD, FileType, Mode, OFlags, StatxFlags};
use rustix::io::Errno;
use rustix::mount::MoveMountFlags;

use super::claim::Source;
use super::order::{Order, Superblock};
use super::source_lock::SourceLocks;
use super::{image, superblock};
use crate::caller::WholeCaller;
use crate::child::{Child, OnDrop};
use crate::error::{Context, Error, MarkUntried};
use crate::report_channel::ReportChannel;

/// Makes the mount, and returns the watch descriptor of its root.
pub(super) fn mount(
    order: &Order,
    superblock: &Superblock,
    caller: &WholeCaller,
    (watches, locks): (BorrowedFd<'_>, &SourceLocks),
    until: Instant,
) -> Result<Option<u64>, Error> {
    let (channel, theirs) = ReportChannel::pair()?;
    let child = Child::start(OnDrop::Kill, || {
        let result = run_as_caller(&theirs, order, superblock, caller, until);
        theirs.report(result.map(|()| Vec::new()));
    })?;
    drop(theirs);
    let source = channel.receive(until)?.pop();
    let lock = match &source {
        Some(source) => {
            image::refuse_a_containers_own(source, caller, until)?;
            Source::new(source.as_fd())?.map(|source| source.lock(locks, until)).transpose()?
        }
        None => None,
    };

    let (maker, theirs) = ReportChannel::pair()?;
    // The procfs of the folder where the superblock is made shows the maker alone.
    nix::sched::unshare(nix::sched::CloneFlags::CLONE_NEWPID)
        .context("unshare of process ids")
        .mark_untried()?;
    let making = Child::start(OnDrop::Kill, || {
        let made = superblock::make(order, superblock, source.as_ref(), caller, until);
        theirs.report(made.map(|mount| vec![mount]));
    })?;
    drop(theirs);
    let mount = maker.receive(until)?;
    making.finish();
    drop(lock);
    let watch = match mount.first().map(|mount| watch(mount.as_fd(), watches)) {
        Some(Ok(watch)) => Some(watch),
        // A network filesystem may not support it. It has no image and no loop device, so it need
        // not be counted.
        Some(Err(error)) if superblock.on_device => return Err(error),
        _ => None,
    };

    channel.done(&mount.iter().map(AsFd::as_fd).collect::<Vec<_>>())?;
    drop(mount);
    channel.receive(until)?;
    child.finish();
    Ok(watch)
}

/// Adds an inotify watch for the root of a new filesystem. The watch ends with the filesystem, and
/// does not keep it mounted.
fn watch(mount: BorrowedFd<'_>, watches: BorrowedFd<'_>) -> Result<u64, Error> {
    let root = format!("/proc/self/fd/{}", mount.as_raw_fd());
    let number = inotify::add_watch(watches, root, WatchFlags::DELETE_SELF).context(
        "the filesystem cannot be counted: inotify_add_watch (is fs.inotify.max_user_watches used up?)",
    );
    let number = number.mark_untried()?;
    Ok(number.unsigned_abs().into())
}

/// Becomes the caller, opens target and source, and attaches the mount.
fn run_as_caller(
    parent: &ReportChannel,
    order: &Order,
    superblock: &Superblock,
    caller: &WholeCaller,
    until: Instant,
) -> Result<(), Error> {
    // First: all that this takes is charged to the container. The process that makes the superblock
    // stays outside, because the container's device policy does not allow the loop device.
    caller.enter_groups()?;
    caller.enter_users()?;
    caller.enter_within_groups()?;
    let target = find_target(order)?;
    let source = if superblock.on_device { Some(open_source(order)?) } else { None };
    parent.done(&source.iter().map(AsFd::as_fd).collect::<Vec<_>>())?;
    drop(source);
    let mount = parent.receive(until)?.pop();
    let mount =
        mount.ok_or_else(|| Error::new(Errno::IO, "a message without a mount").mark_untried())?;
    attach(mount.as_fd(), target.as_fd())
}

/// Opens the target, following symbolic links as mount(2) does.
pub(super) fn find_target(order: &Order) -> Result<OwnedFd, Error> {
    rustix::fs::openat(CWD, &*order.target, OFlags::PATH | OFlags::CLOEXEC, Mode::empty())
        .context(format!("open of the target {}", shown(&order.target)))
}

/// Attaches a mount to its target.
pub(super) fn attach(mount: BorrowedFd<'_>, target: BorrowedFd<'_>) -> Result<(), Error> {
    let flags = MoveMountFlags::MOVE_MOUNT_F_EMPTY_PATH | MoveMountFlags::MOVE_MOUNT_T_EMPTY_PATH;
    let moved = rustix::mount::move_mount(mount, "", target, "", flags);
    if moved == Err(Errno::INVAL) {
        // mount(2) returns ENOTDIR for a target that is not a directory.
        let status = rustix::fs::statx(target, "", AtFlags::EMPTY_PATH, StatxFlags::TYPE);
        let kind = status.map(|status| FileType::from_raw_mode(status.stx_mode.into()));
        if kind.is_ok_and(|kind| kind != FileType::Directory) {
            return Err(Error::new(Errno::NOTDIR, "the target is not a directory"));
        }
    }
    moved.context("move_mount to the target")
}

/// Opens the block device or image, for reading or for reading and writing as the mount needs.
fn open_source(order: &Order) -> Result<OwnedFd, Error> {
    let Some(path) = order.source.as_deref() else {
        return Err(Error::new(Errno::INVAL, "a source is needed: a block device or an image"));
    };
    let access = if order.read_only { OFlags::RDONLY } else { OFlags::RDWR };
    // open(2) of a FIFO or a serial line must not block.
    let flags = access | OFlags::CLOEXEC | OFlags::NONBLOCK | OFlags::NOCTTY;
    let path_shown = shown(path);
    let source = rustix::fs::openat(CWD, path, flags, Mode::empty())
        .context(format!("open of {path_shown} as the caller"))?;
    let status = rustix::fs::fstat(&source).context("fstat of the source")?;
    match FileType::from_raw_mode(status.st_mode) {
        FileType::BlockDevice | FileType::RegularFile => Ok(source),
        _ => Err(Error::new(
            Errno::NOTBLK,
            format!("{path_shown} is neither a block device nor an image"),
        )),
    }
}
