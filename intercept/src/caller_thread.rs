//! A thread whose descriptors can be taken by their numbers (`pidfd_getfd(2)`).

use std::os::fd::OwnedFd;

use ambit_kernel::sys::shared_descriptors;
use rustix::process::{Pid, PidfdFlags, pidfd_open};

use super::call::Call;
use crate::syscalls::context::Context;
use crate::verdict::Refusal;
use ambit_worker::operation::CallerHandle;

/// `PIDFD_THREAD`, Linux 6.9.
const THREAD: PidfdFlags = PidfdFlags::from_bits_retain(libc::O_EXCL.unsigned_abs());

/// A pidfd for the descriptors of the caller. Before Linux 6.9 that is its process, if the thread shares
/// its descriptors with it; threads that do not are left to the kernel (`None`).
pub(super) fn pidfd(
    call: &Call,
    cx: &Context<'_>,
    actor: &CallerHandle,
) -> Result<Option<OwnedFd>, Refusal> {
    let tid = call.tid.cast_signed();
    let own = Pid::from_raw(tid).ok_or(Refusal::Gone)?;
    let pidfd = match pidfd_open(own, THREAD) {
        Ok(pidfd) => Some(pidfd),
        Err(_)
            if tid == actor.leader || shared_descriptors::shared(tid, actor.leader) == Ok(true) =>
        {
            actor.process.try_clone().ok()
        }
        Err(_) => None,
    };
    // Only now it is known whose all this is.
    cx.still_pending()?;
    Ok(pidfd)
}
