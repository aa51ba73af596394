//! Detached copies of files, and the mark by which a mount of attach is recognised.

use std::os::fd::{AsFd, OwnedFd};
use std::path::Path;

use ambit_kernel::sys::mount_setattr::{self, MountAttrFlags, is_supported};
use ambit_kernel::sys::{named_copy, remount};
use ambit_kernel::text::mountinfo::Mounted;
use rustix::io::Errno;

use super::facts::Facts;
use crate::error::{Context, Error};

/// Copies a file or folder below a folder, as a detached mount with the mark of attach. Mounts on it
/// are not copied. The copy is in no peer group: what a container mounts on it appears nowhere else.
/// The folder must be on a mount of this mount namespace.
pub fn copy(folder: impl AsFd, path: &Path) -> Result<OwnedFd, Error> {
    let what = || format!("open_tree of {}", path.display());
    let Some(copy) = named_copy::copy(folder, path).context(what())? else {
        return Err(Error::new(Errno::NOENT, format!("{}: it vanishes", what())));
    };
    match set_mark(|set| mount_setattr::make_private(&copy, set)) {
        // Before Linux 5.12 that is done once it is attached: `mark_attached`.
        Err(Errno::NOSYS) => {}
        marked => marked.context("mount_setattr of a copy")?,
    }
    Ok(copy)
}

/// Copies a file of the overlay, or in its place the container's file on lease. `leased` are targets
/// with the names of these files below the overlay.
///
/// # Errors
/// As [`copy`].
pub fn copy_for(
    overlay: impl AsFd,
    leased: &[(String, String)],
    target: &str,
) -> Result<OwnedFd, Error> {
    named_copy::leased_or_shared(leased, target, |path| copy(&overlay, path))
}

/// Takes a detached mount out of its peer group. Before Linux 5.12 a kernel may refuse that with
/// `EINVAL`.
pub(super) fn make_private(proc: impl AsFd, mount: &OwnedFd) -> Result<(), Errno> {
    if is_supported() {
        mount_setattr::make_private(mount, MountAttrFlags::empty())
    } else {
        remount::make_private(proc, mount)
    }
}

/// Sets the mark of attach on copies that were attached, and takes them out of their peer groups, if
/// [`copy`] could not: before Linux 5.12.
pub(super) fn mark_attached(copies: &[OwnedFd], facts: &Facts) -> Result<(), Error> {
    if is_supported() || copies.is_empty() {
        return Ok(());
    }
    let mounts = facts.mounts()?;
    copies.iter().try_for_each(|copy| {
        remount::make_private(facts.proc(), copy).context("making a copy private: mount")?;
        set_mark(|set| remount::add_of(&mounts, facts.proc(), copy, set, false))
            .context("remount of a copy")
    })
}

/// Sets the mark. In a user namespace the times of access of the machine's mounts are locked
/// (mount_namespaces(7)): there is no mark then.
fn set_mark(set: impl Fn(MountAttrFlags) -> Result<(), Errno>) -> Result<(), Errno> {
    match set(mark()) {
        Err(Errno::PERM | Errno::ACCESS) => set(MountAttrFlags::empty()),
        marked => marked,
    }
}

/// The mark: nodiratime has no meaning on files and on filesystems without times of access, and
/// mountinfo shows it. A bind mount has it only if the original has.
fn mark() -> MountAttrFlags {
    MountAttrFlags::MOUNT_ATTR_NODIRATIME
        | MountAttrFlags::MOUNT_ATTR_NOSUID
        | MountAttrFlags::MOUNT_ATTR_NODEV
        | MountAttrFlags::MOUNT_ATTR_NOEXEC
}

/// True for a mount that has the mark of attach.
pub fn is_marked(mount: &Mounted) -> bool {
    let has = |name| mount.attributes.split(',').any(|attribute| attribute == name);
    let is_ours = ["fuse.ambit", "fuse.lxcfs", "cgroup2"].contains(&mount.kind.as_str());
    is_ours && ["nodiratime", "nosuid", "nodev", "noexec"].into_iter().all(has)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_mounts_with_the_mark_are_of_attach() {
        let mount = |kind: &str, attributes: &str| Mounted {
            kind: kind.to_owned(),
            attributes: attributes.to_owned(),
            ..Mounted::default()
        };
        assert!(is_marked(&mount("fuse.ambit", "ro,nosuid,nodev,noexec,nodiratime,relatime")));
        assert!(!is_marked(&mount("fuse.ambit", "ro,nosuid,nodev,noexec,relatime")));
        assert!(!is_marked(&mount("tmpfs", "ro,nosuid,nodev,noexec,nodiratime")));
    }
}
