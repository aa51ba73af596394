//! Taking hold of a caller for a quick act: less of it than for a mount, because it is done for
//! every call.

use std::os::fd::{AsFd, BorrowedFd, OwnedFd};

use rustix::fs::{Mode, OFlags};
use rustix::io::Errno;
use rustix::process::{Pid, PidfdFlags, pidfd_open};

use super::identity::Identity;
use crate::kernel_text;
use crate::kernel_text::status::Status;

const CAP_DAC: u64 = 1 << 1 | 1 << 2;

/// A caller, as descriptors and numbers of the host.
#[derive(Debug)]
pub struct Actor {
    /// Its root, `O_PATH`.
    pub root: OwnedFd,
    /// Where relative paths start: its folder, or the file that it named by a descriptor.
    pub base: OwnedFd,
    /// Its process. A worker ends with it: the control group of both may then be removed.
    pub process: OwnedFd,
    /// The number of its process.
    pub leader: i32,
    /// Its user namespace.
    pub users: OwnedFd,
    /// The text of its `/proc/<tid>/cgroup`.
    pub groups: Vec<u8>,
    /// Whom it acts as.
    pub who: Identity,
    /// The capabilities that it can use in its user namespace.
    pub effective: u64,
}

/// Where relative paths start.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Base {
    /// The caller's folder.
    Folder,
    /// One of its descriptors.
    Descriptor(i32),
}

impl Base {
    /// What `dirfd` means.
    #[must_use]
    pub fn of(dirfd: i32) -> Self {
        if dirfd == libc::AT_FDCWD { Self::Folder } else { Self::Descriptor(dirfd) }
    }
}

impl Actor {
    /// Reads everything. `proc` is the caller's `/proc/<tid>`; whoever calls this makes sure
    /// afterwards that the caller still waits.
    ///
    /// # Errors
    /// The caller is gone, or there is no such descriptor (EBADF).
    pub fn pin(proc: BorrowedFd<'_>, base: Base) -> Result<Self, Errno> {
        let path = |name: &str| {
            rustix::fs::openat(proc, name, OFlags::PATH | OFlags::CLOEXEC, Mode::empty())
        };
        let users =
            rustix::fs::openat(proc, "ns/user", OFlags::RDONLY | OFlags::CLOEXEC, Mode::empty())?;
        let text = |name: &str| kernel_text::read(proc, name).map_err(|_| Errno::SRCH);
        let status = text("status")?;
        let status = Status(&status);
        let umask = status.radix("Umask:", 8).and_then(|mask| u32::try_from(mask).ok());
        let who = Identity {
            // Real, effective, saved, of the filesystem.
            uid: status.numbers("Uid:").nth(3).ok_or(Errno::SRCH)?,
            gid: status.numbers("Gid:").nth(3).ok_or(Errno::SRCH)?,
            groups: status.numbers("Groups:").collect(),
            umask: umask.unwrap_or(0o022),
        };
        let process = status.numbers("Tgid:").next().and_then(|id| Pid::from_raw(id.cast_signed()));
        let process = process.ok_or(Errno::SRCH)?;
        Ok(Self {
            process: pidfd_open(process, PidfdFlags::empty())?,
            leader: process.as_raw_nonzero().get(),
            root: path("root")?,
            base: match base {
                Base::Folder => path("cwd")?,
                Base::Descriptor(fd) => path(&format!("fd/{fd}")).map_err(|_| Errno::BADF)?,
            },
            users,
            groups: text("cgroup")?,
            who,
            effective: status.radix("CapEff:", 16).unwrap_or(0),
        })
    }

    /// Can it use this capability?
    #[must_use]
    pub fn can(&self, capability: u32) -> bool {
        self.effective >> capability & 1 == 1
    }

    /// May it pass over permissions of files of its own user namespace?
    #[must_use]
    pub fn passes_over_permissions(&self) -> bool {
        self.effective & CAP_DAC != 0
    }

    /// The descriptors that a task needs.
    #[must_use]
    pub fn fds(&self) -> [BorrowedFd<'_>; 3] {
        [self.process.as_fd(), self.root.as_fd(), self.base.as_fd()]
    }
}
