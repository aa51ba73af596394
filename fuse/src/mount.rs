//! Makes mounts of a FUSE connection, attaches and removes them, by its own system calls.
//!
//! fuser can mount, but its session would begin before INIT is recorded, and unmount when it ends;
//! a connection that outlives its server needs neither. The superblock of the overlay is read-only,
//! because a read on a writable one makes the kernel request attributes again. A mount whose server
//! is dead is replaced; any other mount is left alone.
//!
//! Nothing here may send a request to the connection: the calling process also answers it, and if
//! it is killed while it waits for itself it stays in state D for ever. Start reading at
//! [`detached`].

use std::fs;
use std::io;
use std::os::fd::{AsFd, AsRawFd, BorrowedFd, OwnedFd};
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::Duration;

use ambit_kernel::text::mountinfo;
use rustix::fs::{Mode, OFlags};
use rustix::mount::{
    FsMountFlags, FsOpenFlags, MountAttrFlags, MoveMountFlags, OpenTreeFlags, UnmountFlags,
};

use crate::error::Error;
use crate::visit::{Visit, Visitor};

/// The second half of the type, `fuse.ambit`, and the source of a mount, unless another name is
/// set.
pub const NAME: &str = "ambit";

/// Whether files may be written.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Writes {
    /// Files may be written.
    Allowed,
    /// The superblock is read-only.
    Refused,
}

/// Properties of a mount.
#[derive(Debug, Clone)]
pub struct MountKind {
    /// The source, and what follows `fuse.` in the type.
    pub name: &'static str,
    /// Whether files may be written.
    pub writes: Writes,
    /// The label that SELinux gives all files; `None` where there is no SELinux.
    pub context: Option<Arc<str>>,
}

impl MountKind {
    /// Returns the default of mounts without SELinux.
    pub fn new(name: &'static str, writes: Writes) -> Self {
        Self { name, writes, context: None }
    }
}

/// Deadline for an existing mount to show that it is alive.
const PATIENCE: Duration = Duration::from_secs(5);

/// Opens a device without a connection.
pub fn open_device() -> Result<OwnedFd, Error> {
    rustix::fs::open("/dev/fuse", OFlags::RDWR | OFlags::CLOEXEC, Mode::empty())
        .map_err(|errno| Error::Device(errno.into()))
}

/// Makes a detached mount of the connection of this device. A device without a connection gets one, and INIT can be read when this returns; one with a
/// connection gets a further mount of it (Linux 5.15).
///
/// # Errors
/// A step failed. Before Linux 5.15 a connection has one such mount only (EINVAL).
pub fn detached(device: BorrowedFd<'_>, kind: &MountKind) -> Result<OwnedFd, Error> {
    new_mount(device, kind).map_err(|(call, errno)| Error::NewMount { call, source: errno.into() })
}

/// Attaches a mount to a mount point.
pub fn attach(mount: BorrowedFd<'_>, path: &Path) -> Result<(), Error> {
    let whole = MoveMountFlags::MOVE_MOUNT_F_EMPTY_PATH;
    rustix::mount::move_mount(mount, "", rustix::fs::CWD, path, whole).map_err(|errno| {
        Error::Mount { path: path.into(), call: "move_mount", source: errno.into() }
    })
}

/// Clones a mount of this mount namespace, detached.
pub(crate) fn copy(mount: BorrowedFd<'_>) -> rustix::io::Result<OwnedFd> {
    let flags = OpenTreeFlags::OPEN_TREE_CLONE
        | OpenTreeFlags::OPEN_TREE_CLOEXEC
        | OpenTreeFlags::AT_EMPTY_PATH;
    rustix::mount::open_tree(mount, "", flags)
}

/// Opens what is mounted at a path with O_PATH, which sends no request.
pub(crate) fn open_mount(path: &Path) -> rustix::io::Result<OwnedFd> {
    let flags = OFlags::PATH | OFlags::DIRECTORY | OFlags::NOFOLLOW | OFlags::CLOEXEC;
    rustix::fs::open(path, flags, Mode::empty())
}

/// The absolute path of a mount point without symbolic links, free to be mounted on.
///
/// # Errors
/// It cannot be made, or something is mounted there that is alive and not empty.
pub fn prepare(path: &Path, visitor: Visitor) -> Result<PathBuf, Error> {
    let point = |source| Error::MountPoint { path: path.into(), source };
    let path = resolve(path).map_err(point)?;
    // Mounts may be stacked; each round removes one.
    while let Some(mounted) = mountinfo::top(&path).map_err(point)? {
        let is_fuse = mounted.kind.starts_with("fuse");
        // The folder may be a filesystem of its own: nothing is hidden if it is empty.
        if !is_fuse && fs::read_dir(&path).is_ok_and(|mut entries| entries.next().is_none()) {
            break;
        }
        if !is_fuse || !is_dead(&path, visitor) {
            let holder = format!("{} ({})", mounted.source, mounted.kind);
            return Err(Error::Busy { path, holder });
        }
        tracing::info!(path = %path.display(), "replacing the mount of a dead server");
        detach(&path)?;
    }
    fs::create_dir_all(&path).map_err(point)?;
    Ok(path)
}

