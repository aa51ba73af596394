//! A pidfd of the calling thread, by which a worker copies the caller's descriptors
//! (pidfd_getfd(2)).
//!
//! It must refer to the descriptor table of the calling thread itself: a thread that has a table of
//! its own may have another file at the same number.

use std::os::fd::OwnedFd;

use ambit_kernel::sys::shared_descriptors;
use rustix::process::{Pid, PidfdFlags, pidfd_open};

use super::call::Call;
use crate::syscalls::context::Context;
use crate::verdict::CallError;
use ambit_worker::operation::CallerHandle;

/// `PIDFD_THREAD`, Linux 6.9.
const THREAD: PidfdFlags = PidfdFlags::from_bits_retain(libc::O_EXCL.unsigned_abs());

/// Returns a pidfd for the descriptors of the caller. Before Linux 6.9 that is a pidfd of its
/// process, if the thread shares the descriptor table of the main thread. Otherwise the call is left
/// to the kernel.
pub(super) fn pidfd(
    call: &Call,
    cx: &Context<'_>,
    handle: &CallerHandle,
) -> Result<OwnedFd, CallError> {
    let tid = call.tid.cast_signed();
    let own = Pid::from_raw(tid).ok_or(CallError::Gone)?;
    let pidfd = match pidfd_open(own, THREAD) {
        Ok(pidfd) => Some(pidfd),
        Err(_)
            if tid == handle.leader
                || shared_descriptors::shared(tid, handle.leader) == Ok(true) =>
        {
            handle.process.try_clone().ok()
        }
        Err(_) => None,
    };
    // The thread id was the caller's if the call is still pending.
    cx.still_pending()?;
    pidfd.ok_or(CallError::NotGranted)
}
