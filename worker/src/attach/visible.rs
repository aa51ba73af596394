//! A fully visible procfs and sysfs beside the covered one, for nested containers.
//!
//! A process in a user namespace of its own may mount a procfs (or sysfs) only if one that hides
//! nothing is mounted in its mount namespace already (`mnt_already_visible` in the kernel's
//! `fs/namespace.c`). A mount on anything but an empty folder hides something. So where the
//! container's was fully visible, a copy without our mounts is mounted at `/dev/.ambit/proc`. The
//! kernel asks for its existence only; the folder is closed to other users.

use std::os::fd::{AsFd, BorrowedFd, OwnedFd};

use ambit_kernel::text::mountinfo::Mounted;
use nix::unistd::{Gid, Uid, setfsgid, setfsuid};
use rustix::fs::{AtFlags, Dir, Mode, OFlags, StatxFlags};
use rustix::io::Errno;
use rustix::mount::{MoveMountFlags, OpenTreeFlags};

use super::Unmasked;
use super::clones::{self, is_marked};
use super::facts::Facts;
use super::tree::{Tree, unmount};
use crate::lookup::{self, Mounts, find};

/// The folder in the container's `/dev`.
const FOLDER: &str = ".ambit";

/// Keeps a fully visible mount beside a tree that is about to be covered, if the tree is fully
/// visible and the mount namespace has no other such mount.
pub(super) fn keep(
    root: BorrowedFd<'_>,
    tree: &Tree<'_>,
    facts: &Facts,
    unmasked: Unmasked,
) -> Result<(), String> {
    if unmasked == Unmasked::HiddenLater || is_another_visible(tree) {
        return Ok(());
    }
    let Some(copy) = visible_copy(tree, facts) else { return Ok(()) };
    let name = tree.name;
    if unmasked == Unmasked::Skip {
        return Err(format!("its /{name} is fully visible (attach.unmasked = \"skip\")"));
    }
    place(root, tree, facts, &copy).map_err(|reason| {
        format!("its /{name} is fully visible, and a copy of it cannot be kept in /dev: {reason}")
    })
}

/// Removes what [`keep`] has made. Errors are ignored: what is left hides nothing.
pub(super) fn forget(root: BorrowedFd<'_>, name: &str, mounts: &[Mounted]) {
    let remove = || -> Result<(), Errno> {
        let folder = find(find(root, "dev", Mounts::Crossed)?, FOLDER, Mounts::Refused)?;
        let kept = find(&folder, name, Mounts::Crossed)?;
        if ["proc", "sysfs"].contains(&lookup::mount_of(&kept, mounts)?.kind.as_str()) {
            drop(kept);
            unmount(&folder, name)?;
        }
        rustix::fs::unlinkat(&folder, name, AtFlags::REMOVEDIR)?;
        drop(folder);
        let dev = find(root, "dev", Mounts::Crossed)?;
        // The other tree may still have its own.
        rustix::fs::unlinkat(dev, FOLDER, AtFlags::REMOVEDIR)
    };
    let _ = remove();
}

/// True if a further mount of the same type below the container's root hides nothing. A container
/// that is being made still sees the machine's mounts, which it loses with the change of its root.
fn is_another_visible(tree: &Tree<'_>) -> bool {
    let root = tree.mount.path.parent().unwrap_or(&tree.mount.path);
    let has_children = |id| tree.mounts.iter().any(|mount| mount.parent == id);
    let is_whole = |mount: &Mounted| {
        mount.root.as_os_str() == "/" && !mount.options.split(',').any(|one| one == "subset=pid")
    };
    tree.mounts.iter().any(|mount| {
        mount.kind == tree.mount.kind
            && mount.id != tree.mount.id
            && mount.path.starts_with(root)
            && is_whole(mount)
            && !has_children(mount.id)
    })
}

/// Returns a detached copy of the tree without the mounts on it, if these hide nothing but what
/// attach has covered. `None` if the tree is not fully visible.
fn visible_copy(tree: &Tree<'_>, facts: &Facts) -> Option<OwnedFd> {
    if tree.mount.root.as_os_str() != "/" {
        return None;
    }
    let flags = OpenTreeFlags::OPEN_TREE_CLONE
        | OpenTreeFlags::OPEN_TREE_CLOEXEC
        | OpenTreeFlags::AT_EMPTY_PATH;
    // EINVAL: a mount on it is locked, because a more privileged user namespace made it.
    let copy = rustix::mount::open_tree(&tree.fd, "", flags).ok()?;
    clones::make_private(facts.proc(), &copy).ok()?;
    let children = tree.mounts.iter().filter(|mount| mount.parent == tree.mount.id);
    for child in children.filter(|mount| !is_marked(mount)) {
        let path = child.path.strip_prefix(&tree.mount.path).ok()?.to_str()?;
        if !is_empty_folder(find(&copy, path, Mounts::Refused).ok()?) {
            return None;
        }
    }
    Some(copy)
}

fn is_empty_folder(place: OwnedFd) -> bool {
    let flags = OFlags::RDONLY | OFlags::DIRECTORY | OFlags::CLOEXEC;
    let Ok(folder) = rustix::fs::openat(place, ".", flags, Mode::empty()) else { return false };
    let Ok(entries) = Dir::new(folder) else { return false };
    let is_own = |name: &[u8]| name == b"." || name == b"..";
    entries.flatten().all(|entry| is_own(entry.file_name().to_bytes()))
}

/// Mounts the copy at `/dev/.ambit/<name>`.
fn place(
    root: BorrowedFd<'_>,
    tree: &Tree<'_>,
    facts: &Facts,
    copy: &OwnedFd,
) -> Result<(), String> {
    let dev = find(root, "dev", Mounts::Crossed).map_err(|errno| format!("openat2: {errno}"))?;
    let mount = lookup::mount_of(&dev, tree.mounts).ok().filter(|mount| mount.kind == "tmpfs");
    let mount = mount.ok_or_else(|| "it is not a tmpfs".to_owned())?;
    if facts.is_shared_with_machine(mount) {
        return Err("it would appear on the machine too".to_owned());
    }
    let target = make_folders(dev.as_fd(), tree.name).map_err(|errno| format!("mkdir: {errno}"))?;
    let flags = MoveMountFlags::MOVE_MOUNT_F_EMPTY_PATH | MoveMountFlags::MOVE_MOUNT_T_EMPTY_PATH;
    rustix::mount::move_mount(copy, "", target, "", flags)
        .map_err(|errno| format!("move_mount: {errno}"))
}

/// Makes the folder for the copy, as the owner of `/dev`: a tmpfs of a user namespace has no file
/// whose owner is not mapped there.
fn make_folders(dev: BorrowedFd<'_>, name: &str) -> Result<OwnedFd, Errno> {
    let stat = rustix::fs::statx(dev, "", AtFlags::EMPTY_PATH, StatxFlags::BASIC_STATS)?;
    let group = setfsgid(Gid::from_raw(stat.stx_gid));
    let user = setfsuid(Uid::from_raw(stat.stx_uid));
    let make =
        |folder: BorrowedFd<'_>, name: &str| match rustix::fs::mkdirat(folder, name, Mode::RWXU) {
            Ok(()) | Err(Errno::EXIST) => find(folder, name, Mounts::Refused),
            Err(errno) => Err(errno),
        };
    let made = make(dev, FOLDER).and_then(|folder| make(folder.as_fd(), name));
    setfsuid(user);
    setfsgid(group);
    made
}
