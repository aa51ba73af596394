//! Looks up paths of a container, and says which mount a descriptor is on.
//!
//! A process that has become the caller opens paths as the caller would ([`open_path`]), but never
//! through a magic link: `/proc/self/fd/3` or `/proc/1/root` leads to an open file whatever the root
//! of the process is, and the one of this process is not the caller's: symlink(7).
//!
//! Any other process follows no symbolic link ([`find`]), and sends no request to a filesystem but
//! those that a look-up crosses. A FUSE mount is recognised by its number in mountinfo, without asking
//! it.

use std::os::fd::{AsFd, OwnedFd};

use ambit_kernel::text::mountinfo::Mounted;
use rustix::fs::{AtFlags, Mode, OFlags, ResolveFlags, StatxAttributes, StatxFlags, openat2};
use rustix::io::Errno;

/// Opens a path that starts at `base`. ELOOP if a magic link is on the way.
pub(super) fn open_path(base: impl AsFd, path: &[u8], flags: OFlags) -> Result<OwnedFd, Errno> {
    let flags = flags | OFlags::PATH | OFlags::CLOEXEC;
    openat2(base, path, flags, Mode::empty(), ResolveFlags::NO_MAGICLINKS)
}

/// Whether a look-up may cross mounts.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Mounts {
    Crossed,
    Refused,
}

/// Opens a path below a folder with `O_PATH`. The last component may be a mount point: then this is
/// the root of the topmost mount there. With [`Mounts::Refused`] a path with a mount is EXDEV.
pub(crate) fn find(folder: impl AsFd, path: &str, mounts: Mounts) -> Result<OwnedFd, Errno> {
    let flags = OFlags::PATH | OFlags::NOFOLLOW | OFlags::CLOEXEC;
    // NO_SYMLINKS implies NO_MAGICLINKS (openat2(2)).
    let resolve = ResolveFlags::BENEATH | ResolveFlags::NO_SYMLINKS;
    let resolve = match mounts {
        Mounts::Crossed => resolve,
        Mounts::Refused => resolve | ResolveFlags::NO_XDEV,
    };
    // EAGAIN: a rename or mount happened meanwhile (openat2(2)).
    for _ in 0..16 {
        match openat2(&folder, path, flags, Mode::empty(), resolve) {
            Err(Errno::AGAIN) => {}
            other => return other,
        }
    }
    Err(Errno::AGAIN)
}

/// The mount and the filesystem of a descriptor.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct On {
    pub(crate) mount: u64,
    /// The minor number of its device, if that is no block device.
    pub(crate) minor: Option<u32>,
}

/// Returns the mount of a descriptor. No filesystem is asked.
pub(crate) fn on(fd: impl AsFd) -> Result<On, Errno> {
    let flags = AtFlags::EMPTY_PATH | AtFlags::STATX_DONT_SYNC | AtFlags::NO_AUTOMOUNT;
    let stat = rustix::fs::statx(fd, "", flags, StatxFlags::empty())?;
    let minor = (stat.stx_dev_major == 0).then_some(stat.stx_dev_minor);
    Ok(On { mount: stat.stx_mnt_id, minor })
}

/// Returns the mount of a descriptor in a list.
pub(crate) fn mount_of(fd: impl AsFd, mounts: &[Mounted]) -> Result<&Mounted, Errno> {
    let On { mount, .. } = on(fd)?;
    mounts.iter().find(|one| one.id == mount).ok_or(Errno::STALE)
}

/// Returns the id of a namespace from its link, such as `pid:[4026531836]`, in the folder `ns` of a
/// process.
pub(crate) fn namespace(folder: impl AsFd, kind: &str) -> Result<u64, Errno> {
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
    openat2(folder, name, flags, Mode::empty(), resolve)
}

/// True for the root of a mount.
pub(crate) fn is_mount_root(fd: impl AsFd) -> bool {
    let flags = AtFlags::EMPTY_PATH | AtFlags::STATX_DONT_SYNC | AtFlags::NO_AUTOMOUNT;
    let Ok(stat) = rustix::fs::statx(fd, "", flags, StatxFlags::empty()) else { return false };
    stat.stx_attributes.contains(StatxAttributes::MOUNT_ROOT)
}

#[cfg(test)]
mod tests {
    use std::os::unix::ffi::OsStrExt;
    use std::os::unix::fs::symlink;

    use rustix::fs::CWD;

    use super::*;

    #[test]
    fn a_magic_link_is_not_followed() {
        let folder = tempfile::tempdir().unwrap();
        let link = folder.path().join("link");
        symlink("/proc/self/root", &link).unwrap();
        let through_a_link = [link.as_os_str().as_bytes(), b"/etc"].concat();
        for path in [b"/proc/self/root/etc", &b"/proc/self/cwd/."[..], b"/proc/self/exe"] {
            let opened = open_path(CWD, path, OFlags::empty());
            assert_eq!(opened.unwrap_err(), Errno::LOOP, "{}", String::from_utf8_lossy(path));
        }
        assert_eq!(open_path(CWD, &through_a_link, OFlags::empty()).unwrap_err(), Errno::LOOP);
    }

    #[test]
    fn a_folder_is_not_left_and_no_link_is_followed() {
        let folder = tempfile::tempdir().unwrap();
        std::fs::create_dir(folder.path().join("inside")).unwrap();
        symlink("inside", folder.path().join("link")).unwrap();
        let base = std::fs::File::open(folder.path()).unwrap();
        let find_in = |path| find(&base, path, Mounts::Crossed).map(drop);
        assert_eq!(find_in("inside"), Ok(()));
        for path in ["..", "inside/../..", "/"] {
            assert_eq!(find_in(path), Err(Errno::XDEV), "{path}");
        }
        assert_eq!(find_in("link/."), Err(Errno::LOOP));
        let root = std::fs::File::open("/").unwrap();
        assert_eq!(find(&root, "proc/self/cwd/.", Mounts::Crossed).unwrap_err(), Errno::LOOP);
        assert!(find(&root, "proc", Mounts::Crossed).is_ok());
        assert_eq!(find(&root, "proc", Mounts::Refused).unwrap_err(), Errno::XDEV);
    }

    #[test]
    fn a_symbolic_link_is_followed() {
        let folder = tempfile::tempdir().unwrap();
        symlink("/etc", folder.path().join("link")).unwrap();
        let base = std::fs::File::open(folder.path()).unwrap();
        assert!(open_path(&base, b"link", OFlags::DIRECTORY).is_ok());
        assert!(open_path(&base, b"link", OFlags::DIRECTORY | OFlags::NOFOLLOW).is_err());
    }
}
