//! Detached mounts, and attaching them inside the sandbox's root.
//!
//! Everything goes through descriptors: sources are cloned before the sandbox can run, targets
//! are looked up with `RESOLVE_IN_ROOT`, so that no link in a strange root filesystem leads out.

use std::ffi::CStr;
use std::os::fd::{AsFd, AsRawFd, BorrowedFd, OwnedFd};
use std::path::{Component, Path, PathBuf};

use ambit_kernel::sys::mount_setattr::{mount_setattr, mount_setattr_all};
use ambit_kernel::sys::{named_copy, remount};
use anyhow::{Context, Result};
use rustix::fs::{CWD, FileType, Mode, OFlags, ResolveFlags, StatxFlags};
use rustix::io::Errno;
use rustix::mount::{
    FsMountFlags, FsOpenFlags, MountAttrFlags, MoveMountFlags, OpenTreeFlags, UnmountFlags,
};

use super::hostmounts::relative;
use super::owners::{ActingAs, Owners};

/// A mount that is attached nowhere yet.
#[derive(Debug)]
pub(super) struct Detached(pub(super) OwnedFd);

impl Detached {
    /// A copy of what is mounted or lies at this place of the host, without what is mounted
    /// below it.
    pub(super) fn copy_of(path: &Path) -> Result<Self> {
        copy_at(CWD, path).with_context(|| format!("cannot copy {}: open_tree", path.display()))
    }

    /// Like [`Self::copy_of`], with all that is mounted below it.
    pub(super) fn copy_of_tree(path: &Path) -> Result<Self> {
        let flags = OpenTreeFlags::OPEN_TREE_CLONE
            | OpenTreeFlags::OPEN_TREE_CLOEXEC
            | OpenTreeFlags::AT_RECURSIVE;
        rustix::mount::open_tree(CWD, path, flags)
            .map(Self)
            .with_context(|| format!("cannot copy {}: open_tree", path.display()))
    }

    /// Copies a file of the overlay.
    pub(super) fn copy_of_file(path: &Path) -> Result<Self> {
        let copy = named_copy::copy(CWD, path)
            .with_context(|| format!("cannot copy {}: open_tree", path.display()))?;
        copy.map(Self).with_context(|| {
            format!("cannot copy {}: it vanishes while it is looked up", path.display())
        })
    }

    /// A copy of what lies at this place of the sandbox.
    pub(super) fn copy_in(root: &Root, path: &str) -> Result<Self> {
        let found = root.find(Path::new(path)).with_context(|| format!("cannot open /{path}"))?;
        Self::copy_from(found).with_context(|| format!("cannot copy /{path}: open_tree"))
    }

    /// A copy of this mount, which must be attached.
    pub(super) fn copy(&self) -> Result<Self> {
        Self::copy_from(&self.0).context("cannot copy a mount: open_tree")
    }

    fn copy_from(found: impl AsFd) -> rustix::io::Result<Self> {
        let flags = OpenTreeFlags::OPEN_TREE_CLONE
            | OpenTreeFlags::OPEN_TREE_CLOEXEC
            | OpenTreeFlags::AT_EMPTY_PATH;
        rustix::mount::open_tree(found, "", flags).map(Self)
    }

    /// A new filesystem of this type.
    pub(super) fn new(kind: &str, options: &[(&str, &str)], set: MountAttrFlags) -> Result<Self> {
        let make = || -> rustix::io::Result<OwnedFd> {
            let context = rustix::mount::fsopen(kind, FsOpenFlags::FSOPEN_CLOEXEC)?;
            // What /proc/self/mounts calls it; "none" otherwise.
            rustix::mount::fsconfig_set_string(context.as_fd(), "source", kind)?;
            for (key, value) in options {
                rustix::mount::fsconfig_set_string(context.as_fd(), *key, *value)?;
            }
            rustix::mount::fsconfig_create(context.as_fd())?;
            rustix::mount::fsmount(context.as_fd(), FsMountFlags::FSMOUNT_CLOEXEC, set)
        };
        make().map(Self).with_context(|| format!("cannot make a {kind} filesystem: fsopen"))
    }

