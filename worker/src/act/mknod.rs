//! Device nodes.
//!
//! The folder is found with the caller's permissions, the node is made with `CAP_MKNOD` in
//! addition: the kernel judges everything else, and the node is the caller's. The device policy
//! of the caller's control group decides too.

use std::os::fd::{AsFd, BorrowedFd};

use rustix::fs::{AtFlags, FileType, Mode, OFlags, ResolveFlags, StatVfsMountFlags};
use rustix::thread::CapabilitySet;
use serde::{Deserialize, Serialize};

use super::identity::use_only;
use super::reply::Reply;

/// A character device that is to be made.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Mknod {
    /// Where, as the caller named it.
    pub path: Vec<u8>,
    /// Permissions, before the mask.
    pub mode: u32,
    /// The device number.
    pub device: u64,
}

/// Filesystems by device number, and whether their device nodes can be opened.
pub(super) type Opens = Vec<(u64, bool)>;

/// What making a node takes. It passes over no permissions, so it may be in force while the folder
/// is looked for.
pub(super) const RIGHTS: CapabilitySet = CapabilitySet::MKNOD;

/// How many filesystems are remembered.
const REMEMBERED: usize = 64;

/// Devices that can be opened and closed without any effect.
const HARMLESS: [(u32, u32); 9] =
    [(1, 3), (1, 5), (1, 7), (1, 8), (1, 9), (5, 0), (5, 1), (5, 2), (10, 229)];

/// The folder that a path's last name is in, and that name with the slashes after it.
#[must_use]
pub(super) fn split(path: &[u8]) -> Option<(&[u8], &[u8])> {
    let end = path.iter().rposition(|&byte| byte != b'/')? + 1;
    Some(match path[..end].iter().rposition(|&byte| byte == b'/') {
        Some(slash) => path.split_at(slash + 1),
        None => (b".", path),
    })
}

impl Mknod {
    /// The folder in which the node is to be.
    #[must_use]
    pub fn folder(&self) -> &[u8] {
        split(&self.path).map_or(b"/", |(folder, _)| folder)
    }

    /// That folder, and the node's name with the slashes after it.
    pub(crate) fn place(&self) -> Option<(&[u8], &[u8])> {
        split(&self.path)
    }

    /// Makes the node. `found` is its folder, if the caller was found to have the right to write
    /// there in spite of the permissions.
    pub(super) fn act(
        &self,
        base: BorrowedFd<'_>,
        found: Option<BorrowedFd<'_>>,
        opens: &mut Opens,
    ) -> Reply {
        match self.make(base, found, opens) {
            // The kernel says the same, unless the way leads through /proc/self or its like, which
            // is not the worker's.
            Err(rustix::io::Errno::LOOP | rustix::io::Errno::NOENT) if found.is_none() => {
                Reply::Kernel
            }
            Ok(false) => Reply::NoDevices,
            other => other.into(),
        }
    }

    /// False: nodes of the filesystem cannot be opened, and none was made.
    fn make(
        &self,
        base: BorrowedFd<'_>,
        found: Option<BorrowedFd<'_>>,
        opens: &mut Opens,
    ) -> Result<bool, rustix::io::Errno> {
        let Some((folder, name)) = split(&self.path) else {
            // Nothing but slashes, or nothing at all.
            let empty = self.path.is_empty();
            return Err(if empty { rustix::io::Errno::NOENT } else { rustix::io::Errno::EXIST });
        };
        let opened;
        let folder = match found {
            Some(found) => found,
            None => {
                let flags = OFlags::PATH | OFlags::DIRECTORY | OFlags::CLOEXEC;
                let resolve = ResolveFlags::NO_MAGICLINKS;
                opened = rustix::fs::openat2(base, folder, flags, Mode::empty(), resolve)?;
                opened.as_fd()
            }
        };
        let flags = rustix::fs::fstatvfs(folder)?.f_flag;
        // On a read-only one nothing will be made, and the kernel knows the errno.
        if flags.contains(StatVfsMountFlags::NODEV) && !flags.contains(StatVfsMountFlags::RDONLY) {
            let there = rustix::fs::statat(folder, name, AtFlags::SYMLINK_NOFOLLOW).is_ok();
            return if there { Err(rustix::io::Errno::EXIST) } else { Ok(false) };
        }
        if found.is_some() {
            use_only(RIGHTS | CapabilitySet::DAC_OVERRIDE)?;
        }
        let mode = Mode::from_raw_mode(self.mode & 0o7777);
        rustix::fs::mknodat(folder, name, FileType::CharacterDevice, mode, self.device)?;
        if self.can_be_opened(folder, name, opens)? {
            return Ok(true);
        }
        let _ = rustix::fs::unlinkat(folder, name, AtFlags::empty());
        Ok(false)
    }

    /// Can nodes of this filesystem be opened? Those of one that was mounted in a user namespace
    /// cannot, and only an attempt tells.
    fn can_be_opened(
        &self,
        folder: BorrowedFd<'_>,
        name: &[u8],
        opens: &mut Opens,
    ) -> Result<bool, rustix::io::Errno> {
        let filesystem = rustix::fs::fstat(folder)?.st_dev;
        if let Some((_, opens)) = opens.iter().find(|(known, _)| *known == filesystem) {
            return Ok(*opens);
        }
        let device = (rustix::fs::major(self.device), rustix::fs::minor(self.device));
        if !HARMLESS.contains(&device) {
            return Ok(true);
        }
        // Its permissions are not the question.
        use_only(CapabilitySet::DAC_OVERRIDE)?;
        let flags =
            OFlags::RDONLY | OFlags::NONBLOCK | OFlags::NOCTTY | OFlags::NOFOLLOW | OFlags::CLOEXEC;
        let opened = rustix::fs::openat(folder, name, flags, Mode::empty());
        use_only(CapabilitySet::empty())?;
        // The device policy of the control group says EPERM, which is another matter.
        let can = !matches!(opened, Err(rustix::io::Errno::ACCESS));
        if opens.len() >= REMEMBERED {
            opens.clear();
        }
        opens.push((filesystem, can));
        Ok(can)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_last_name_keeps_what_the_kernel_judges() {
        let text = |path: &'static str| {
            split(path.as_bytes())
                .map(|(folder, name)| [folder, name].map(|part| std::str::from_utf8(part).unwrap()))
        };
        assert_eq!(text("null"), Some([".", "null"]));
        assert_eq!(text("/null"), Some(["/", "null"]));
        assert_eq!(text("a/b//null"), Some(["a/b//", "null"]));
        assert_eq!(text("a/null//"), Some(["a/", "null//"]));
        assert_eq!(text("a/.."), Some(["a/", ".."]));
        assert_eq!((text("//"), text("")), (None, None));
    }
}
