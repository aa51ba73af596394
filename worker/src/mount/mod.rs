//! Makes a mount that policy has granted.
//!
//! [`run`] needs a single-threaded process of its own with the host's rights: it forks processes
//! that drop those rights for good. Nothing here may decide whether a mount is granted, and no path
//! of the container may be opened with other rights than the caller's.
//!
//! After an error nothing is left: processes are killed, and detached mounts and loop devices are
//! freed with their last descriptor. Start reading at `kernel_mount` (filesystems of the kernel),
//! `helper` (FUSE programs) and `own` (procfs and sysfs).

mod claim;
mod confine;
mod detached_root;
mod environment;
mod fuse_mount;
mod helper;
mod host_program;
mod image;
mod kernel_mount;
mod loop_device;
mod mount_call;
mod order;
mod own;
mod program;
mod source_lock;
mod starter;
mod superblock;

pub(crate) use confine::set_label;
pub(crate) use host_program::sealed;

use std::os::fd::BorrowedFd;
use std::time::Instant;

use rustix::io::Errno;

pub(super) use detached_root::detached_node;
pub use order::{Executable, Handler, How, Order, Parameters, Superblock};
pub use source_lock::SourceLocks;

use super::{Error, WholeCaller};

/// Makes the mount. For a filesystem of the kernel, adds an inotify watch for its root to `watches`
/// and returns the watch descriptor. For a helper, returns the device number of the filesystem.
pub fn run(
    order: &Order,
    caller: &WholeCaller,
    watches: BorrowedFd<'_>,
    locks: &SourceLocks,
) -> Result<Option<u64>, Error> {
    let until = Instant::now() + order.deadline;
    match &order.how {
        How::Kernel(superblock) => {
            kernel_mount::mount(order, superblock, caller, (watches, locks), until)
        }
        How::Helper(handler) => helper::mount(order, handler, caller, locks, until),
        How::Own(_) => run_own(order, caller).map(|()| None),
    }
}

/// Makes a procfs or sysfs for the caller.
pub(super) fn run_own(order: &Order, caller: &WholeCaller) -> Result<(), Error> {
    let How::Own(parameters) = &order.how else {
        return Err(Error::new(Errno::PROTO, "not the order of a procfs").mark_untried());
    };
    own::mount(order, parameters, caller, Instant::now() + order.deadline)
}
