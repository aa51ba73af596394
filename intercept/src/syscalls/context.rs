//! What a handler may do with its target: ask for numbers, write a result, look at `/proc`.
//!
//! What is opened by the target's thread id is the target's if the request is still pending
//! afterwards: as long as it is, the target sits in its system call and its thread id cannot have
//! passed to another thread. So everything is opened first, then the request is checked, and then
//! the descriptor is used. `memory.rs` says why that matters most for the target's memory. The
//! answer itself is checked by the kernel.

use std::os::fd::{AsFd, OwnedFd};
use std::sync::Arc;

use ambit_kernel::text;
use ambit_sysinfo::{View, Views};
use nix::errno::Errno;
use rustix::fs::{CWD, Mode, OFlags, openat};

use super::Settings;
use crate::account::Account;
use crate::acts::Acts;
use crate::audit::Notes;
use crate::call::Call;
use crate::memory::Memory;
use crate::pending::Pending;
use crate::verdict::{Cause, Refusal};

/// The kernel takes no longer strings as arguments.
const PAGE: usize = 4096;
/// Most strings are shorter.
const USUAL: usize = 256;

/// The surroundings of one call.
pub struct Context<'a> {
    pub(crate) views: &'a dyn Views,
    pub(crate) pending: Pending<'a>,
    /// The target's memory.
    pub(crate) memory: Memory<'a>,
    /// The settings of the container's policy.
    pub(crate) settings: &'a Settings,
    /// Who acts, if anybody does.
    pub(crate) acts: Option<&'a Acts>,
    /// The container's name, for the log.
    pub(crate) container: &'a str,
    /// What the container has had, if that is counted.
    pub(crate) account: Option<&'a Account>,
    /// What the audit log is told.
    pub(crate) notes: Notes,
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
    /// cannot write is EFAULT, and stays as it is.
    ///
    /// # Errors
    /// EFAULT for the target, or the target is gone.
    pub fn write(&self, call: &Call, address: u64, bytes: &[u8]) -> Result<(), Refusal> {
        self.memory.write(call.tid, &self.pending, address, bytes)
    }

    /// Reads from the target's memory as far as the target can; fewer bytes are no error.
    ///
    /// # Errors
    /// The target is gone, or can read nothing there.
    pub fn read(&self, call: &Call, address: u64, buffer: &mut [u8]) -> Result<usize, Refusal> {
        self.memory.read(call.tid, &self.pending, address, buffer)
    }

    /// A string argument; `None` when it does not end in a page's length or cannot be read: the
    /// kernel knows the errno.
    ///
    /// # Errors
    /// The target is gone.
    pub fn string(&self, call: &Call, index: usize) -> Result<Option<Vec<u8>>, Refusal> {
        // Most are short, and every page that a reading touches costs.
        for room in [USUAL, PAGE] {
            let mut text = vec![0; room];
            let length = match self.read(call, call.long(index), &mut text) {
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
    pub(crate) fn may_say(&self) -> Option<u64> {
        self.account.map_or(Some(0), Account::may_say)
    }

    /// Tells the audit log on what the decision depends. Asked for only when there is one.
    pub fn note(&self, name: &str, value: impl FnOnce() -> String) {
        self.notes.add(name, value);
    }

    /// The target's `/proc/<tid>/status` as far as it matters; nothing when the target is gone.
    pub(crate) fn status(&self, call: &Call) -> Vec<u8> {
        let read = self.proc(call).ok().and_then(|proc| text::read(proc.as_fd(), "status").ok());
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