    pub(super) fn set(&mut self, attributes: MountAttrFlags) -> Result<()> {
        match mount_setattr(&self.0, attributes, None) {
            Err(Errno::NOSYS) => self.remount(attributes, false),
            set => set.context("cannot change a mount's attributes: mount_setattr"),
        }
    }

    /// Sets attributes, also of what is mounted below it.
    pub(super) fn set_all(&mut self, attributes: MountAttrFlags) -> Result<()> {
        match mount_setattr_all(&self.0, attributes) {
            Err(Errno::NOSYS) => self.remount(attributes, true),
            set => set.context("cannot change attributes of mounts: mount_setattr"),
        }
    }

    /// Sets attributes before Linux 5.12, where only attached mounts can be changed: one that is not
    /// is attached for a moment, and copied.
    fn remount(&mut self, attributes: MountAttrFlags, recursive: bool) -> Result<()> {
        let proc = remount::own_proc().context("cannot open /proc")?;
        let change = |mount: &OwnedFd| remount::add(&proc, mount, attributes, recursive);
        match change(&self.0) {
            Err(Errno::INVAL) => {}
            changed => return changed.context("cannot change a mount's attributes: mount"),
        }
        // Upon the root, where no path leads; a file upon a file.
        let place = match Kind::of(&self.0)? {
            Kind::Folder => "/",
            Kind::File => "/proc/version",
        };
        let flags = MoveMountFlags::MOVE_MOUNT_F_EMPTY_PATH;
        rustix::mount::move_mount(&self.0, "", CWD, place, flags)
            .context("cannot attach a mount: move_mount")?;
        let mut flags = OpenTreeFlags::OPEN_TREE_CLONE
            | OpenTreeFlags::OPEN_TREE_CLOEXEC
            | OpenTreeFlags::AT_EMPTY_PATH;
        flags.set(OpenTreeFlags::AT_RECURSIVE, recursive);
        let copy =
            change(&self.0).context("cannot change a mount's attributes: mount").and_then(|()| {
                rustix::mount::open_tree(&self.0, "", flags)
                    .context("cannot copy a mount: open_tree")
            });
        let place = format!("/proc/self/fd/{}", self.0.as_raw_fd());
        rustix::mount::unmount(place, UnmountFlags::DETACH)
            .context("cannot detach a mount: umount2")?;
        self.0 = copy?;
        Ok(())
    }

    /// Maps the owners of its files to the sandbox's users. False if the filesystem cannot be
    /// idmapped: then its files belong to the overflow user (65534) inside.
    pub(super) fn map_owners(&self, owners: &Owners) -> bool {
        owners.namespace.as_ref().is_none_or(|namespace| {
            mount_setattr(&self.0, MountAttrFlags::empty(), Some(namespace.as_fd())).is_ok()
        })
    }

    /// Attaches it to a place that was looked up.
    pub(super) fn attach(&self, target: BorrowedFd<'_>) -> rustix::io::Result<()> {
        let flags =
            MoveMountFlags::MOVE_MOUNT_F_EMPTY_PATH | MoveMountFlags::MOVE_MOUNT_T_EMPTY_PATH;
        rustix::mount::move_mount(&self.0, "", target, "", flags)
    }
}

/// Copies what is at a path, as seen from a folder.
pub(super) fn copy_at(folder: impl AsFd, path: &Path) -> rustix::io::Result<Detached> {
    let flags = OpenTreeFlags::OPEN_TREE_CLONE | OpenTreeFlags::OPEN_TREE_CLOEXEC;
    rustix::mount::open_tree(folder, path, flags).map(Detached)
}

/// The kind of a target that is created if it is missing.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Kind {
    Folder,
    File,
}

impl Kind {
    /// What a descriptor is of.
    pub(super) fn of(found: impl AsFd) -> Result<Self> {
        let flags = rustix::fs::AtFlags::EMPTY_PATH;
        let status = rustix::fs::statx(found, "", flags, StatxFlags::TYPE).context("statx")?;
        let folder = FileType::from_raw_mode(status.stx_mode.into()) == FileType::Directory;
        Ok(if folder { Self::Folder } else { Self::File })
    }
}

/// The root that the sandbox will have, while it is being built.
#[derive(Debug)]
pub(super) struct Root {
    fd: OwnedFd,
}

