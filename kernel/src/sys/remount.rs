//! What `mount_setattr(2)` does, by mount(2): for kernels before 5.12.
//!
//! mount(2) takes paths, and changes only what is mounted in the mount namespace of this process. The
//! mounts are named by their descriptors in a procfs that the caller has opened: `/proc` may be that
//! of a container. This process must be single-threaded, because its working directory changes.

use std::fs::File;
use std::io::Read;
use std::os::fd::{AsFd, AsRawFd, OwnedFd};
use std::path::PathBuf;

use rustix::fs::{AtFlags, CWD, Mode, OFlags, StatxFlags};
use rustix::io::Errno;
use rustix::mount::{MountAttrFlags, MountFlags, MountPropagationFlags};

use super::errno::to_errno;
use crate::text::mountinfo::{self, Mounted};

/// Adds attributes to those of a mount, and with `recursive` to those of what is mounted below it.
///
/// # Errors
/// `EINVAL`: the mount is not attached in this mount namespace. `EPERM`: an attribute is locked.
pub fn add(
    proc: impl AsFd,
    mount: impl AsFd,
    set: MountAttrFlags,
    recursive: bool,
) -> Result<(), Errno> {
    add_of(&list(&proc)?, proc, mount, set, recursive)
}

/// Does the same with the list of mounts, which was read after the mount was attached.
pub fn add_of(
    list: &[Mounted],
    proc: impl AsFd,
    mount: impl AsFd,
    set: MountAttrFlags,
    recursive: bool,
) -> Result<(), Errno> {
    let flags = AtFlags::EMPTY_PATH | AtFlags::STATX_DONT_SYNC;
    let id = rustix::fs::statx(&mount, "", flags, StatxFlags::MNT_ID)?.stx_mnt_id;
    let top = list.iter().find(|mount| mount.id == id).ok_or(Errno::INVAL)?;
    let name = PathBuf::from(format!("self/fd/{}", mount.as_fd().as_raw_fd()));
    from_folder(&proc, || {
        rustix::mount::mount_remount(&name, flags_of(top, set), "")?;
        if recursive {
            for below in below(list, top) {
                let path = below.path.strip_prefix(&top.path).unwrap_or(&below.path);
                rustix::mount::mount_remount(name.join(path), flags_of(below, set), "")?;
            }
        }
        Ok(())
    })
}

/// Returns the mounts of this mount namespace.
fn list(proc: impl AsFd) -> Result<Vec<Mounted>, Errno> {
    let file = rustix::fs::openat(proc, "self/mountinfo", OFlags::CLOEXEC, Mode::empty())?;
    let mut text = Vec::new();
    File::from(file).read_to_end(&mut text).map_err(to_errno)?;
    Ok(mountinfo::all(&text).collect())
}

/// Takes a mount out of its peer group.
///
/// # Errors
/// `EINVAL`: some kernels change attached mounts alone.
pub fn make_private(proc: impl AsFd, mount: impl AsFd) -> Result<(), Errno> {
    let name = format!("self/fd/{}", mount.as_fd().as_raw_fd());
    from_folder(proc, || rustix::mount::mount_change(&name, MountPropagationFlags::PRIVATE))
}

/// Runs something with another working directory.
fn from_folder(folder: impl AsFd, act: impl FnOnce() -> Result<(), Errno>) -> Result<(), Errno> {
    let flags = OFlags::PATH | OFlags::DIRECTORY | OFlags::CLOEXEC;
    let before = rustix::fs::openat(CWD, ".", flags, Mode::empty())?;
    rustix::process::fchdir(folder)?;
    let done = act();
    rustix::process::fchdir(before)?;
    done
}

/// Returns what is mounted below a mount, each once: of mounts on one place the one on top.
fn below<'m>(list: &'m [Mounted], top: &Mounted) -> Vec<&'m Mounted> {
    let mut ids = vec![top.id];
    let mut found: Vec<&Mounted> = Vec::new();
    // A mount comes after those that it is on.
    for mount in list.iter().filter(|mount| mount.id != top.id) {
        if ids.contains(&mount.parent) {
            ids.push(mount.id);
            found.retain(|other| !other.path.starts_with(&mount.path));
            found.push(mount);
        }
    }
    found
}

