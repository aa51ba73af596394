//! Pins the first process of a container, and reads what never changes about it.
//!
//! The pidfd of its first process keeps a pid namespace, and so the number of that process. Start
//! reading at [`pin`].

use std::io;

use rustix::io::Errno;
use rustix::process::{Pid, PidfdFlags};

use crate::Error;
use crate::cgroup_namespace;
use crate::clock;
use crate::container::{Identity, Init};
use crate::context::Context;
use crate::membership::Membership;
use crate::namespace_init;

/// Makes the error for a failed lookup of a thread: [`Error::Gone`] if it has ended, else the
/// failed system call, which does not mean that it ended.
pub(crate) fn unknown(tid: u32) -> impl Fn(io::Error) -> Error {
    move |source| {
        let has_ended = source.kind() == io::ErrorKind::NotFound
            || source.raw_os_error() == Some(Errno::SRCH.raw_os_error());
        match has_ended {
            true => Error::Gone(tid),
            false => Error::Read { file: format!("/proc/{tid}"), source },
        }
    }
}

/// Returns the parent of a pid namespace's first process if the namespace is part of the parent's
/// container: both are in the same cgroups, and the parent is in a container itself. A container
/// engine moves the first process of a container to a cgroup of its own.
///
/// If the parent has ended, the process was reparented to one of the same pid namespace.
pub(crate) fn parent_in_container(init: u32, context: &Context) -> Option<u32> {
    let (proc, text) = (&context.proc, &mut Vec::new());
    let parent = namespace_init::parent(proc, init, text).filter(|&parent| parent != 0)?;
    if proc.pid_namespace(parent).ok()? == context.own_namespace {
        return None;
    }
    let own = proc.read_of(init, "cgroup", text).ok()?.to_vec();
    let same = proc.read_of(parent, "cgroup", text).ok()? == own;
    same.then_some(parent)
}

/// Pins the first process of a thread's namespace and reads what never changes about it.
pub(crate) fn new_container(
    tid: u32,
    namespace: u64,
    context: &Context,
) -> Result<(Identity, Membership), Error> {
    let pid = namespace_init::find(&context.proc, tid, namespace, context.options.ioctls);
    pin(pid.map_err(unknown(tid))?, namespace, context)
}

/// Pins the first process of a container in this namespace and reads what never changes about it.
pub(crate) fn pin(
    pid: u32,
    namespace: u64,
    context: &Context,
) -> Result<(Identity, Membership), Error> {
    let (proc, unknown) = (&context.proc, unknown(pid));
    let process = i32::try_from(pid).ok().and_then(Pid::from_raw).ok_or(Error::Gone(pid))?;
    let pidfd = rustix::process::pidfd_open(process, PidfdFlags::empty());
    let pidfd = pidfd.map_err(|errno| unknown(errno.into()))?;
    // The pidfd pins the number, if it still names the same process.
    if proc.pid_namespace(pid).map_err(&unknown)? != namespace {
        return Err(Error::Gone(pid));
    }
    let mut text = Vec::new();
    let stat = proc.read_of(pid, "stat", &mut text).map_err(&unknown)?;
    let start = clock::start_of(stat).ok_or(Error::Gone(pid))?;
    let offset = proc.read_of(pid, "timens_offsets", &mut text).ok();
    let offset = offset.and_then(clock::boottime_offset);
    let offset = offset.map(|offset| offset.saturating_sub(context.own_offset));
    let offset = offset.filter(|&offset| offset != 0);
    let mounts = proc.namespace(pid, "mnt").map_err(&unknown)?;
    let text = proc.read_of(pid, "cgroup", &mut text).map_err(&unknown)?;
    let membership = cgroup_namespace::membership(proc, pid, text);
    let init = Init { pid, pidfd, mounts, start, offset };
    Ok((Identity { namespace, init: Some(init), is_host: false, part: None }, membership))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_enoent_and_esrch_mean_that_the_thread_has_ended() {
        for errno in [Errno::NOENT, Errno::SRCH] {
            assert!(matches!(unknown(7)(errno.into()), Error::Gone(7)), "{errno}");
        }
        for errno in [Errno::MFILE, Errno::NFILE, Errno::NOMEM] {
            assert!(matches!(unknown(7)(errno.into()), Error::Read { .. }), "{errno}");
        }
    }
}
