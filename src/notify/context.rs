//! What a handler may do with its target: ask for numbers, write a result, look at `/proc`.
//!
//! Every act first makes sure that the request is still pending: as long as it is, the target
//! sits in its system call and its thread id cannot have passed to somebody else. Between that
//! look and the act remain the microseconds in which a killed target's id would have to be
//! handed out again after a whole round through the pid space; the answer itself is checked by
//! the kernel.

use std::io::{IoSlice, IoSliceMut};
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::sync::Arc;

use ambit_sysinfo::{View, Views};
use nix::errno::Errno;
use nix::sys::uio::{RemoteIoVec, process_vm_readv, process_vm_writev};
use nix::unistd::Pid;
use rustix::fs::{AtFlags, CWD, Mode, OFlags, openat, statat};

use super::account::Account;
use super::acts::Acts;
use super::audit::Notes;
use super::call::Call;
use super::handler::{Cause, Refusal};
use super::listener::id_valid;
use super::recent::Recent;
use super::settings::Settings;
use crate::kernel_text;

/// No page is smaller.
const PAGE: usize = 4096;
/// Most strings are shorter.
const USUAL: usize = 256;

/// How to see that a request is still pending.
#[derive(Debug, Clone, Copy)]
pub(super) enum Pending<'a> {
    /// Ask the listener for the request's id.
    Listener(BorrowedFd<'a>, u64),
    /// liblxc before 4.0.5 keeps the listener to itself. It sends an open `/proc/<tid>`, in
    /// which nothing can be found once the thread is gone.
    Directory(BorrowedFd<'a>),
}

impl Pending<'_> {
    pub(super) fn check(&self) -> Result<(), Refusal> {
        let there = match self {
            Self::Listener(listener, id) => id_valid(*listener, *id).is_ok(),
            Self::Directory(proc) => statat(proc, "stat", AtFlags::empty()).is_ok(),
        };
        if there { Ok(()) } else { Err(Refusal::Gone) }
    }
}

/// The surroundings of one call.
pub struct Context<'a> {
    pub(super) views: &'a dyn Views,
    pub(super) pending: Pending<'a>,
    /// The settings of the container's policy.
    pub(super) settings: &'a Settings,
    /// Who acts, if anybody does.
    pub(super) acts: Option<&'a Acts>,
    /// The container's name, for the log.
    pub(super) container: &'a str,
    /// What the container has had, if that is counted.
    pub(super) account: Option<&'a Account>,
    /// Threads that called lately, if they are kept.
    pub(super) recent: Option<&'a Recent>,
    /// What the audit log is told.
    pub(super) notes: Notes,
}