/// Returns the flags of a remount: those that the mount has, because a remount takes away what it
/// does not name, and the new ones.
fn flags_of(mount: &Mounted, set: MountAttrFlags) -> MountFlags {
    let has = |name: &str| mount.attributes.split(',').any(|attribute| attribute == name);
    let all = [
        ("ro", MountAttrFlags::MOUNT_ATTR_RDONLY, MountFlags::RDONLY),
        ("nosuid", MountAttrFlags::MOUNT_ATTR_NOSUID, MountFlags::NOSUID),
        ("nodev", MountAttrFlags::MOUNT_ATTR_NODEV, MountFlags::NODEV),
        ("noexec", MountAttrFlags::MOUNT_ATTR_NOEXEC, MountFlags::NOEXEC),
        ("noatime", MountAttrFlags::MOUNT_ATTR_NOATIME, MountFlags::NOATIME),
        ("nodiratime", MountAttrFlags::MOUNT_ATTR_NODIRATIME, MountFlags::NODIRATIME),
        ("nosymfollow", MountAttrFlags::MOUNT_ATTR_NOSYMFOLLOW, MountFlags::NOSYMFOLLOW),
    ];
    let mut flags = MountFlags::BIND;
    for (name, attribute, flag) in all {
        flags.set(flag, has(name) || set.contains(attribute));
    }
    if !flags.contains(MountFlags::NOATIME) {
        let is_strict = !has("relatime") || set.contains(MountAttrFlags::MOUNT_ATTR_STRICTATIME);
        flags |= if is_strict { MountFlags::STRICTATIME } else { MountFlags::RELATIME };
    }
    flags
}

/// Returns the `/proc` of this process.
pub fn own_proc() -> Result<OwnedFd, Errno> {
    let flags = OFlags::PATH | OFlags::DIRECTORY | OFlags::CLOEXEC;
    rustix::fs::openat(CWD, "/proc", flags, Mode::empty())
}

#[cfg(test)]
mod tests {
    use super::*;

    const LIST: &[u8] = b"20 1 0:5 / / rw,relatime shared:1 - ext4 /dev/sda rw\n\
        30 20 0:6 / /sys rw,nosuid,relatime - sysfs sysfs rw\n\
        31 30 0:7 / /sys/fs/cgroup ro,noexec - tmpfs tmpfs rw\n\
        32 31 0:8 / /sys/fs/cgroup/cpu rw,noatime - cgroup cgroup rw\n\
        33 30 0:9 / /sys/fs/cgroup rw - cgroup2 cgroup2 rw\n\
        34 20 0:9 / /proc rw - proc proc rw\n";

    #[test]
    fn a_covered_mount_is_left_out() {
        let list: Vec<_> = mountinfo::all(LIST).collect();
        let ids = |top: usize| -> Vec<u64> {
            below(&list, &list[top]).iter().map(|mount| mount.id).collect()
        };
        assert_eq!(ids(1), [33]);
        assert_eq!(ids(2), [32]);
        assert_eq!(ids(0), [30, 33, 34]);
    }

    #[test]
    fn a_remount_keeps_what_the_mount_has() {
        let list: Vec<_> = mountinfo::all(LIST).collect();
        let set = MountAttrFlags::MOUNT_ATTR_RDONLY | MountAttrFlags::MOUNT_ATTR_NODIRATIME;
        let bind = MountFlags::BIND | MountFlags::RDONLY | MountFlags::NODIRATIME;
        let expected = bind | MountFlags::NOSUID | MountFlags::RELATIME;
        assert_eq!(flags_of(&list[1], set), expected);
        assert_eq!(flags_of(&list[3], set), bind | MountFlags::NOATIME);
        let strict = MountFlags::BIND | MountFlags::NOSUID | MountFlags::STRICTATIME;
        assert_eq!(flags_of(&list[1], MountAttrFlags::MOUNT_ATTR_STRICTATIME), strict);
    }

    #[test]
    fn what_is_not_mounted_here_is_refused() {
        let (reader, _writer) = std::io::pipe().unwrap();
        let set = MountAttrFlags::MOUNT_ATTR_RDONLY;
        let error = add(own_proc().unwrap(), &reader, set, false).unwrap_err();
        assert_eq!(error, Errno::INVAL);
    }
}
