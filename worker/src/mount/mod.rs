//! Mounts for containers: what happens once policy has granted one.
//!
//! [`run`] belongs into a process of its own, without threads and with the host's rights: it makes
//! processes that lay those rights down for good. Start reading at `kernel_mount` (the kernel's
//! filesystems) and `helper` (programs). Nothing here decides whether something may be mounted,
//! and nothing opens a path of the container with other rights than the caller's.
//!
//! When it fails nothing is left: processes are killed, mounts that are attached nowhere and loop
//! devices go with their last descriptor.

mod claim;
mod confine;
mod fuse_mount;
mod helper;
mod host_program;
mod image;
mod kernel_mount;
mod loop_device;
mod order;
mod program;
mod scene;
mod superblock;
mod turn;

use std::os::fd::BorrowedFd;
use std::time::Instant;

pub use order::{Executable, Handler, How, Order, Superblock};
pub(super) use scene::clean_node;
pub use turn::Turns;

use super::{Caller, Failure};

/// Mounts. The root of what the kernel mounts gets a watch, whose number is the result; for a helper
/// it is the number of the filesystem's device.
///
/// # Errors
/// Nothing was mounted; the failure has the errno for the caller and the reason for the log.
pub fn run(
    order: &Order,
    caller: &Caller,
    watches: BorrowedFd<'_>,
    turns: &Turns,
) -> Result<Option<u64>, Failure> {
    let until = Instant::now() + order.deadline;
    match &order.how {
        How::Kernel(superblock) => {
            kernel_mount::mount(order, superblock, caller, (watches, turns), until)
        }
        How::Helper(handler) => helper::mount(order, handler, caller, turns, until),
    }
}
