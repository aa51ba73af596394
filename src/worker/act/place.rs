//! Telling folders apart.

use std::os::fd::BorrowedFd;

use rustix::fs::{AtFlags, StatxFlags, statx};

/// A folder on one mount. As long as somebody has it open, the numbers cannot become those of
/// another one.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct Place {
    device: (u32, u32),
    inode: u64,
    mount: u64,
}

impl Place {
    /// That of a name in this folder, or of the folder itself if the name is empty. `None` before
    /// Linux 5.8, which does not tell the mount.
    pub(super) fn of(folder: BorrowedFd<'_>, name: &str) -> Option<Self> {
        // What a filesystem of the container would have to say anew is not waited for.
        let mut flags = AtFlags::STATX_DONT_SYNC;
        flags.set(AtFlags::EMPTY_PATH, name.is_empty());
        let wanted = StatxFlags::INO | StatxFlags::MNT_ID;
        let stat = statx(folder, name, flags, wanted).ok()?;
        (stat.stx_mask & wanted.bits() == wanted.bits()).then_some(Self {
            device: (stat.stx_dev_major, stat.stx_dev_minor),
            inode: stat.stx_ino,
            mount: stat.stx_mnt_id,
        })
    }
}
