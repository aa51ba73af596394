//! Look-ups below a container's root, and which mount a descriptor is on.
//!
//! The container chooses what lies there: symbolic links are not followed, and nothing here sends a
//! request to a filesystem but those that a look-up crosses. A FUSE mount is recognised by its
//! number in mountinfo, without asking it.

use std::os::fd::{AsFd, OwnedFd};

use ambit_kernel::text::mountinfo::Mounted;
use rustix::fs::{AtFlags, Mode, OFlags, ResolveFlags, StatxFlags};
use rustix::io::Errno;

/// Whether a look-up may cross mounts.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Mounts {
    Crossed,
    Refused,
}

/// Opens a path below a folder with `O_PATH`. The last component may be a mount point: then this is
/// the root of the topmost mount there. With [`Mounts::Refused`] a path with a mount is EXDEV.
pub(super) fn find(folder: impl AsFd, path: &str, mounts: Mounts) -> Result<OwnedFd, Errno> {
    let flags = OFlags::PATH | OFlags::NOFOLLOW | OFlags::CLOEXEC;
    let resolve = ResolveFlags::BENEATH | ResolveFlags::NO_SYMLINKS | ResolveFlags::NO_MAGICLINKS;
    let resolve = match mounts {
        Mounts::Crossed => resolve,
        Mounts::Refused => resolve | ResolveFlags::NO_XDEV,
    };
    // EAGAIN: a rename or mount happened meanwhile (openat2(2)).
    for _ in 0..16 {
        match rustix::fs::openat2(&folder, path, flags, Mode::empty(), resolve) {
            Err(Errno::AGAIN) => {}
            other => return other,
        }
    }
    Err(Errno::AGAIN)
}

/// The mount and the filesystem of a descriptor.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct On {
    pub(super) mount: u64,
    /// The minor number of its device, if that is no block device.
    pub(super) minor: Option<u32>,
}

/// Returns the mount of a descriptor. No filesystem is asked.
pub(super) fn on(fd: impl AsFd) -> Result<On, Errno> {
    let flags = AtFlags::EMPTY_PATH | AtFlags::STATX_DONT_SYNC | AtFlags::NO_AUTOMOUNT;
    let stat = rustix::fs::statx(fd, "", flags, StatxFlags::empty())?;
    let minor = (stat.stx_dev_major == 0).then_some(stat.stx_dev_minor);
    Ok(On { mount: stat.stx_mnt_id, minor })
}

/// Returns the mount of a descriptor in a list.
pub(super) fn mount_of(fd: impl AsFd, mounts: &[Mounted]) -> Result<&Mounted, Errno> {
    let On { mount, .. } = on(fd)?;
    mounts.iter().find(|one| one.id == mount).ok_or(Errno::STALE)
}

/// Returns the id of a namespace from its link, such as `pid:[4026531836]`, in the folder `ns` of a
/// process.
pub(super) fn namespace(folder: impl AsFd, kind: &str) -> Result<u64, Errno> {
    let link = find_link(folder, kind)?;
    let text = rustix::fs::readlinkat(&link, "", Vec::new())?;
    let digits = text.to_str().ok().and_then(|text| {
        text.strip_prefix(kind)?.strip_prefix(":[")?.strip_suffix(']')?.parse().ok()
    });
    digits.ok_or(Errno::INVAL)
}

/// Opens a link itself, on which nothing is mounted.
fn find_link(folder: impl AsFd, name: &str) -> Result<OwnedFd, Errno> {
    let flags = OFlags::PATH | OFlags::NOFOLLOW | OFlags::CLOEXEC;
    let resolve = ResolveFlags::BENEATH | ResolveFlags::NO_XDEV;
    rustix::fs::openat2(folder, name, flags, Mode::empty(), resolve)
}

/// True for the root of a mount.
pub(super) fn is_mount_root(fd: impl AsFd) -> bool {
    let flags = AtFlags::EMPTY_PATH | AtFlags::STATX_DONT_SYNC | AtFlags::NO_AUTOMOUNT;
    let Ok(stat) = rustix::fs::statx(fd, "", flags, StatxFlags::empty()) else { return false };
    stat.stx_attributes.contains(rustix::fs::StatxAttributes::MOUNT_ROOT)
}
