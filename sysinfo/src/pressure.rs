//! The kernel's own pressure files of a container, opened so that triggers can be set on them.
//!
//! A trigger lives as long as the open file it was written to, and its poll is the kernel's: who
//! serves the files forwards both. The file is that of the container's own cgroup, never an
//! ancestor's, whose pressure is somebody else's. Documentation/accounting/psi.rst.

use std::io;
use std::os::fd::{BorrowedFd, OwnedFd};
use std::sync::Arc;

use ambit_kernel::text::status::Status;
use rustix::fs::{Mode, OFlags};
use rustix::io::Errno;

use crate::Error;
use crate::budget::Charge;
use crate::context::Context;
use crate::membership::Membership;

/// What tasks wait for.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
#[allow(missing_docs, reason = "the variants carry the kernel's names")]
pub enum Stall {
    Cpu,
    Io,
    Memory,
}

impl Stall {
    /// The name of the file in `/proc/pressure`.
    #[must_use]
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
    /// What its account pays for it.
    pub charge: Charge,
    /// May the opener choose any window? Others may have windows of whole two seconds, which
    /// need no real-time thread of the kernel's.
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
        // Nothing accounts for this container's pressure.
        found.ok_or_else(|| failed(tid, name, Errno::OPNOTSUPP.into()))?
    };
    let flags = OFlags::RDWR | OFlags::NONBLOCK | OFlags::CLOEXEC;
    rustix::fs::openat(folder, &*path, flags, Mode::empty()).map_err(|errno| {
        // Without PSI there are no such files.
        let errno = if errno == Errno::NOENT { Errno::OPNOTSUPP } else { errno };
        failed(tid, name, errno.into())
    })
}

/// Has a thread the capability, in whichever user namespace? So the kernel asks as well.
pub(crate) fn is_privileged(tid: u32, context: &Context) -> bool {
    let mut text = Vec::new();
    context.proc.read_of(tid, "status", &mut text).is_ok_and(has_resource_capability)
}

/// The text is `/proc/<tid>/status`.
pub(crate) fn has_resource_capability(status: &[u8]) -> bool {
    Status(status).radix("CapEff:", 16).is_some_and(|set| set & SYS_RESOURCE != 0)
}

fn failed(tid: u32, name: &str, source: io::Error) -> Error {
    Error::Read { file: format!("{name}.pressure of the container of thread {tid}"), source }
}
