//! A private root for the process that makes a superblock with the host's rights.
//!
//! The root is an empty tmpfs in a new mount namespace, attached nowhere else: a filesystem that
//! looks up a name finds no file of the host and none of the container. The one path in it is the
//! source, under the name that the caller gave, so that `/proc/mounts` shows that name. It is a
//! link to the file that was opened as the caller, so no path of the container is opened again.
//! Start reading at [`enter`].

use std::os::fd::{AsFd, AsRawFd, BorrowedFd, OwnedFd};
use std::os::unix::ffi::OsStrExt;
use std::path::{Component, Path, PathBuf};

use nix::sched::{CloneFlags, unshare};
use rustix::fs::{CWD, FileType, Mode};
use rustix::mount::OpenTreeFlags;

use crate::error::{Context, Error};
use crate::no_mounts::{attach, fresh, make_private};

/// Where [`lock`] attaches the new mount.
const PLACE: &str = "/.mount";

/// Moves this process to a new mount namespace with a new root.
pub(super) fn enter() -> Result<(), Error> {
    unshare(CloneFlags::CLONE_NEWNS).context("unshare of mounts")?;
    make_private()?;
    let root = fresh("tmpfs")?;
    attach(&root, "/")?;
    rustix::process::fchdir(&root).context("fchdir to a new root")?;
    rustix::process::chroot(".").context("chroot to a new root")?;
    rustix::process::umask(Mode::empty());
    ["/proc", "/dev", PLACE].into_iter().try_for_each(|folder| {
        rustix::fs::mkdir(folder, Mode::from_raw_mode(0o700)).context("mkdir in a new root")
    })
}

/// The same with a procfs of this process's pid namespace.
pub(super) fn enter_with_proc() -> Result<(), Error> {
    enter()?;
    attach(fresh("proc")?, "/proc")
}

/// Returns a path of an open file in the new root with a procfs: the path that the caller gave, if it
/// can be created, or the link in `/proc/self/fd`.
pub(super) fn name(file: BorrowedFd<'_>, given: &[u8]) -> Vec<u8> {
    let link = format!("/proc/self/fd/{}", file.as_raw_fd());
    let given = Path::new(std::ffi::OsStr::from_bytes(given));
    match usable(given).and_then(|path| place_link(&link, &path)) {
        Some(()) => given.as_os_str().as_bytes().to_vec(),
        None => link.into_bytes(),
    }
}

/// Returns the absolute path for a link of this name. `None` if it cannot be created.
fn usable(given: &Path) -> Option<PathBuf> {
    let parts = given.components().filter(|part| !matches!(part, Component::CurDir));
    let mut path = PathBuf::from("/");
    for part in parts {
        match part {
            Component::RootDir => {}
            Component::Normal(name) => path.push(name),
            _ => return None,
        }
    }
    let ours = path.starts_with("/proc") || path.starts_with(PLACE);
    (!ours && path != Path::new("/") && !given.as_os_str().as_bytes().ends_with(b"/"))
        .then_some(path)
}

fn place_link(link: &str, path: &Path) -> Option<()> {
    std::fs::create_dir_all(path.parent()?).ok()?;
    rustix::fs::symlink(link, path).ok()
}

/// Makes a device node in the new root.
pub(super) fn node(path: &str, kind: FileType, number: u64) -> Result<(), Error> {
    rustix::fs::mknodat(CWD, path, kind, Mode::from_raw_mode(0o600), number)
        .context(format!("mknod of {path}"))
}

/// Makes a character device on a new tmpfs, and returns a detached mount of it. This process stays
/// in the new root.
pub(crate) fn detached_node(
    number: u64,
    mode: u32,
    (uid, gid): (u32, u32),
) -> Result<OwnedFd, Error> {
    const NODE: &str = "/node";
    enter()?;
    node(NODE, FileType::CharacterDevice, number)?;
    let owner = (rustix::fs::Uid::from_raw(uid), rustix::fs::Gid::from_raw(gid));
    rustix::fs::chown(NODE, Some(owner.0), Some(owner.1)).context("chown of a new node")?;
    rustix::fs::chmod(NODE, Mode::from_raw_mode(mode)).context("chmod of a new node")?;
    let flags = OpenTreeFlags::OPEN_TREE_CLONE | OpenTreeFlags::OPEN_TREE_CLOEXEC;
    rustix::mount::open_tree(CWD, NODE, flags).context("open_tree of a new node")
}

/// Attaches a mount in the new root, for [`lock_placed`].
pub(super) fn place(mount: BorrowedFd<'_>) -> Result<(), Error> {
    attach(mount, PLACE)
}

/// Locks the attributes of a mount (`MNT_LOCK_*`), so that the container cannot clear `nodev` by a
/// remount. The kernel sets the locks when it copies a mount namespace for a less privileged user
/// namespace: mount_namespaces(7). So this process enters `users`, where it has no rights over the
/// host any more, and unshares its mount namespace.
pub(super) fn lock(mount: &OwnedFd, users: impl AsFd) -> Result<OwnedFd, Error> {
    place(mount.as_fd())?;
    lock_placed(users)
}

/// Locks what [`place`] has attached, and the mounts on it together with it.
pub(super) fn lock_placed(users: impl AsFd) -> Result<OwnedFd, Error> {
    nix::sched::setns(users.as_fd(), CloneFlags::CLONE_NEWUSER)
        .context("setns to the container's users")?;
    unshare(CloneFlags::CLONE_NEWNS).context("unshare of mounts as the container")?;
    let flags = OpenTreeFlags::OPEN_TREE_CLONE
        | OpenTreeFlags::OPEN_TREE_CLOEXEC
        | OpenTreeFlags::AT_RECURSIVE;
    rustix::mount::open_tree(CWD, PLACE, flags).context("open_tree of the new mount")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_path_that_can_be_created_is_kept() {
        let path = |given: &str| usable(Path::new(given));
        assert_eq!(path("/dev/loop7"), Some("/dev/loop7".into()));
        assert_eq!(path("disk.img"), Some("/disk.img".into()));
        assert_eq!(path("./a/b"), Some("/a/b".into()));
        for other in ["../a", "/a/../b", "/", "", ".", "/proc/self/fd/3", "/.mount/x", "a/"] {
            assert_eq!(path(other), None, "{other}");
        }
    }
}
