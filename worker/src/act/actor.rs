//! Pinning a caller for a quick act: less of it than for a mount, because it is done for every call.
//!
//! A file of a thread's `/proc` tells of that very thread or fails once it has ended, so a number that
//! has come round again is noticed.

use std::os::fd::{BorrowedFd, OwnedFd};

use rustix::fs::{Mode, OFlags, openat};
use rustix::io::Errno;
use rustix::process::{Pid, PidfdFlags, pidfd_open};

use super::identity::Identity;
use ambit_kernel::text::{
    self,
    status::{Credentials, Status},
};

const CAP_DAC: u64 = 1 << 1 | 1 << 2;

/// A caller, as descriptors and numbers of the host.
#[derive(Debug)]
pub struct Actor {
    /// Its root, `O_PATH`.
    pub root: OwnedFd,
    /// Where paths start: its folder, or the file that it named by a descriptor. `None`: its root.
    pub base: Option<OwnedFd>,
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

/// Where paths start.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Base {
    /// At the caller's root: the path is absolute, or there is none.
    Root,
    /// The caller's folder.
    Folder,
    /// One of its descriptors.
    Descriptor(i32),
}

impl Base {
    /// What `dirfd` means for this path.
    #[must_use]
    pub fn of(dirfd: i32, path: &[u8]) -> Self {
        match dirfd {
            _ if path.first() == Some(&b'/') => Self::Root,
            libc::AT_FDCWD => Self::Folder,
            dirfd => Self::Descriptor(dirfd),
        }
    }
}

impl Actor {
    /// Reads what a thread is now. `proc` is its `/proc/<tid>`. The caller makes sure afterwards that the
    /// thread still waits.
    ///
    /// # Errors
    /// The thread is gone, or there is no such descriptor (EBADF).
    pub fn read(proc: BorrowedFd<'_>, base: Base) -> Result<Self, Errno> {
        let text = |name: &str| text::read(proc, name).map_err(|_| Errno::SRCH);
        let open = |name: &str, flags| openat(proc, name, flags | OFlags::CLOEXEC, Mode::empty());
        let credentials = Credentials::of(Status(&text("status")?)).ok_or(Errno::SRCH)?;
        let leader = credentials.tgid.cast_signed();
        let process = Pid::from_raw(leader).ok_or(Errno::SRCH)?;
        Ok(Self {
            root: open("root", OFlags::PATH)?,
            base: match base {
                Base::Root => None,
                Base::Folder => Some(open("cwd", OFlags::PATH)?),
                Base::Descriptor(fd) => {
                    let opened = open(&format!("fd/{fd}"), OFlags::PATH);
                    Some(opened.map_err(|_| Errno::BADF)?)
                }
            },
            process: pidfd_open(process, PidfdFlags::empty())?,
            leader,
            users: open("ns/user", OFlags::RDONLY)?,
            groups: text("cgroup")?,
            who: Identity {
                uid: credentials.fsuid,
                gid: credentials.fsgid,
                groups: credentials.groups,
                umask: credentials.umask.unwrap_or(0o022),
            },
            effective: credentials.effective,
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
}

#[cfg(test)]
mod tests {
    use std::os::fd::AsFd;

    use super::*;

    #[test]
    fn a_thread_is_read_until_it_ends() {
        let mut child = std::process::Command::new("sleep").arg("60").spawn().unwrap();
        let flags = OFlags::PATH | OFlags::CLOEXEC;
        let proc = format!("/proc/{}", child.id());
        let proc = openat(rustix::fs::CWD, proc, flags, Mode::empty()).unwrap();
        let folder = Actor::read(proc.as_fd(), Base::Folder).unwrap();
        let root = Actor::read(proc.as_fd(), Base::Root).unwrap();
        assert!(folder.base.is_some() && root.base.is_none());
        assert_eq!(folder.leader, child.id().cast_signed());
        assert_eq!(Actor::read(proc.as_fd(), Base::Descriptor(99)).unwrap_err(), Errno::BADF);
        child.kill().unwrap();
        child.wait().unwrap();
        assert!(Actor::read(proc.as_fd(), Base::Root).is_err());
    }
}
