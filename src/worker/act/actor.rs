//! Taking hold of a caller for a quick act: less of it than for a mount, because it is done for
//! every call.

use std::io::Read;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};

use rustix::fs::{Mode, OFlags};
use rustix::io::Errno;
use rustix::process::{Pid, PidfdFlags, pidfd_open};

use super::identity::Identity;

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
    pub groups: String,
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
        let status = text(proc, "status")?;
        let numbers = |label: &str| {
            let line = status.lines().find_map(|line| line.strip_prefix(label));
            line.unwrap_or_default().split_whitespace().filter_map(|word| word.parse::<u32>().ok())
        };
        let value = |label: &str, radix: u32| {
            let line = status.lines().find_map(|line| line.strip_prefix(label));
            line.and_then(|line| u64::from_str_radix(line.trim(), radix).ok())
        };
        let who = Identity {
            // Real, effective, saved, of the filesystem.
            uid: numbers("Uid:").nth(3).ok_or(Errno::SRCH)?,
            gid: numbers("Gid:").nth(3).ok_or(Errno::SRCH)?,
            groups: numbers("Groups:").collect(),
            umask: value("Umask:", 8).and_then(|mask| u32::try_from(mask).ok()).unwrap_or(0o022),
        };
        let process = numbers("Tgid:").next().and_then(|id| Pid::from_raw(id.cast_signed()));
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
            groups: text(proc, "cgroup")?,
            who,
            effective: value("CapEff:", 16).unwrap_or(0),
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

fn text(proc: BorrowedFd<'_>, name: &str) -> Result<String, Errno> {
    let file = rustix::fs::openat(proc, name, OFlags::RDONLY | OFlags::CLOEXEC, Mode::empty())?;
    // Enough for 65536 groups.
    let mut text = String::with_capacity(2048);
    let read = std::fs::File::from(file).take(1 << 20).read_to_string(&mut text);
    read.map_err(|_| Errno::SRCH)?;
    Ok(text)
}
