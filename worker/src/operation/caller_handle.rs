//! Pins what a worker needs of the caller of a privileged operation.
//!
//! There are two pinned callers, because this one is made for every call and has ids of the host,
//! while [`WholeCaller`](crate::WholeCaller) has what it takes to enter the caller's namespaces, with
//! the ids in them, and costs many more system calls.
//!
//! A read in an open `/proc/<tid>` directory fails once the thread has ended, so a reused thread id
//! is noticed. Nothing here may block: the files are of the kernel, never of the container. Start
//! reading at [`CallerHandle::pin`].

use std::os::fd::{BorrowedFd, OwnedFd};

use rustix::fs::{Mode, OFlags, openat};
use rustix::io::Errno;
use rustix::process::{Pid, PidfdFlags, pidfd_open};

use super::identity::Identity;
use super::magic_link::MagicLink;
use ambit_kernel::text::{
    self,
    status::{Credentials, Status},
};

/// `CAP_DAC_OVERRIDE` and `CAP_DAC_READ_SEARCH`.
const CAP_DAC: u64 = 1 << 1 | 1 << 2;

/// What a worker needs of a caller: descriptors, and ids of the host.
#[derive(Debug)]
pub struct CallerHandle {
    /// Its root, `O_PATH`.
    pub root: OwnedFd,
    /// The directory at which paths start: the working directory, or the file of a `dirfd`. `None`
    /// stands for the root.
    pub base: Option<OwnedFd>,
    /// The pidfd of its process. A worker ends with that process, so that the control group of both
    /// can be removed.
    pub process: OwnedFd,
    /// The pid of its process.
    pub leader: i32,
    /// True if its process is the first one of its pid namespace, with which the container ends.
    pub is_init: bool,
    /// Its user namespace.
    pub users: OwnedFd,
    /// The content of its `/proc/<tid>/cgroup`.
    pub groups: Vec<u8>,
    /// The ids that a worker assumes for it.
    pub who: Identity,
    /// The effective capabilities in its user namespace.
    pub effective: u64,
}

/// The directory at which a path of the caller starts.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Base {
    /// The caller's root: the path is absolute, or there is no path.
    Root,
    /// The caller's working directory.
    Folder,
    /// A descriptor of the caller.
    Descriptor(i32),
    /// The target of a magic link.
    Link(MagicLink),
}

impl Base {
    /// Returns the base of a path for a `dirfd` argument, as openat(2) does.
    pub fn of(dirfd: i32, path: &[u8]) -> Self {
        match dirfd {
            _ if path.first() == Some(&b'/') => Self::Root,
            libc::AT_FDCWD => Self::Folder,
            dirfd => Self::Descriptor(dirfd),
        }
    }
}

impl CallerHandle {
    /// Pins a thread by `proc`, its `/proc/<tid>`. The code that calls this must check
    /// afterwards that the thread still waits in its system call.
    ///
    /// # Errors
    /// The thread has ended, or it has no such descriptor (EBADF).
    pub fn pin(proc: BorrowedFd<'_>, base: Base) -> Result<Self, Errno> {
        let text = |name: &str| text::read(proc, name).map_err(|_| Errno::SRCH);
        let open = |name: &str, flags| openat(proc, name, flags | OFlags::CLOEXEC, Mode::empty());
        let status = text("status")?;
        let credentials = Credentials::of(Status(&status)).ok_or(Errno::SRCH)?;
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
                Base::Link(link) => Some(open(&link.path(leader), OFlags::PATH)?),
            },
            process: pidfd_open(process, PidfdFlags::empty())?,
            leader,
            is_init: Status(&status).numbers("NStgid:").last() == Some(1_u32),
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

    /// True if this capability is effective.
    pub fn can(&self, capability: u32) -> bool {
        self.effective >> capability & 1 == 1
    }

    /// True if it can override permissions of files that belong to its user namespace.
    pub fn passes_over_permissions(&self) -> bool {
        self.effective & CAP_DAC != 0
    }
}

#[cfg(test)]
mod tests {
    use std::os::fd::AsFd;

    use super::*;

    #[test]
    fn a_path_starts_where_openat_starts_it() {
        assert_eq!(Base::of(libc::AT_FDCWD, b"null"), Base::Folder);
        assert_eq!(Base::of(libc::AT_FDCWD, b""), Base::Folder);
        assert_eq!(Base::of(5, b"dev/null"), Base::Descriptor(5));
        for dirfd in [libc::AT_FDCWD, 5, -1] {
            assert_eq!(Base::of(dirfd, b"/dev/null"), Base::Root);
        }
    }

    #[test]
    fn a_working_directory_outside_of_the_root_stays_the_callers() {
        let folder = tempfile::tempdir().unwrap();
        let mut child = std::process::Command::new("sleep")
            .arg("60")
            .current_dir(folder.path())
            .spawn()
            .unwrap();
        let proc = std::fs::File::open(format!("/proc/{}", child.id())).unwrap();
        let handle = CallerHandle::pin(proc.as_fd(), Base::Folder).unwrap();
        let inode = |fd: &OwnedFd| rustix::fs::fstat(fd).unwrap().st_ino;
        let path = |path: &std::path::Path| rustix::fs::stat(path).unwrap().st_ino;
        assert_eq!(inode(handle.base.as_ref().unwrap()), path(folder.path()));
        assert_eq!(inode(&handle.root), path("/".as_ref()));
        child.kill().unwrap();
        child.wait().unwrap();
    }

    #[test]
    fn a_capability_is_one_bit_of_the_effective_set() {
        let proc = std::fs::File::open("/proc/self").unwrap();
        let mut handle = CallerHandle::pin(proc.as_fd(), Base::Root).unwrap();
        handle.effective = 1 << 27;
        assert!(handle.can(27) && !handle.can(26) && !handle.can(28));
        assert!(!handle.passes_over_permissions());
        for dac in [1, 2] {
            handle.effective = 1 << dac;
            assert!(handle.passes_over_permissions() && !handle.can(21));
        }
    }

    #[test]
    fn a_thread_is_read_until_it_ends() {
        let mut child = std::process::Command::new("sleep").arg("60").spawn().unwrap();
        let flags = OFlags::PATH | OFlags::CLOEXEC;
        let proc = format!("/proc/{}", child.id());
        let proc = openat(rustix::fs::CWD, proc, flags, Mode::empty()).unwrap();
        let folder = CallerHandle::pin(proc.as_fd(), Base::Folder).unwrap();
        let root = CallerHandle::pin(proc.as_fd(), Base::Root).unwrap();
        assert!(folder.base.is_some() && root.base.is_none());
        assert_eq!(folder.leader, child.id().cast_signed());
        assert_eq!(CallerHandle::pin(proc.as_fd(), Base::Descriptor(99)).unwrap_err(), Errno::BADF);
        child.kill().unwrap();
        child.wait().unwrap();
        assert!(CallerHandle::pin(proc.as_fd(), Base::Root).is_err());
    }
}