impl Root {
    /// Attaches the mount over the current root, which stays in use until [`Self::enter`]. The
    /// mount namespace must be private by now.
    pub(super) fn over_current(mount: Detached) -> Result<Self> {
        let flags = MoveMountFlags::MOVE_MOUNT_F_EMPTY_PATH;
        rustix::mount::move_mount(&mount.0, "", CWD, "/", flags)
            .context("cannot attach the sandbox's root: move_mount")?;
        Ok(Self { fd: mount.0 })
    }

    /// Looks a path up inside.
    pub(super) fn find(&self, path: &Path) -> rustix::io::Result<OwnedFd> {
        let path = relative(path);
        let path = if path.as_os_str().is_empty() { Path::new(".") } else { path };
        rustix::fs::openat2(
            &self.fd,
            path,
            OFlags::PATH | OFlags::CLOEXEC,
            Mode::empty(),
            ResolveFlags::IN_ROOT | ResolveFlags::NO_MAGICLINKS,
        )
    }

    /// Attaches a mount to a place that must be there.
    pub(super) fn attach(&self, mount: &Detached, target: impl AsRef<Path>) -> Result<()> {
        let target = target.as_ref();
        let place =
            self.find(target).with_context(|| format!("cannot open {}: openat2", shown(target)))?;
        mount
            .attach(place.as_fd())
            .with_context(|| format!("cannot mount on {}: move_mount", shown(target)))
    }

    /// Attaches a mount when its target is there; false when it is not.
    pub(super) fn attach_if_there(&self, mount: &Detached, target: &Path) -> Result<bool> {
        match self.find(target) {
            Ok(place) => mount
                .attach(place.as_fd())
                .map(|()| true)
                .with_context(|| format!("cannot mount on {}: move_mount", shown(target))),
            Err(Errno::NOENT | Errno::NOTDIR) => Ok(false),
            Err(error) => {
                Err(error).with_context(|| format!("cannot open {}: openat2", shown(target)))
            }
        }
    }

    /// Makes a place and the folders above it, owned by the sandbox's root.
    pub(super) fn make(&self, path: &Path, kind: Kind, owners: &Owners) -> Result<()> {
        let _acting = ActingAs::root_of(owners)?;
        let parts: Vec<_> = relative(path).components().collect();
        let mut above = PathBuf::from(".");
        for (index, part) in parts.iter().enumerate() {
            let Component::Normal(name) = part else { continue };
            let wanted = if index + 1 == parts.len() { kind } else { Kind::Folder };
            let here = above.join(name);
            if self.find(&here).is_err() {
                self.make_one(&above, name, wanted).map_err(|error| missing(path, error))?;
            }
            above = here;
        }
        Ok(())
    }

    fn make_one(&self, above: &Path, name: &std::ffi::OsStr, kind: Kind) -> Result<(), Errno> {
        let parent = self.find(above)?;
        match kind {
            Kind::Folder => rustix::fs::mkdirat(parent, name, Mode::from(0o755))?,
            Kind::File => {
                let flags = OFlags::CREATE | OFlags::EXCL | OFlags::WRONLY | OFlags::CLOEXEC;
                rustix::fs::openat(parent, name, flags, Mode::from(0o644))?;
            }
        }
        Ok(())
    }

    /// Makes it the root of every process in this mount namespace, and lets go of the old one.
    pub(super) fn enter(self) -> Result<()> {
        const HERE: &CStr = c".";
        rustix::process::fchdir(&self.fd).context("cannot change folder: fchdir")?;
        // With both arguments the same, the old root is left mounted over the new one, from where
        // it is detached (pivot_root(2), NOTES).
        rustix::process::pivot_root(HERE, HERE).context("cannot change root: pivot_root")?;
        rustix::mount::unmount(HERE, UnmountFlags::DETACH)
            .context("cannot let go of the host's root: umount2")?;
        rustix::process::chdir("/").context("cannot change folder: chdir")
    }
}

fn missing(path: &Path, errno: Errno) -> anyhow::Error {
    let hint = match errno {
        Errno::ROFS => {
            ": it is not there and the sandbox's root is read-only: make it on the host, or choose \
             a place below /tmp or /run"
        }
        _ => "",
    };
    anyhow::anyhow!("cannot make {}: {errno}{hint}", path.display())
}

fn shown(path: &Path) -> String {
    format!("/{}", relative(path).display())
}
