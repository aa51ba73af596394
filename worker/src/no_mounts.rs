//! A mount namespace without the mounts of any other.
//!
//! A process that lives long must keep no mount of a container: the container could not unmount it,
//! and a filesystem that the process serves would never end. Start reading at [`leave_mounts`].

use std::os::fd::{AsFd, OwnedFd};

use nix::sched::{CloneFlags, unshare};
use rustix::fs::CWD;
use rustix::mount::{
    FsMountFlags, FsOpenFlags, MountAttrFlags, MountPropagationFlags, MoveMountFlags, UnmountFlags,
};

use super::error::{Context, Error};

/// Moves this process from the root of its mount namespace to a new one, whose only mount is an
/// empty tmpfs.
pub(super) fn leave_mounts() -> Result<(), Error> {
    unshare(CloneFlags::CLONE_NEWNS).context("unshare of mounts")?;
    make_private()?;
    let root = fresh("tmpfs")?;
    attach(&root, "/")?;
    rustix::process::fchdir(&root).context("fchdir to a new root")?;
    // The old root is then mounted on the new one, from where it is detached (pivot_root(2), NOTES).
    rustix::process::pivot_root(".", ".").context("pivot_root")?;
    rustix::mount::unmount(".", UnmountFlags::DETACH).context("umount2 of the old root")
}

/// Keeps what this process mounts from showing elsewhere.
pub(super) fn make_private() -> Result<(), Error> {
    let private = MountPropagationFlags::PRIVATE | MountPropagationFlags::REC;
    rustix::mount::mount_change("/", private).context("mount(MS_PRIVATE) of /")
}

/// Makes a detached mount of a filesystem without source and options.
pub(super) fn fresh(kind: &str) -> Result<OwnedFd, Error> {
    let make = || {
        let context = rustix::mount::fsopen(kind, FsOpenFlags::FSOPEN_CLOEXEC)?;
        rustix::mount::fsconfig_create(context.as_fd())?;
        let flags = FsMountFlags::FSMOUNT_CLOEXEC;
        rustix::mount::fsmount(context.as_fd(), flags, MountAttrFlags::empty())
    };
    make().context(format!("fsopen of a {kind}"))
}

/// Attaches a mount in a new root.
pub(super) fn attach(mount: impl AsFd, target: &str) -> Result<(), Error> {
    let flags = MoveMountFlags::MOVE_MOUNT_F_EMPTY_PATH;
    rustix::mount::move_mount(mount, "", CWD, target, flags)
        .context(format!("move_mount in a new root to {target}"))
}
