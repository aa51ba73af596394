//! Mounting the overlay and removing it, with our own system calls.
//!
//! fuser could mount, but then its session would begin before we have seen INIT, and unmount
//! when it ends; a connection that outlives its server needs neither. The superblock of
//! the overlay is read-only, because a read on a writable one makes the kernel ask for attributes
//! again. A
//! mount whose server is dead is replaced; whatever else is mounted is left alone.

use std::ffi::CString;
use std::fs;
use std::io;
use std::os::fd::{AsFd, AsRawFd, BorrowedFd, OwnedFd};
use std::path::{Path, PathBuf};
use std::sync::mpsc;
use std::thread;
use std::time::Duration;

use rustix::fs::{Mode, OFlags};
use rustix::mount::{
    FsMountFlags, FsOpenFlags, MountAttrFlags, MountFlags, MoveMountFlags, UnmountFlags,
};

use crate::error::Error;
use crate::mountinfo;

/// What stands in the second half of the type, `fuse.ambit`, and as the source, unless
/// programs are to find another name there.
pub const NAME: &str = "ambit";

/// May files be written?
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Writes {
    /// They may.
    Allowed,
    /// The superblock is read-only.
    Refused,
}

/// How long a mount in the way may take to show that it is alive.
const PATIENCE: Duration = Duration::from_secs(2);

/// Mounts a new connection at `path`, with this name as source and in the type, and returns its device, on which the kernel has put INIT
/// by then. The directory is made when it is missing, and a mount of a dead server removed.
///
/// # Errors
/// Something alive is mounted there, or a step failed.
pub fn attach(path: &Path, name: &str, writes: Writes) -> Result<OwnedFd, Error> {
    let device = rustix::fs::open("/dev/fuse", OFlags::RDWR | OFlags::CLOEXEC, Mode::empty())
        .map_err(|errno| Error::Device(errno.into()))?;
    match new_mount(path, name, writes, device.as_fd()) {
        // Kernels before 5.2, and sandboxes that know only mount(2).
        Err((_, rustix::io::Errno::NOSYS)) => old_mount(path, name, writes, device.as_fd()),
        done => done,
    }
    .map_err(|(call, errno)| Error::Mount { path: path.into(), call, source: errno.into() })?;
    Ok(device)
}

/// The absolute path of a mount point without symbolic links, free to be mounted on.
///
/// # Errors
/// It cannot be made, or something is mounted there that is alive and not empty.
pub fn prepare(path: &Path) -> Result<PathBuf, Error> {
    let point = |source| Error::MountPoint { path: path.into(), source };
    let path = resolve(path).map_err(point)?;
    // Mounts may lie upon each other; each turn removes one.
    while let Some(mounted) = mountinfo::top(&path).map_err(point)? {
        let is_fuse = mounted.kind.starts_with("fuse");
        // A filesystem of its own for the folder: nothing is hidden while it is empty.
        if !is_fuse && fs::read_dir(&path).is_ok_and(|mut entries| entries.next().is_none()) {
            break;
        }
        if !is_fuse || !is_dead(&path) {
            let holder = format!("{} ({})", mounted.source, mounted.kind);
            return Err(Error::Busy { path, holder });
        }
        tracing::info!(path = %path.display(), "replacing the mount of a dead server");
        detach(&path)?;
    }
    fs::create_dir_all(&path).map_err(point)?;
    Ok(path)
}

/// Removes the topmost mount at a path at once; who still uses it may go on.
///
/// # Errors
/// What the kernel says, with the path.
pub fn detach(path: &Path) -> Result<(), Error> {
    rustix::mount::unmount(path, UnmountFlags::DETACH | UnmountFlags::NOFOLLOW)
        .map_err(|errno| Error::Unmount { path: path.into(), source: errno.into() })
}

/// The number of the connection mounted at a path, if it is one of ours.
pub(crate) fn connection(path: &Path, name: &str) -> Option<u32> {
    let mounted = mountinfo::top(path).ok()??;
    (mounted.kind == format!("fuse.{name}")).then_some(mounted.minor)
}

/// Ends a connection for every mount of it, wherever it is bound.
///
/// It is found by its number once, while it is mounted: numbers are used again, and nobody
/// else's connection may be ended.
#[derive(Debug)]
pub(crate) struct AbortSwitch(OwnedFd);

impl AbortSwitch {
    /// The switch of a connection, in a control filesystem mounted for ourselves only.
    pub(crate) fn of(connection: u32) -> io::Result<Self> {
        let context = rustix::mount::fsopen("fusectl", FsOpenFlags::FSOPEN_CLOEXEC)?;
        rustix::mount::fsconfig_create(context.as_fd())?;
        let flags = FsMountFlags::FSMOUNT_CLOEXEC;
        let control = rustix::mount::fsmount(context.as_fd(), flags, MountAttrFlags::empty())?;
        let name = format!("{connection}/abort");
        let flags = OFlags::WRONLY | OFlags::CLOEXEC;
        Ok(Self(rustix::fs::openat(control, name, flags, Mode::empty())?))
    }

