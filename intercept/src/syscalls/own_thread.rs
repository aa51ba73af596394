//! The thread that a caller names by its number, to set its scheduling or its I/O priority.
//!
//! The thread must never be one outside of the container: its id is translated from the caller's pid
//! namespace, and it must be in the caller's pid and user namespace. No such system call takes a
//! pidfd, so a race of microseconds remains in which the thread would have to end and its id be
//! reused. Start reading at [`OwnThread::find`].

use std::os::fd::{AsFd, OwnedFd};

use rustix::fs::{AtFlags, CWD, Mode, OFlags, openat, statat};

use super::context::Context;
use super::{id_map, operation};
use crate::call::Call;
use crate::thread_id;
use crate::verdict::CallError;
use ambit_worker::operation::{Base, CallerHandle};

const CAP_SYS_NICE: u32 = 23;

/// A thread of the caller's container.
#[derive(Debug)]
pub(super) struct OwnThread {
    /// Its id in the daemon's pid namespace.
    pub(super) tid: i32,
    /// Its folder in `/proc`.
    proc: OwnedFd,
}

impl OwnThread {
    /// Finds the thread with this id in the caller's pid namespace; 0 is the caller itself. The call
    /// is not granted if the thread is not the container's, or if the caller is not the container's
    /// root with `CAP_SYS_NICE`.
    pub(super) fn find(call: &Call, cx: &Context<'_>, id: i32) -> Result<Self, CallError> {
        let handle = operation::pin(call, cx, Base::Root, CAP_SYS_NICE)?;
        if id_map(call, cx, "uid_map")?.outside(0) != Some(handle.who.uid) {
            return Err(CallError::NotGranted);
        }
        let tid = thread_id::translate(call, cx, id)?;
        let proc = open(call, cx, &handle, tid)?;
        Ok(Self { tid, proc })
    }

    /// Checks that the caller still waits, and that the id still belongs to the thread.
    pub(super) fn check(&self, cx: &Context<'_>) -> Result<(), CallError> {
        cx.still_pending()?;
        // The folder of a thread that has ended is empty.
        statat(&self.proc, "stat", AtFlags::empty()).map_err(|_| CallError::NotGranted)?;
        Ok(())
    }
}

/// Opens the `/proc/<tid>` of a thread that is in the caller's pid and user namespace.
fn open(
    call: &Call,
    cx: &Context<'_>,
    handle: &CallerHandle,
    tid: i32,
) -> Result<OwnedFd, CallError> {
    let flags = OFlags::PATH | OFlags::DIRECTORY | OFlags::CLOEXEC;
    let thread = openat(CWD, format!("/proc/{tid}"), flags, Mode::empty())
        .map_err(|_| CallError::NotGranted)?;
    let caller = cx.proc(call)?;
    let namespace = |proc: &OwnedFd, name: &str| {
        statat(proc.as_fd(), name, AtFlags::empty()).ok().map(|stat| (stat.st_dev, stat.st_ino))
    };
    let users = rustix::fs::fstat(&handle.users).ok().map(|stat| (stat.st_dev, stat.st_ino));
    let same = namespace(&caller, "ns/pid").is_some()
        && namespace(&caller, "ns/pid") == namespace(&thread, "ns/pid")
        && users.is_some()
        && users == namespace(&thread, "ns/user");
    cx.still_pending()?;
    if same { Ok(thread) } else { Err(CallError::NotGranted) }
}
