//! Translates thread ids that a caller passes as arguments: they count in its own pid namespace.
//!
//! An untranslated id must never be used: on the host it is the id of another thread.

use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::time::Instant;

use ambit_kernel::sys::pid_in_namespace::pid_from_namespace;
use ambit_kernel::text;
use ambit_kernel::text::status::Status;
use rustix::fs::{AtFlags, CWD, Dir, Mode, OFlags, openat, statat};
use rustix::io::Errno;

use super::bucket;
use super::call::Call;
use crate::syscalls::context::Context;
use crate::verdict::CallError;

/// The most processes and threads of which a search reads the id.
const MOST: usize = 4096;

/// Returns the daemon's id of the thread that has this id in the caller's pid namespace; 0 is the
/// caller itself. If there is none, or if this kernel cannot tell, the call is left to the kernel.
///
/// Before Linux 6.11 the thread is searched by the last number of `NSpid:`, among the threads of the
/// caller and the processes of its pid namespace. The container is charged for that.
pub(super) fn translate(call: &Call, cx: &Context<'_>, id: i32) -> Result<i32, CallError> {
    if id == 0 {
        return Ok(call.tid.cast_signed());
    }
    let namespace = cx.open(call, "ns/pid")?;
    match pid_from_namespace(namespace.as_fd(), id) {
        Ok(tid) => Ok(tid),
        Err(Errno::NOTTY) => {
            let id = u32::try_from(id).map_err(|_| CallError::NotGranted)?;
            if cx.account.is_some_and(|account| account.operations(bucket::now(), 1).is_err()) {
                return Err(CallError::NotGranted);
            }
            let began = Instant::now();
            let found = search(cx.proc(call)?.as_fd(), namespace.as_fd(), id);
            if let Some(account) = cx.account {
                account.charge_processor(bucket::now(), began.elapsed());
            }
            cx.still_pending()?;
            found.ok_or(CallError::NotGranted)
        }
        Err(_) => Err(CallError::NotGranted),
    }
}

/// Searches the thread that has this id in a pid namespace. `caller` is the `/proc/<tid>` of a thread
/// in it.
fn search(caller: BorrowedFd<'_>, namespace: BorrowedFd<'_>, id: u32) -> Option<i32> {
    let namespace = rustix::fs::fstat(namespace).ok().map(|file| (file.st_dev, file.st_ino))?;
    let open = |folder: BorrowedFd<'_>, name: &str| {
        openat(folder, name, OFlags::RDONLY | OFlags::DIRECTORY | OFlags::CLOEXEC, Mode::empty())
    };
    let has_id = |folder: &OwnedFd, tid: u32| {
        let status = text::read(folder.as_fd(), &format!("{tid}/status"));
        status.is_ok_and(|status| innermost(&status) == Some(id))
    };
    // Threads of one process are in one pid namespace.
    let threads = open(caller, "task").ok()?;
    let of_caller = numbers(&threads).take(MOST).find(|&tid| has_id(&threads, tid));
    let found = of_caller.or_else(|| {
        let processes = open(CWD, "/proc").ok()?;
        let is_here = |&pid: &u32| {
            let file = statat(&processes, format!("{pid}/ns/pid"), AtFlags::empty());
            file.is_ok_and(|file| (file.st_dev, file.st_ino) == namespace)
        };
        numbers(&processes).take(MOST).filter(is_here).find(|&pid| has_id(&processes, pid))
    });
    found.map(u32::cast_signed)
}

/// Returns the entries of a folder that are numbers.
fn numbers(folder: &OwnedFd) -> impl Iterator<Item = u32> {
    let entries = Dir::read_from(folder).into_iter().flatten().flatten();
    entries.filter_map(|entry| entry.file_name().to_str().ok()?.parse().ok())
}

/// Returns the last number of the line `NSpid:`, or `Pid:` if the kernel has no pid namespaces.
pub(super) fn innermost(status: &[u8]) -> Option<u32> {
    let last = |label| Status(status).numbers(label).last();
    last("NSpid:").or_else(|| last("Pid:"))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_innermost_id_is_the_callers_own() {
        let status = b"Name:\tx\nPid:\t900\nPPid:\t1\nNSpid:\t900\t31\t2\n";
        assert_eq!(innermost(status), Some(2));
        assert_eq!(innermost(b"Name:\tx\nPid:\t900\n"), Some(900));
        assert_eq!(innermost(b"Name:\tx\n"), None);
    }

    #[test]
    fn kernels_without_the_ioctl_are_searched() {
        let caller = std::fs::File::open("/proc/self").unwrap();
        let namespace = std::fs::File::open("/proc/self/ns/pid").unwrap();
        let find = |id| search(caller.as_fd(), namespace.as_fd(), id);
        let id_of = |process: &str| {
            innermost(&std::fs::read(format!("/proc/{process}/status")).unwrap()).unwrap()
        };
        let mut child = std::process::Command::new("sleep").arg("60").spawn().unwrap();
        let (process, thread) = (child.id().to_string(), id_of("thread-self"));
        let found = (find(thread), find(id_of(&process)), find(u32::MAX));
        child.kill().unwrap();
        child.wait().unwrap();
        let tid = rustix::thread::gettid().as_raw_nonzero().get();
        assert_eq!(found, (Some(tid), Some(process.parse().unwrap()), None));
    }
}
