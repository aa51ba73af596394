//! The operation `setxattr` for `trusted.overlay.opaque`, by which overlayfs marks a directory that
//! hides the layers below.
//!
//! For this attribute the kernel checks `CAP_SYS_ADMIN` over the host and nothing else. So this
//! operation must itself check that the caller may write the file, and that the file belongs to
//! users of the container. Start reading at [`SetOpaque::perform`].

use std::os::fd::{AsFd, AsRawFd, BorrowedFd};

use ambit_kernel::sys::errno::to_errno;
use nix::fcntl::AtFlags;
use nix::unistd::{AccessFlags, faccessat};
use rustix::fs::{FileType, OFlags, XattrFlags};
use rustix::io::Errno;
use rustix::thread::CapabilitySet;
use serde::{Deserialize, Serialize};

use super::identity::use_only;
use super::reply::Reply;
use crate::lookup::open_path;

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
            Err(Errno::LOOP | Errno::NOENT) if found.is_none() => Reply::unresolved(),
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
                let flags = if self.follow { OFlags::empty() } else { OFlags::NOFOLLOW };
                opened = open_path(base, path, flags)?;
                opened.as_fd()
            }
        };
        let stat = rustix::fs::fstat(file)?;
        let kind = FileType::from_raw_mode(stat.st_mode);
        if !matches!(kind, FileType::RegularFile | FileType::Directory) {
            return Ok(false);
        }
        if !is_within(stat.st_uid, &self.users) || !is_within(stat.st_gid, &self.groups) {
            return Err(Errno::PERM);
        }
        if found.is_none() {
            let flags = AtFlags::AT_EMPTY_PATH | AtFlags::AT_EACCESS;
            faccessat(file, c"", AccessFlags::W_OK, flags).map_err(to_errno)?;
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

/// True if an id is in one of these ranges: first, count.
fn is_within(id: u32, ranges: &[(u32, u32)]) -> bool {
    ranges.iter().any(|(first, count)| id.checked_sub(*first).is_some_and(|at| at < *count))
}

#[cfg(test)]
mod tests {
    use std::fs::File;

    use rustix::fs::CWD;

    use super::*;

    const EVERY_ID: [(u32, u32); 1] = [(0, u32::MAX)];

    fn set(path: &str, users: &[(u32, u32)], groups: &[(u32, u32)]) -> Reply {
        let (path, users, groups) = (Some(path.into()), users.to_vec(), groups.to_vec());
        let fds = File::open("/proc/self/fd").unwrap();
        SetOpaque { path, follow: true, flags: 0, users, groups }.perform(CWD, None, fds.as_fd())
    }

    #[test]
    fn a_file_of_no_user_of_the_container_is_eperm() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().to_str().unwrap();
        let refused = Reply::Failed(Errno::PERM);
        let [uid, gid] = [nix::unistd::getuid().as_raw(), nix::unistd::getgid().as_raw()];
        assert_eq!(set(path, &[], &EVERY_ID), refused);
        assert_eq!(set(path, &EVERY_ID, &[]), refused);
        assert_eq!(set(path, &[(uid + 1, 65_536)], &EVERY_ID), refused);
        assert_eq!(set(path, &EVERY_ID, &[(gid + 1, 65_536)]), refused);
    }

    #[test]
    fn a_device_and_a_path_through_a_magic_link_are_not_tried() {
        assert_eq!(set("/dev/null", &EVERY_ID, &EVERY_ID), Reply::Kernel);
        let folder = tempfile::tempdir().unwrap();
        let path = format!("/proc/self/root{}", folder.path().display());
        assert_eq!(set(&path, &EVERY_ID, &EVERY_ID), Reply::MagicLink);
    }

    #[test]
    fn a_range_of_ids_ends_before_its_first_id_plus_its_count() {
        let ranges = [(1000, 1), (100_000, 65_536), (u32::MAX, 5)];
        for id in [1000, 100_000, 165_535, u32::MAX] {
            assert!(is_within(id, &ranges), "{id}");
        }
        for id in [0, 999, 1001, 99_999, 165_536] {
            assert!(!is_within(id, &ranges), "{id}");
        }
    }
}