    /// Its files answer ENOTCONN from now on, and its server is told ENODEV. Nothing happens
    /// when the connection is gone already.
    pub(crate) fn throw(&self) -> io::Result<()> {
        rustix::io::write(&self.0, b"1")?;
        Ok(())
    }
}

/// The path without symbolic links. Its last component is not looked at: it may be a mount
/// whose server is dead.
fn resolve(path: &Path) -> io::Result<PathBuf> {
    let path = std::path::absolute(path)?;
    let (Some(parent), Some(name)) = (path.parent(), path.file_name()) else {
        return Err(io::Error::from(io::ErrorKind::InvalidInput));
    };
    fs::create_dir_all(parent)?;
    Ok(parent.canonicalize()?.join(name))
}

/// Is the server of this mount dead? Asks what is never answered from a cache, and takes one
/// that does not answer in time for alive: its device may be kept for a successor.
fn is_dead(path: &Path) -> bool {
    use rustix::io::Errno;

    let (tell, told) = mpsc::channel();
    let path = path.to_owned();
    let ask = move || {
        // Nobody listens any more when it took too long.
        let _ = tell.send(rustix::fs::statfs(&path).map(drop));
    };
    if thread::Builder::new().name("mount-probe".into()).spawn(ask).is_err() {
        return false;
    }
    let answer = told.recv_timeout(PATIENCE);
    matches!(answer, Ok(Err(Errno::NOTCONN | Errno::CONNABORTED | Errno::CONNREFUSED)))
}

type Failed = (&'static str, rustix::io::Errno);

fn new_mount(
    path: &Path,
    name: &str,
    writes: Writes,
    device: BorrowedFd<'_>,
) -> Result<(), Failed> {
    use rustix::mount::{fsconfig_create, fsconfig_set_flag, fsconfig_set_string};

    let context = rustix::mount::fsopen("fuse", FsOpenFlags::FSOPEN_CLOEXEC)
        .map_err(|errno| ("fsopen", errno))?;
    let context = context.as_fd();
    let number = device.as_raw_fd().to_string();
    let strings = [
        ("source", name),
        ("subtype", name),
        ("fd", number.as_str()),
        ("rootmode", "40000"),
        ("user_id", "0"),
        ("group_id", "0"),
    ];
    for (key, value) in strings {
        fsconfig_set_string(context, key, value).map_err(|errno| ("fsconfig", errno))?;
    }
    let read_only = (writes == Writes::Refused).then_some("ro");
    for flag in ["allow_other", "default_permissions"].into_iter().chain(read_only) {
        fsconfig_set_flag(context, flag).map_err(|errno| ("fsconfig", errno))?;
    }
    fsconfig_create(context).map_err(|errno| ("fsconfig(CMD_CREATE)", errno))?;
    let attributes = MountAttrFlags::MOUNT_ATTR_NOSUID
        | MountAttrFlags::MOUNT_ATTR_NODEV
        | MountAttrFlags::MOUNT_ATTR_NOEXEC
        | match writes {
            Writes::Refused => MountAttrFlags::MOUNT_ATTR_RDONLY,
            Writes::Allowed => MountAttrFlags::MOUNT_ATTR_NOATIME,
        };
    let mount = rustix::mount::fsmount(context, FsMountFlags::FSMOUNT_CLOEXEC, attributes)
        .map_err(|errno| ("fsmount", errno))?;
    let whole = MoveMountFlags::MOVE_MOUNT_F_EMPTY_PATH;
    rustix::mount::move_mount(mount, "", rustix::fs::CWD, path, whole)
        .map_err(|errno| ("move_mount", errno))
}

fn old_mount(
    path: &Path,
    name: &str,
    writes: Writes,
    device: BorrowedFd<'_>,
) -> Result<(), Failed> {
    let options = format!(
        "fd={},rootmode=40000,user_id=0,group_id=0,allow_other,default_permissions",
        device.as_raw_fd()
    );
    let options = CString::new(options).map_err(|_| ("mount", rustix::io::Errno::INVAL))?;
    let flags = MountFlags::NOSUID
        | MountFlags::NODEV
        | MountFlags::NOEXEC
        | match writes {
            Writes::Refused => MountFlags::RDONLY,
            Writes::Allowed => MountFlags::NOATIME,
        };
    rustix::mount::mount(name, path, format!("fuse.{name}"), flags, options.as_c_str())
        .map_err(|errno| ("mount", errno))
}
