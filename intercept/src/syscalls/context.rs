//! The interface of a handler to its caller: the view of its container, its memory, its
//! `/proc/<tid>`.
//!
//! A file that was opened by the caller's thread id belongs to the caller if the notification is
//! still pending afterwards: until then the caller is in its system call, and its thread id cannot
//! have passed to another thread. So a descriptor must never be used before that was checked: open,
//! check, use. `memory.rs` says why that matters most for memory. The kernel itself checks the
//! answer.

use std::os::fd::{AsFd, OwnedFd};
use std::sync::Arc;

use ambit_kernel::text;
use ambit_sysinfo::{StatSet, View, Views};
use rustix::fs::{CWD, Mode, OFlags, openat};

use super::Settings;
use crate::account::Account;
use crate::audit::Notes;
use crate::call::Call;
use crate::memory::Memory;
use crate::operations::Operations;
use crate::pending::Pending;
use crate::verdict::{CallError, DaemonError};

/// The length of the longest string argument that the kernel accepts.
const PAGE: usize = 4096;
/// Most strings are shorter than this.
const USUAL: usize = 256;

/// The surroundings of one call.
pub struct Context<'a> {
    pub(crate) views: &'a dyn Views,
    pub(crate) pending: Pending<'a>,
    /// The caller's memory.
    pub(crate) memory: Memory<'a>,
    /// True if the policy has the handler `proc`, whose calls are also those of `mount`.
    pub(crate) covers_proc: bool,
    /// The settings of the container's policy.
    pub(crate) settings: &'a Settings,
    /// Performs privileged operations. `None` if the daemon has no broker.
    pub(crate) operations: Option<&'a Operations>,
    /// The container's name, for the log.
    pub(crate) container: &'a str,
    /// The container's account, if there is one.
    pub(crate) account: Option<&'a Account>,
    /// What the handler notes for the audit log.
    pub(crate) notes: Notes,
}

impl Context<'_> {
    /// Returns the view of the caller's container, of which these groups are current.
    ///
    /// # Errors
    /// There is no view; the kernel then runs the call.
    pub fn view(&self, call: &Call, wanted: StatSet) -> Result<Arc<View>, CallError> {
        Ok(self.views.view_with(call.tid, wanted)?)
    }

    /// Writes a result into the caller's memory, as the kernel would: a page that the caller cannot
    /// write is EFAULT, and does not change.
    ///
    /// # Errors
    /// EFAULT for the caller, or the caller does not wait any more.
    pub fn write(&self, call: &Call, address: u64, bytes: &[u8]) -> Result<(), CallError> {
        self.memory.write(call.tid, &self.pending, address, bytes)
    }

    /// Reads as many bytes of the caller's memory as the caller can, up to the length of the
    /// buffer.
    ///
    /// # Errors
    /// EFAULT if the caller can read nothing there, or the caller does not wait any more.
    pub fn read(&self, call: &Call, address: u64, buffer: &mut [u8]) -> Result<usize, CallError> {
        self.memory.read(call.tid, &self.pending, address, buffer)
    }

    /// Fills the buffer with the caller's memory. If the caller cannot read all of it, the call is
    /// left to the kernel.
    pub fn read_all(&self, call: &Call, address: u64, buffer: &mut [u8]) -> Result<(), CallError> {
        match self.read(call, address, buffer) {
            Ok(length) if length == buffer.len() => Ok(()),
            Ok(_) | Err(CallError::Fail(_)) => Err(CallError::NotGranted),
            Err(other) => Err(other),
        }
    }

    /// Returns a string argument. If it does not end within a page's length or cannot be read, the
    /// call is left to the kernel, which knows the errno.
    pub fn string(&self, call: &Call, index: usize) -> Result<Vec<u8>, CallError> {
        // Read a short piece first: every page that is read costs.
        for room in [USUAL, PAGE] {
            let mut text = vec![0; room];
            let length = match self.read(call, call.long(index), &mut text) {
                Ok(length) => length,
                Err(CallError::Fail(_)) => return Err(CallError::NotGranted),
                Err(other) => return Err(other),
            };
            if let Some(end) = text[..length].iter().position(|&byte| byte == 0) {
                text.truncate(end);
                return Ok(text);
            }
            if length < room {
                break;
            }
        }
        Err(CallError::NotGranted)
    }

    /// Opens the caller's `/proc/<tid>`.
    pub fn proc(&self, call: &Call) -> Result<OwnedFd, CallError> {
        let flags = OFlags::PATH | OFlags::DIRECTORY | OFlags::CLOEXEC;
        let opened = match self.pending {
            Pending::Directory(proc) => openat(proc, ".", flags, Mode::empty()),
            Pending::Listener(..) => {
                openat(CWD, format!("/proc/{}", call.tid), flags, Mode::empty())
            }
        };
        self.pending.check()?;
        opened.map_err(|_| CallError::Gone)
    }

    /// Returns the number of log lines about the container that were suppressed before this one, if
    /// another line about it may be logged. `texts` are the bytes of the caller's texts in it.
    pub(crate) fn may_log(&self, texts: usize) -> Option<u64> {
        self.account.map_or(Some(0), |account| account.may_log(texts))
    }

    /// Notes an argument for the audit log. `value` is called only if the call is audited.
    pub fn note(&self, name: &str, value: impl FnOnce() -> String) {
        self.notes.add(name, value);
    }

    /// Returns the text of the caller's `/proc/<tid>/status`. Empty if the caller does not wait any
    /// more.
    pub(crate) fn status(&self, call: &Call) -> Vec<u8> {
        let read = self.proc(call).ok().and_then(|proc| text::read(proc.as_fd(), "status").ok());
        read.filter(|_| self.still_pending().is_ok()).unwrap_or_default()
    }

    /// Checks that the caller still waits.
    pub fn still_pending(&self) -> Result<(), CallError> {
        self.pending.check()
    }

    /// Opens a file below the caller's `/proc/<tid>`.
    pub fn open(&self, call: &Call, file: &'static str) -> Result<OwnedFd, CallError> {
        let flags = OFlags::RDONLY | OFlags::CLOEXEC;
        let opened = match self.pending {
            Pending::Directory(proc) => openat(proc, file, flags, Mode::empty()),
            Pending::Listener(..) => {
                openat(CWD, format!("/proc/{}/{file}", call.tid), flags, Mode::empty())
            }
        };
        // A file that was opened by thread id is the caller's only if the call is still pending.
        self.pending.check()?;
        opened.map_err(|errno| CallError::Continue(DaemonError::System(file, errno)))
    }
}

impl std::fmt::Debug for Context<'_> {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Context").field("pending", &self.pending).finish_non_exhaustive()
    }
}
