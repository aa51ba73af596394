//! The operation `mknod`: makes a character device.
//!
//! The directory is resolved with the caller's permissions, and the node is made with `CAP_MKNOD`
//! in addition. So the kernel checks everything else, the node belongs to the caller, and the
//! device policy of the caller's control group applies. `CAP_DAC_OVERRIDE` must never be effective
//! during the lookup. Start reading at [`Mknod::perform`].

use std::os::fd::{AsFd, BorrowedFd};

use rustix::fs::{AtFlags, FileType, Mode, OFlags, StatVfsMountFlags};
use rustix::thread::CapabilitySet;
use serde::{Deserialize, Serialize};

use super::identity::use_only;
use super::reply::Reply;
use crate::lookup::open_path;

/// The arguments of the operation.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Mknod {
    /// The path, as the caller gave it.
    pub path: Vec<u8>,
    /// The permissions, before the umask.
    pub mode: u32,
    /// The device number.
    pub device: u64,
}

/// Filesystems by `st_dev`, each with whether its device nodes can be opened.
pub(super) type Opens = Vec<(u64, bool)>;

/// The capability for mknod(2). It overrides no file permissions, so it may be effective while the
/// directory is resolved.
pub(super) const RIGHTS: CapabilitySet = CapabilitySet::MKNOD;

/// The most filesystems in [`Opens`].
const REMEMBERED: usize = 64;

/// Devices (major, minor) that can be opened and closed without any effect.
const HARMLESS: [(u32, u32); 9] =
    [(1, 3), (1, 5), (1, 7), (1, 8), (1, 9), (5, 0), (5, 1), (5, 2), (10, 229)];

/// Splits a path into its directory and its last component with the slashes after it.
pub(super) fn split(path: &[u8]) -> Option<(&[u8], &[u8])> {
    let end = path.iter().rposition(|&byte| byte != b'/')? + 1;
    Some(match path[..end].iter().rposition(|&byte| byte == b'/') {
        Some(slash) => path.split_at(slash + 1),
        None => (b".", path),
    })
}

impl Mknod {
    /// Returns the directory of the node.
    pub(super) fn folder(&self) -> &[u8] {
        split(&self.path).map_or(b"/", |(folder, _)| folder)
    }

    /// Returns the directory of the node, and the last component with the slashes after it.
    pub(crate) fn split_path(&self) -> Option<(&[u8], &[u8])> {
        split(&self.path)
    }

    /// Makes the node. `found` is its directory, if [`crate::Find`] has shown that the caller's
    /// capabilities override the permissions there.
    pub(super) fn perform(
        &self,
        base: BorrowedFd<'_>,
        found: Option<BorrowedFd<'_>>,
        opens: &mut Opens,
    ) -> Reply {
        match self.make(base, found, opens) {
            Err(rustix::io::Errno::LOOP | rustix::io::Errno::NOENT) if found.is_none() => {
                Reply::unresolved()
            }
            Ok(false) => Reply::NoDevices,
            other => other.into(),
        }
    }

    /// Returns false if no node was made, because nodes of the filesystem cannot be opened.
    fn make(
        &self,
        base: BorrowedFd<'_>,
        found: Option<BorrowedFd<'_>>,
        opens: &mut Opens,
    ) -> Result<bool, rustix::io::Errno> {
        let Some((folder, name)) = split(&self.path) else {
            // The path is empty or has slashes only.
            let empty = self.path.is_empty();
            return Err(if empty { rustix::io::Errno::NOENT } else { rustix::io::Errno::EXIST });
        };
        let opened;
        let folder = match found {
            Some(found) => found,
            None => {
                opened = open_path(base, folder, OFlags::DIRECTORY)?;
                opened.as_fd()
            }
        };
        let flags = rustix::fs::fstatvfs(folder)?.f_flag;
        // On a read-only mount mknodat(2) below returns the errno.
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

    /// True if device nodes of this filesystem can be opened. Those of a filesystem that was
    /// mounted in a user namespace cannot (`SB_I_NODEV`), which only open(2) shows.
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
        // So that the mode of the node does not matter.
        use_only(CapabilitySet::DAC_OVERRIDE)?;
        let flags =
            OFlags::RDONLY | OFlags::NONBLOCK | OFlags::NOCTTY | OFlags::NOFOLLOW | OFlags::CLOEXEC;
        let opened = rustix::fs::openat(folder, name, flags, Mode::empty());
        use_only(CapabilitySet::empty())?;
        // EACCES is from SB_I_NODEV. The device policy of the control group returns EPERM.
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
    fn the_last_component_keeps_dots_and_trailing_slashes() {
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

    #[test]
    fn a_path_through_a_magic_link_is_not_tried() {
        let folder = tempfile::tempdir().unwrap();
        let path = format!("/proc/self/root{}/node", folder.path().display()).into_bytes();
        let node = Mknod { path, mode: 0o600, device: rustix::fs::makedev(1, 3) };
        let reply = node.perform(rustix::fs::CWD, None, &mut Opens::new());
        assert_eq!(reply, Reply::MagicLink);
        assert!(!folder.path().join("node").exists());
    }
}
