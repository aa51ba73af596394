//! `trusted.overlay.opaque`, with which overlayfs marks what hides the layers below.
//!
//! The kernel asks for nothing but the host's `CAP_SYS_ADMIN`. Here the caller must be allowed to
//! write the file, and the file must belong to users of its container.

use std::os::fd::{AsFd, AsRawFd, BorrowedFd};

use nix::fcntl::AtFlags;
use nix::unistd::{AccessFlags, faccessat};
use rustix::fs::{FileType, Mode, OFlags, ResolveFlags, XattrFlags};
use rustix::io::Errno;
use rustix::thread::CapabilitySet;
use serde::{Deserialize, Serialize};

use super::identity::use_only;
use super::reply::Reply;

/// The attribute, and the only value it may get.
pub(super) const NAME: &str = "trusted.overlay.opaque";
const VALUE: &[u8] = b"y";

/// A file that is to be marked.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct SetOpaque {
    /// Which, as the caller named it; without a path it is the base itself.
    pub path: Option<Vec<u8>>,
    /// Is a symbolic link at the end followed?
    pub follow: bool,
    /// `XATTR_CREATE` and `XATTR_REPLACE`.
    pub flags: u32,
    /// The users of the container on the host: first, count.
    pub users: Vec<(u32, u32)>,
    /// The groups of the container on the host.
    pub groups: Vec<(u32, u32)>,
}

impl SetOpaque {
    /// Sets it. `found` is the file, if the caller was found to have the right to write it in
    /// spite of the permissions. `fds` is the worker's own `/proc/self/fd`.
    pub(super) fn act(
        &self,
        base: BorrowedFd<'_>,
        found: Option<BorrowedFd<'_>>,
        fds: BorrowedFd<'_>,
    ) -> Reply {
        match self.set(base, found, fds) {
            Ok(true) => Reply::Done,
            Ok(false) => Reply::Kernel,
            // As for device nodes.
            Err(Errno::LOOP | Errno::NOENT) if found.is_none() => Reply::Kernel,
            Err(errno) => Reply::from(Err::<(), _>(errno)),
        }
    }

    fn set(
        &self,
        base: BorrowedFd<'_>,
        found: Option<BorrowedFd<'_>>,
        fds: BorrowedFd<'_>,
    ) -> Result<bool, Errno> {
        let opened;
        let file = match (found, &self.path) {
            (Some(found), _) => found,
            (None, None) => base,
            (None, Some(path)) => {
                let mut flags = OFlags::PATH | OFlags::CLOEXEC;
                flags.set(OFlags::NOFOLLOW, !self.follow);
                let resolve = ResolveFlags::NO_MAGICLINKS;
                opened = rustix::fs::openat2(base, &**path, flags, Mode::empty(), resolve)?;
                opened.as_fd()
            }
        };
        let stat = rustix::fs::fstat(file)?;
        let kind = FileType::from_raw_mode(stat.st_mode);
        if !matches!(kind, FileType::RegularFile | FileType::Directory) {
            return Ok(false);
        }
        let within = |id: u32, ranges: &[(u32, u32)]| {
            ranges.iter().any(|(first, count)| id.checked_sub(*first).is_some_and(|at| at < *count))
        };
        if !within(stat.st_uid, &self.users) || !within(stat.st_gid, &self.groups) {
            return Err(Errno::PERM);
        }
        if found.is_none() {
            let flags = AtFlags::AT_EMPTY_PATH | AtFlags::AT_EACCESS;
            faccessat(file, c"", AccessFlags::W_OK, flags)
                .map_err(|errno| Errno::from_raw_os_error(errno as i32))?;
        }
        // An O_PATH descriptor has no attributes; its link in /proc leads to the very file.
        if rustix::process::fchdir(fds).is_err() || use_only(CapabilitySet::SYS_ADMIN).is_err() {
            return Ok(false);
        }
        let flags = XattrFlags::from_bits_retain(self.flags);
        let set = rustix::fs::setxattr(file.as_raw_fd().to_string(), NAME, VALUE, flags);
        use_only(CapabilitySet::empty())?;
        set.map(|()| true)
    }
}
