//! `mount_setattr(2)` (Linux 5.12), which neither nix nor rustix offers.
//!
//! Changes attributes of a mount through a descriptor of it; with a user namespace the mount
//! becomes *idmapped*. Never works on paths: the callers hold the mount they mean.

use std::os::fd::{AsFd, AsRawFd, BorrowedFd};
use std::sync::OnceLock;

use rustix::io::Errno;
pub use rustix::mount::MountAttrFlags;
use rustix::pipe::{PipeFlags, pipe_with};

use super::raw;

/// `MOUNT_ATTR_IDMAP`, which rustix does not list.
const IDMAP: u64 = 0x0010_0000;

/// True if the kernel has the call.
pub fn is_supported() -> bool {
    static SUPPORTED: OnceLock<bool> = OnceLock::new();
    *SUPPORTED.get_or_init(|| {
        // A pipe is no mount, which is EINVAL.
        let refused = pipe_with(PipeFlags::CLOEXEC).and_then(|(no_mount, _)| {
            mount_setattr(no_mount, MountAttrFlags::MOUNT_ATTR_RDONLY, None)
        });
        refused != Err(Errno::NOSYS)
    })
}

/// Sets attributes of one mount (not of those below it); `owners` additionally maps the owners of
/// its files through a user namespace.
///
/// # Errors
/// `EINVAL`: the filesystem cannot be idmapped, or the mount is visible somewhere already.
pub fn mount_setattr(
    mount: impl AsFd,
    set: MountAttrFlags,
    owners: Option<BorrowedFd<'_>>,
) -> Result<(), Errno> {
    let mut attributes = libc::mount_attr {
        attr_set: u64::from(set.bits()),
        attr_clr: 0,
        propagation: 0,
        userns_fd: 0,
    };
    if let Some(namespace) = owners {
        attributes.attr_set |= IDMAP;
        attributes.userns_fd = u64::try_from(namespace.as_raw_fd()).map_err(|_| Errno::BADF)?;
    }
    raw::mount_setattr(mount.as_fd(), 0, &attributes)
}

/// Sets attributes of a mount and of all that is mounted below it.
///
/// # Errors
/// `EINVAL`: the descriptor is not the root of a mount.
pub fn mount_setattr_all(mount: impl AsFd, set: MountAttrFlags) -> Result<(), Errno> {
    let attributes = libc::mount_attr {
        attr_set: u64::from(set.bits()),
        attr_clr: 0,
        propagation: 0,
        userns_fd: 0,
    };
    raw::mount_setattr(mount.as_fd(), libc::AT_RECURSIVE, &attributes)
}

/// Sets attributes of one mount and takes it out of its peer group: what is mounted on it later
/// appears nowhere else.
///
/// # Errors
/// `EINVAL`: the descriptor is not the root of a mount.
pub fn make_private(mount: impl AsFd, set: MountAttrFlags) -> Result<(), Errno> {
    let attributes = libc::mount_attr {
        attr_set: u64::from(set.bits()),
        attr_clr: 0,
        propagation: libc::MS_PRIVATE,
        userns_fd: 0,
    };
    raw::mount_setattr(mount.as_fd(), 0, &attributes)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_descriptor_that_is_no_mount_is_refused() {
        let (reader, _writer) = std::io::pipe().unwrap();
        mount_setattr(&reader, MountAttrFlags::MOUNT_ATTR_RDONLY, None).unwrap_err();
    }
}