/// Detaches the topmost mount at a path (MNT_DETACH); processes that use it may go on.
pub fn detach(path: &Path) -> Result<(), Error> {
    rustix::mount::unmount(path, UnmountFlags::DETACH | UnmountFlags::NOFOLLOW)
        .map_err(|errno| Error::Unmount { path: path.into(), source: errno.into() })
}

/// Returns the number of the connection mounted at a path, if it has this name.
pub(crate) fn connection(path: &Path, name: &str) -> Option<u32> {
    let mounted = mountinfo::top(path).ok()??;
    (mounted.kind == format!("fuse.{name}")).then_some(mounted.minor)
}

/// The switch that ends a connection for all its mounts.
///
/// It is opened by the connection's number while that is mounted, because numbers are reused and no
/// other connection may be ended.
#[derive(Debug)]
pub(crate) struct AbortSwitch(OwnedFd);

impl AbortSwitch {
    /// Opens the switch of a connection, in a detached control filesystem.
    pub(crate) fn open(connection: u32) -> io::Result<Self> {
        let context = rustix::mount::fsopen("fusectl", FsOpenFlags::FSOPEN_CLOEXEC)?;
        rustix::mount::fsconfig_create(context.as_fd())?;
        let flags = FsMountFlags::FSMOUNT_CLOEXEC;
        let control = rustix::mount::fsmount(context.as_fd(), flags, MountAttrFlags::empty())?;
        let name = format!("{connection}/abort");
        let flags = OFlags::WRONLY | OFlags::CLOEXEC;
        Ok(Self(rustix::fs::openat(control, name, flags, Mode::empty())?))
    }

    /// Aborts the connection. Its files fail with ENOTCONN from now on, and its server gets ENODEV.
    /// Without effect if the connection is gone.
    pub(crate) fn throw(&self) -> io::Result<()> {
        rustix::io::write(&self.0, b"1")?;
        Ok(())
    }
}

impl From<AbortSwitch> for OwnedFd {
    fn from(switch: AbortSwitch) -> Self {
        switch.0
    }
}

/// Resolves symbolic links, but not in the last component, which may be a mount whose server is
/// dead.
pub(crate) fn resolve(path: &Path) -> io::Result<PathBuf> {
    let path = std::path::absolute(path)?;
    let (Some(parent), Some(name)) = (path.parent(), path.file_name()) else {
        return Err(io::Error::from(io::ErrorKind::InvalidInput));
    };
    fs::create_dir_all(parent)?;
    Ok(parent.canonicalize()?.join(name))
}

/// True if the server of this mount is dead. Sends a request that is never answered from a cache. A
/// server that does not answer in time counts as alive: its device may be kept for a successor.
fn is_dead(path: &Path, visitor: Visitor) -> bool {
    use rustix::io::Errno;

    let Ok(mount) = open_mount(path) else { return false };
    let answer = visitor(Visit::Probe { mount: mount.as_fd() }, PATIENCE);
    if let Err(errno) = answer {
        tracing::info!(path = %path.display(), "the mount in the way does not answer: {errno}");
    }
    matches!(answer, Err(Errno::NOTCONN | Errno::CONNABORTED | Errno::CONNREFUSED))
}

type Failed = (&'static str, rustix::io::Errno);

fn new_mount(device: BorrowedFd<'_>, kind: &MountKind) -> Result<OwnedFd, Failed> {
    use rustix::mount::{fsconfig_create, fsconfig_set_flag, fsconfig_set_string};

    let new = rustix::mount::fsopen("fuse", FsOpenFlags::FSOPEN_CLOEXEC)
        .map_err(|errno| ("fsopen", errno))?;
    let new = new.as_fd();
    let number = device.as_raw_fd().to_string();
    let strings = [
        ("source", kind.name),
        ("subtype", kind.name),
        ("fd", number.as_str()),
        ("rootmode", "40000"),
        ("user_id", "0"),
        ("group_id", "0"),
    ];
    let context = kind.context.as_deref().map(|label| ("context", label));
    for (key, value) in strings.into_iter().chain(context) {
        fsconfig_set_string(new, key, value).map_err(|errno| ("fsconfig", errno))?;
    }
    let read_only = (kind.writes == Writes::Refused).then_some("ro");
    for flag in ["allow_other", "default_permissions"].into_iter().chain(read_only) {
        fsconfig_set_flag(new, flag).map_err(|errno| ("fsconfig", errno))?;
    }
    fsconfig_create(new).map_err(|errno| ("fsconfig(CMD_CREATE)", errno))?;
    let attributes = MountAttrFlags::MOUNT_ATTR_NOSUID
        | MountAttrFlags::MOUNT_ATTR_NODEV
        | MountAttrFlags::MOUNT_ATTR_NOEXEC
        | match kind.writes {
            Writes::Refused => MountAttrFlags::MOUNT_ATTR_RDONLY,
            Writes::Allowed => MountAttrFlags::MOUNT_ATTR_NOATIME,
        };
    rustix::mount::fsmount(new, FsMountFlags::FSMOUNT_CLOEXEC, attributes)
        .map_err(|errno| ("fsmount", errno))
}