impl Context<'_> {
    /// The numbers that the target's container is shown.
    ///
    /// # Errors
    /// There are none; the kernel then runs the call.
    pub fn view(&self, call: &Call) -> Result<Arc<View>, Refusal> {
        Ok(self.views.view(call.tid)?)
    }

    /// Writes a result into the target's memory, as the kernel would: a page that the target
    /// may not write is EFAULT (`/proc/<pid>/mem` would write it nevertheless).
    ///
    /// # Errors
    /// EFAULT for the target, or the target is gone.
    pub fn write(&self, call: &Call, address: u64, bytes: &[u8]) -> Result<(), Refusal> {
        let base = usize::try_from(address).map_err(|_| Refusal::Fail(Errno::EFAULT))?;
        let pid = pid(call)?;
        self.pending.check()?;
        let remote = [RemoteIoVec { base, len: bytes.len() }];
        match process_vm_writev(pid, &[IoSlice::new(bytes)], &remote) {
            Ok(written) if written == bytes.len() => Ok(()),
            // A part of it reaches into a page that cannot be written.
            Ok(_) | Err(Errno::EFAULT) => Err(Refusal::Fail(Errno::EFAULT)),
            Err(Errno::ESRCH) => Err(Refusal::Gone),
            Err(errno) => Err(Refusal::Continue(Cause::System(
                "process_vm_writev into the caller (needs CAP_SYS_PTRACE)",
                errno,
            ))),
        }
    }

    /// Reads from the target's memory as far as it can be read; fewer bytes are no error. What was
    /// read is the target's: the request is still pending afterwards.
    ///
    /// # Errors
    /// The target is gone, or nothing can be read.
    pub fn read(&self, call: &Call, address: u64, buffer: &mut [u8]) -> Result<usize, Refusal> {
        let read = copy(call, address, buffer);
        self.pending.check()?;
        read
    }

    /// A string argument; `None` when it does not end in a page's length or cannot be read: the
    /// kernel knows the errno. Whose it is, is not known before it is seen that the request is still
    /// pending, as with `acts::pin`.
    ///
    /// # Errors
    /// The target is gone.
    pub fn string(&self, call: &Call, index: usize) -> Result<Option<Vec<u8>>, Refusal> {
        // Most are short, and every page that a reading touches costs.
        for room in [USUAL, PAGE] {
            let mut text = vec![0; room];
            let length = match copy(call, call.long(index), &mut text) {
                Ok(length) => length,
                Err(Refusal::Fail(_)) => return Ok(None),
                Err(other) => return Err(other),
            };
            if let Some(end) = text[..length].iter().position(|&byte| byte == 0) {
                text.truncate(end);
                return Ok(Some(text));
            }
            if length < room {
                break;
            }
        }
        Ok(None)
    }

    /// The target's `/proc/<tid>`.
    ///
    /// # Errors
    /// The target is gone.
    pub fn proc(&self, call: &Call) -> Result<OwnedFd, Refusal> {
        let flags = OFlags::PATH | OFlags::DIRECTORY | OFlags::CLOEXEC;
        let opened = match self.pending {
            Pending::Directory(proc) => openat(proc, ".", flags, Mode::empty()),
            Pending::Listener(..) => {
                openat(CWD, format!("/proc/{}", call.tid), flags, Mode::empty())
            }
        };
        self.pending.check()?;
        opened.map_err(|_| Refusal::Gone)
    }

    /// May a line about this call be logged? Then the number of those of its container that were
    /// suppressed before it.
    pub(super) fn may_say(&self) -> Option<u64> {
        self.account.map_or(Some(0), Account::may_say)
    }

    /// Tells the audit log on what the decision depends. Asked for only when there is one.
    pub fn note(&self, name: &str, value: impl FnOnce() -> String) {
        self.notes.add(name, value);
    }

    /// The target's `/proc/<tid>/status` as far as it matters; nothing when the target is gone.
    pub(super) fn status(&self, call: &Call) -> Vec<u8> {
        let read =
            self.proc(call).ok().and_then(|proc| kernel_text::read(proc.as_fd(), "status").ok());
        read.filter(|_| self.still_pending().is_ok()).unwrap_or_default()
    }

    /// Makes sure that the target still waits.
    ///
    /// # Errors
    /// It does not.
    pub fn still_pending(&self) -> Result<(), Refusal> {
        self.pending.check()
    }

    /// Opens a file below the target's `/proc/<tid>`.
    ///
    /// # Errors
    /// The target is gone, or the file cannot be opened.
    pub fn open(&self, call: &Call, file: &'static str) -> Result<OwnedFd, Refusal> {
        let flags = OFlags::RDONLY | OFlags::CLOEXEC;
        let opened = match self.pending {
            Pending::Directory(proc) => openat(proc, file, flags, Mode::empty()),
            Pending::Listener(..) => {
                openat(CWD, format!("/proc/{}/{file}", call.tid), flags, Mode::empty())
            }
        };
        // What was opened by number is the target's only if the request is still pending.
        self.pending.check()?;
        opened.map_err(|errno| {
            Refusal::Continue(Cause::System(file, Errno::from_raw(errno.raw_os_error())))
        })
    }
}

impl std::fmt::Debug for Context<'_> {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Context").field("pending", &self.pending).finish_non_exhaustive()
    }
}

/// Reads from the memory of whoever has the target's number.
fn copy(call: &Call, address: u64, buffer: &mut [u8]) -> Result<usize, Refusal> {
    let base = usize::try_from(address).map_err(|_| Refusal::Fail(Errno::EFAULT))?;
    // Parts that end at the end of a page: the next page may not be there.
    let (mut parts, mut at) = (Vec::new(), 0);
    while at < buffer.len() {
        let from = base.checked_add(at).ok_or(Refusal::Fail(Errno::EFAULT))?;
        let len = (PAGE - from % PAGE).min(buffer.len() - at);
        parts.push(RemoteIoVec { base: from, len });
        at += len;
    }
    match process_vm_readv(pid(call)?, &mut [IoSliceMut::new(buffer)], &parts) {
        Ok(length) => Ok(length),
        Err(Errno::EFAULT) => Err(Refusal::Fail(Errno::EFAULT)),
        Err(Errno::ESRCH) => Err(Refusal::Gone),
        Err(errno) => Err(Refusal::Continue(Cause::System(
            "process_vm_readv from the caller (needs CAP_SYS_PTRACE)",
            errno,
        ))),
    }
}

fn pid(call: &Call) -> Result<Pid, Refusal> {
    // 0 is what the kernel reports for a thread outside of our pid namespace.
    match i32::try_from(call.tid) {
        Ok(tid) if tid > 0 => Ok(Pid::from_raw(tid)),
        _ => Err(Refusal::Continue(Cause::View(ambit_sysinfo::Error::Gone(call.tid)))),
    }
}
