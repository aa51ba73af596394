//! Makes a mount by the kernel: the source is opened as the caller, the superblock is made with the
//! host's rights, and the mount is attached as the caller.
//!
//! There are two processes. One is the caller in everything but its pid, so the container's device
//! policy, permissions and root decide what it can open and where it can mount. The other one has
//! the host's rights and must never look up a path of the container. Start reading at [`mount`].

use std::os::fd::{AsFd, AsRawFd, BorrowedFd, OwnedFd};
use std::time::Instant;

use nix::errno::Errno;
use rustix::fs::inotify::{self, WatchFlags};
use rustix::fs::{AtFlags, CWD, FileType, Mode, OFlags, StatxFlags};
use rustix::mount::MoveMountFlags;

use super::claim::Source;
use super::order::{Order, Superblock};
use super::turn::Turns;
use super::{image, superblock};
use crate::caller::Caller;
use crate::child::{Child, End};
use crate::failure::{Failure, OnOurSide, OrFail};
use crate::line::Line;

/// Makes the mount, and returns the watch descriptor of its root.
pub(super) fn mount(
    order: &Order,
    superblock: &Superblock,
    caller: &Caller,
    (watches, turns): (BorrowedFd<'_>, &Turns),
    until: Instant,
) -> Result<Option<u64>, Failure> {
    let (line, theirs) = Line::pair()?;
    let actor = Child::start(End::Alone, || {
        let result = act(&theirs, order, superblock, caller, until);
        theirs.report(result.map(|()| Vec::new()));
    })?;
    drop(theirs);
    let source = line.receive(until)?.pop();
    let turn = match &source {
        Some(source) => {
            image::refuse_a_containers_own(source, caller, until)?;
            Source::new(source.as_fd())?.map(|source| source.turn(turns, until)).transpose()?
        }
        None => None,
    };

    let (maker, theirs) = Line::pair()?;
    let making = Child::start(End::Alone, || {
        let made = superblock::make(order, superblock, source.as_ref(), caller, until);
        theirs.report(made.map(|mount| vec![mount]));
    })?;
    drop(theirs);
    let mount = maker.receive(until)?;
    making.finish();
    drop(turn);
    let watch = match mount.first().map(|mount| watch(mount.as_fd(), watches)) {
        Some(Ok(watch)) => Some(watch),
        // A network filesystem may not support it. It has no image and no loop device, so it need
        // not be counted.
        Some(Err(failure)) if superblock.on_device => return Err(failure),
        _ => None,
    };

    line.done(&mount.iter().map(AsFd::as_fd).collect::<Vec<_>>())?;
    drop(mount);
    line.receive(until)?;
    actor.finish();
    Ok(watch)
}

/// Adds an inotify watch for the root of a new filesystem. The watch ends with the filesystem, and
/// does not keep it mounted.
fn watch(mount: BorrowedFd<'_>, watches: BorrowedFd<'_>) -> Result<u64, Failure> {
    let root = format!("/proc/self/fd/{}", mount.as_raw_fd());
    let number = inotify::add_watch(watches, root, WatchFlags::DELETE_SELF).or_fail(
        "the filesystem cannot be counted: inotify_add_watch (is fs.inotify.max_user_watches used up?)",
    );
    let number = number.on_our_side()?;
    Ok(number.unsigned_abs().into())
}

/// Becomes the caller, opens target and source, and attaches the mount.
fn act(
    line: &Line,
    order: &Order,
    superblock: &Superblock,
    caller: &Caller,
    until: Instant,
) -> Result<(), Failure> {
    caller.enter_users()?;
    caller.enter()?;
    let target = find_target(order)?;
    let source = if superblock.on_device { Some(open_source(order)?) } else { None };
    line.done(&source.iter().map(AsFd::as_fd).collect::<Vec<_>>())?;
    drop(source);
    let mount = line.receive(until)?.pop();
    let mount =
        mount.ok_or_else(|| Failure::new(Errno::EIO, "a message without a mount").on_our_side())?;
    attach(mount.as_fd(), target.as_fd())
}

/// Opens the target, following symbolic links as mount(2) does.
pub(super) fn find_target(order: &Order) -> Result<OwnedFd, Failure> {
    rustix::fs::openat(CWD, &*order.target, OFlags::PATH | OFlags::CLOEXEC, Mode::empty())
        .or_fail(format!("open of the target {}", String::from_utf8_lossy(&order.target)))
}

/// Attaches a mount to its target.
pub(super) fn attach(mount: BorrowedFd<'_>, target: BorrowedFd<'_>) -> Result<(), Failure> {
    let flags = MoveMountFlags::MOVE_MOUNT_F_EMPTY_PATH | MoveMountFlags::MOVE_MOUNT_T_EMPTY_PATH;
    let moved = rustix::mount::move_mount(mount, "", target, "", flags);
    if moved == Err(rustix::io::Errno::INVAL) {
        // mount(2) returns ENOTDIR for a target that is not a directory.
        let status = rustix::fs::statx(target, "", AtFlags::EMPTY_PATH, StatxFlags::TYPE);
        let kind = status.map(|status| FileType::from_raw_mode(status.stx_mode.into()));
        if kind.is_ok_and(|kind| kind != FileType::Directory) {
            return Err(Failure::new(Errno::ENOTDIR, "the target is not a directory"));
        }
    }
    moved.or_fail("move_mount to the target")
}

/// Opens the block device or image, for reading or for reading and writing as the mount needs.
fn open_source(order: &Order) -> Result<OwnedFd, Failure> {
    let Some(path) = order.source.as_deref() else {
        return Err(Failure::new(Errno::EINVAL, "a source is needed: a block device or an image"));
    };
    let access = if order.read_only { OFlags::RDONLY } else { OFlags::RDWR };
    // open(2) of a FIFO or a serial line must not block.
    let flags = access | OFlags::CLOEXEC | OFlags::NONBLOCK | OFlags::NOCTTY;
    let shown = String::from_utf8_lossy(path);
    let source = rustix::fs::openat(CWD, path, flags, Mode::empty())
        .or_fail(format!("open of {shown} as the caller"))?;
    let status = rustix::fs::fstat(&source).or_fail("fstat of the source")?;
    match FileType::from_raw_mode(status.st_mode) {
        FileType::BlockDevice | FileType::RegularFile => Ok(source),
        _ => Err(Failure::new(
            Errno::ENOTBLK,
            format!("{shown} is neither a block device nor an image"),
        )),
    }
}
