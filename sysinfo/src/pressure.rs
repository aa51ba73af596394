//! Opens the kernel's pressure files of a container, to set triggers on them.
//!
//! A trigger lives as long as the open file that it was written to, and poll(2) on that file waits
//! for it: the overlay forwards writes and polls. The file is always that of the container's own
//! cgroup, never of an ancestor, which would show the pressure of siblings. See
//! Documentation/accounting/psi.rst. Start reading at `open`.

use std::io;
use std::os::fd::{BorrowedFd, OwnedFd};
use std::sync::Arc;

use ambit_kernel::text::status::Status;
use rustix::fs::{Mode, OFlags};
use rustix::io::Errno;

use crate::Error;
use crate::account::budget::Charge;
use crate::context::Context;
use crate::membership::Membership;

/// The resource that stalled tasks wait for.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
#[allow(missing_docs, reason = "the variants carry the kernel's names")]
pub enum Stall {
    Cpu,
    Io,
    Memory,
}

impl Stall {
    /// The name of the file in `/proc/pressure`.
    pub fn name(self) -> &'static str {
        match self {
            Self::Cpu => "cpu",
            Self::Io => "io",
            Self::Memory => "memory",
        }
    }
}

/// A pressure file of a container, open for reading and writing.
#[derive(Debug)]
pub struct TriggerFile {
    /// The kernel's file.
    pub file: OwnedFd,
    /// The charge to the account of the opener.
    pub charge: Charge,
    /// True if the opener may choose any window. Without CAP_SYS_RESOURCE windows are multiples of
    /// two seconds, which need no real-time kernel thread.
    pub privileged: bool,
}

/// `CAP_SYS_RESOURCE` in a set of capabilities.
const SYS_RESOURCE: u64 = 1 << 24;

pub(crate) fn open(
    tid: u32,
    is_host: bool,
    membership: &Arc<Membership>,
    stall: Stall,
    context: &Context,
) -> Result<OwnedFd, Error> {
    let name = stall.name();
    let (folder, path): (BorrowedFd<'_>, String) = if is_host {
        (std::os::fd::AsFd::as_fd(&*context.proc), format!("pressure/{name}"))
    } else {
        let found = context.hierarchies.unified_cgroup(membership);
        let found = found.filter(|(_, cgroup)| !cgroup.is_empty());
        let found =
            found.map(|(mount, cgroup)| (mount.root(), format!("{cgroup}/{name}.pressure")));
        // The container has no cgroup below the root of cgroup2.
        found.ok_or_else(|| failed(tid, name, Errno::OPNOTSUPP.into()))?
    };
    let flags = OFlags::RDWR | OFlags::NONBLOCK | OFlags::CLOEXEC;
    rustix::fs::openat(folder, &*path, flags, Mode::empty()).map_err(|errno| {
        // Without PSI the files do not exist.
        let errno = if errno == Errno::NOENT { Errno::OPNOTSUPP } else { errno };
        failed(tid, name, errno.into())
    })
}

/// True if a thread has the capability in any user namespace, which is what the kernel checks as
/// well.
pub(crate) fn is_privileged(tid: u32, context: &Context) -> bool {
    let mut text = Vec::new();
    context.proc.read_of(tid, "status", &mut text).is_ok_and(has_resource_capability)
}

/// Parses the text of `/proc/<tid>/status`.
pub(crate) fn has_resource_capability(status: &[u8]) -> bool {
    Status(status).radix("CapEff:", 16).is_some_and(|set| set & SYS_RESOURCE != 0)
}

fn failed(tid: u32, name: &str, source: io::Error) -> Error {
    Error::Read { file: format!("{name}.pressure of the container of thread {tid}"), source }
}
