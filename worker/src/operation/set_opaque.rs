//! The operation `setxattr` for `trusted.overlay.opaque`, by which overlayfs marks a directory that
//! hides the layers below.
//!
//! For this attribute the kernel checks `CAP_SYS_ADMIN` over the host and nothing else. So this
//! operation must itself check that the caller may write the file, and that the file belongs to
//! users of the container. Start reading at [`SetOpaque::perform`].

use std::os::fd::{AsFd, AsRawFd, BorrowedFd};

use nix::fcntl::AtFlags;
use nix::unistd::{AccessFlags, faccessat};
use rustix::fs::{FileType, Mode, OFlags, ResolveFlags, XattrFlags};
use rustix::io::Errno;
use rustix::thread::CapabilitySet;
use serde::{Deserialize, Serialize};

use super::identity::use_only;
use super::reply::Reply;

/// The attribute. [`VALUE`] is the only value that is set.
pub(super) const NAME: &str = "trusted.overlay.opaque";
const VALUE: &[u8] = b"y";

/// The arguments of the operation.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct SetOpaque {
    /// The path, as the caller gave it. `None` stands for the base itself.
    pub path: Option<Vec<u8>>,
    /// Set if a symbolic link as last component is followed.
    pub follow: bool,
    /// `XATTR_CREATE` or `XATTR_REPLACE`, or 0.
    pub flags: u32,
    /// The users of the container, as ranges of ids of the host: first, count.
    pub users: Vec<(u32, u32)>,
    /// The groups of the container, likewise.
    pub groups: Vec<(u32, u32)>,
}

impl SetOpaque {
    /// Sets the attribute. `found` is the file, if [`crate::Find`] has shown that the caller's
    /// capabilities override its permissions. `fds` is the worker's own `/proc/self/fd`.
    pub(super) fn perform(
        &self,
        base: BorrowedFd<'_>,
        found: Option<BorrowedFd<'_>>,
        fds: BorrowedFd<'_>,
    ) -> Reply {
        match self.set(base, found, fds) {
            Ok(true) => Reply::Done,
            Ok(false) => Reply::Kernel,
            // As in `mknod.rs`: the path may lead through a magic link.
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
        // fsetxattr(2) fails with EBADF for an O_PATH descriptor, so setxattr(2) is called with its
        // link in /proc.
        if rustix::process::fchdir(fds).is_err() || use_only(CapabilitySet::SYS_ADMIN).is_err() {
            return Ok(false);
        }
        let flags = XattrFlags::from_bits_retain(self.flags);
        let set = rustix::fs::setxattr(file.as_raw_fd().to_string(), NAME, VALUE, flags);
        use_only(CapabilitySet::empty())?;
        set.map(|()| true)
    }
}
