//! The sandbox's `/dev`: a tmpfs with the devices every program expects, its own terminals, and
//! the devices it was given.
//!
//! Nodes are made by the host's root on a tmpfs of the host's, then chowned to the sandbox's root:
//! inside a user namespace they can be neither made nor, on a filesystem of its own, opened.

use std::os::fd::AsFd;
use std::path::{Path, PathBuf};

use anyhow::{Context, Result};
use rustix::fs::{AtFlags, FileType, Gid, Mode, Uid};
use rustix::mount::MountAttrFlags;

use super::hostmounts::relative;
use super::mounts::{Detached, Kind, Root};
use super::owners::{ActingAs, Owners};
use super::scratch::Scratch;

/// Character devices of major number 1 and 5 that every sandbox has.
const NODES: [(&str, u32, u32); 6] = [
    ("null", 1, 3),
    ("zero", 1, 5),
    ("full", 1, 7),
    ("random", 1, 8),
    ("urandom", 1, 9),
    ("tty", 5, 0),
];

const LINKS: [(&str, &str); 5] = [
    ("fd", "/proc/self/fd"),
    ("stdin", "/proc/self/fd/0"),
    ("stdout", "/proc/self/fd/1"),
    ("stderr", "/proc/self/fd/2"),
    ("ptmx", "pts/ptmx"),
];

/// The group `tty`, which owns terminals.
const TTY_GROUP: u32 = 5;

/// Builds `/dev`. Must run in the sandbox's ipc namespace, for its message queues.
pub(super) fn build(
    root: &Root,
    owners: &Owners,
    devices: &[PathBuf],
    scratch: &mut Scratch,
) -> Result<()> {
    let plain = MountAttrFlags::MOUNT_ATTR_NOSUID | MountAttrFlags::MOUNT_ATTR_NOEXEC;
    let dev = scratch.take("dev", MountAttrFlags::MOUNT_ATTR_NOSUID)?;
    root.attach(&dev, "dev")?;
    for (name, major, minor) in NODES {
        if owners.is_rootless {
            hosts(root, name, owners)?;
            continue;
        }
        let number = rustix::fs::makedev(major, minor);
        node(&dev, Path::new(name), FileType::CharacterDevice, 0o666, number, owners)?;
    }
    let acting = ActingAs::root_of(owners)?;
    for (name, target) in LINKS {
        rustix::fs::symlinkat(target, &dev.0, name)
            .with_context(|| format!("cannot make /dev/{name}: symlinkat"))?;
    }
    drop(acting);
    for folder in ["dev/pts", "dev/shm", "dev/mqueue"] {
        root.make(Path::new(folder), Kind::Folder, owners)?;
    }
    // The terminal is bound here, if there is one.
    root.make(Path::new("dev/console"), Kind::File, owners)?;

    let group = owners.gid.saturating_add(TTY_GROUP).to_string();
    let terminals = [("mode", "620"), ("ptmxmode", "666"), ("gid", group.as_str())];
    // The only user has no group of terminals.
    let terminals = if owners.is_rootless { &terminals[..2] } else { &terminals[..] };
    root.attach(&Detached::new("devpts", terminals, plain)?, "dev/pts")?;
    let data = plain | MountAttrFlags::MOUNT_ATTR_NODEV;
    root.attach(&scratch.take("shm", data)?, "dev/shm")?;
    // A kernel may be built without message queues.
    if let Ok(queues) = Detached::new("mqueue", &[], data) {
        root.attach(&queues, "dev/mqueue")?;
    }
    for device in devices {
        given(root, &dev, device, owners)?;
    }
    Ok(())
}

/// A device that every user may open, of the host.
fn hosts(root: &Root, name: &str, owners: &Owners) -> Result<()> {
    let place = Path::new("dev").join(name);
    root.make(&place, Kind::File, owners)?;
    root.attach(&Detached::copy_of(&Path::new("/").join(&place))?, &place)
}

/// A device of the host, under the same name and with the same permissions, but owned by the
/// sandbox's root.
fn given(root: &Root, dev: &Detached, device: &Path, owners: &Owners) -> Result<()> {
    let status =
        rustix::fs::stat(device).with_context(|| format!("cannot stat {}", device.display()))?;
    let name = relative(device).strip_prefix("dev").context("a device is not below /dev")?;
    if let Some(parent) = relative(device).parent().filter(|parent| *parent != Path::new("dev")) {
        root.make(parent, Kind::Folder, owners)?;
    }
    if root.find(device).is_ok() {
        return Ok(());
    }
    let kind = FileType::from_raw_mode(status.st_mode);
    node(dev, name, kind, status.st_mode & 0o777, status.st_rdev, owners)
}

fn node(
    dev: &Detached,
    name: &Path,
    kind: FileType,
    mode: u32,
    number: u64,
    owners: &Owners,
) -> Result<()> {
    let shown = name.display();
    let fd = dev.0.as_fd();
    rustix::fs::mknodat(fd, name, kind, Mode::empty(), number)
        .with_context(|| format!("cannot make /dev/{shown}: mknodat"))?;
    // After mknod, because that is subject to the caller's umask.
    rustix::fs::chmodat(fd, name, Mode::from(mode), AtFlags::empty())
        .with_context(|| format!("cannot change /dev/{shown}: fchmodat"))?;
    let (uid, gid) = (Uid::from_raw(owners.uid), Gid::from_raw(owners.gid));
    rustix::fs::chownat(fd, name, Some(uid), Some(gid), AtFlags::SYMLINK_NOFOLLOW)
        .with_context(|| format!("cannot give /dev/{shown} away: fchownat"))
}
