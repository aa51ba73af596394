//! A container's `/proc` or `/sys`: the mount below the targets, and what lies on each target.

use std::collections::HashMap;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::path::Path;

use ambit_kernel::text::mountinfo::Mounted;
use rustix::fs::{Mode, OFlags};
use rustix::io::Errno;
use rustix::mount::UnmountFlags;

use super::clones::is_marked;
use super::facts::Facts;
use super::probe::{self, Verdict};
use super::{Options, Outcome};
use crate::lookup::{self, Mounts, find};

/// The filesystem types of this overlay and of lxcfs: their dead mounts are replaced.
const KINDS: [&str; 2] = ["fuse.ambit", "fuse.lxcfs"];
/// Most mounts that are removed from one target.
const LAYERS: usize = 16;
/// The longest name of a filesystem type that is reported. Containers choose names of FUSE types.
const LONGEST_KIND: usize = 32;

/// A container's `/proc` or `/sys`.
pub(super) struct Tree<'a> {
    /// `proc` or `sys`.
    pub(super) name: &'static str,
    /// The folder that is mounted, if not the whole: `devices`.
    folder: &'static str,
    /// Its root, or that of its folder.
    pub(super) fd: OwnedFd,
    /// Its mount.
    pub(super) mount: &'a Mounted,
    /// All mounts of the mount namespace.
    pub(super) mounts: &'a [Mounted],
}

/// The state of a target before anything is done.
#[derive(Debug, PartialEq, Eq)]
pub(super) enum State {
    /// It is to be covered.
    Open,
    /// A dead mount on it is to be replaced.
    Dead,
    /// Nothing is done.
    Settled(Outcome),
}

/// Which connections are dead, by device number.
pub(super) type Verdicts = HashMap<u32, Verdict>;

impl<'a> Tree<'a> {
    /// Opens a tree below the container's root. `None` if there is none.
    pub(super) fn open(
        root: BorrowedFd<'_>,
        name: &'static str,
        mounts: &'a [Mounted],
        facts: &Facts,
    ) -> Result<Option<Self>, String> {
        let mut fd = match find(root, name, Mounts::Crossed) {
            Ok(fd) => fd,
            Err(Errno::NOENT) => return Ok(None),
            Err(errno) => return Err(format!("openat2 of /{name}: {errno}")),
        };
        let mount_of = |fd: &OwnedFd| {
            lookup::mount_of(fd, mounts).map_err(|errno| format!("/{name}: {errno}"))
        };
        let mut mount = mount_of(&fd)?;
        let kind = if name == "proc" { "proc" } else { "sysfs" };
        let mut folder = "";
        // systemd-nspawn mounts folders of a sysfs on a tmpfs, unless the network is the machine's.
        if name == "sys"
            && mount.kind == "tmpfs"
            && let Ok(devices) = find(&fd, "devices", Mounts::Crossed)
        {
            (mount, fd, folder) = (mount_of(&devices)?, devices, "devices");
        }
        if mount.kind != kind
            || mount.root != Path::new("/").join(folder)
            || !lookup::is_mount_root(&fd)
        {
            return Err(format!("/{name} is not a mounted {kind}"));
        }
        if kind == "proc" {
            let namespace = |process: &str| {
                find(&fd, &format!("{process}/ns"), Mounts::Refused)
                    .and_then(|folder| lookup::namespace(folder, "pid"))
            };
            // A hook in a user namespace may not look at the runtime's process, but is in the
            // container's pid namespace itself.
            let own = match namespace("1") {
                Err(Errno::ACCESS | Errno::PERM) => namespace(&std::process::id().to_string()),
                own => own,
            };
            match own {
                Ok(id) if id == facts.pid_namespace() => {}
                Ok(_) => {
                    return Err(
                        "/proc is that of another pid namespace than the container's".into()
                    );
                }
                Err(errno) => return Err(format!("the pid namespace of /proc: {errno}")),
            }
        }
        if facts.is_shared_with_machine(mount) {
            return Err(format!("mounts on /{name} would appear on the machine too"));
        }
        Ok(Some(Self { name, folder, fd, mount, mounts }))
    }

    /// Opens what lies on a target.
    pub(super) fn place(&self, target: &str) -> Result<OwnedFd, Errno> {
        let (folder, name) = self.folder(target)?;
        find(folder, name, Mounts::Crossed)
    }

    /// Opens the folder of a target, which lies on the tree's own mount, and returns the target's
    /// name in it.
    fn folder<'t>(&self, target: &'t str) -> Result<(OwnedFd, &'t str), Errno> {
        let path = target.split_once('/').map_or(target, |(_, path)| path);
        let path = path.strip_prefix(self.folder).ok_or(Errno::NOENT)?.trim_start_matches('/');
        let (folder, name) = path.rsplit_once('/').unwrap_or((".", path));
        Ok((find(&self.fd, folder, Mounts::Refused)?, name))
    }

    /// Returns the state of a target. Asks connections of other servers whether they are alive, each
    /// once.
    pub(super) fn state(
        &self,
        target: &str,
        facts: &Facts,
        options: Options,
        verdicts: &mut Verdicts,
    ) -> State {
        let left = |reason: String| State::Settled(Outcome::Left(reason));
        let place = match self.place(target) {
            Ok(place) => place,
            Err(Errno::NOENT | Errno::NOTDIR) => return State::Settled(Outcome::Absent),
            Err(Errno::XDEV) => return left("a mount covers its folder".to_owned()),
            Err(errno) => return left(format!("openat2: {errno}")),
        };
        let mount = match lookup::mount_of(&place, self.mounts) {
            Ok(mount) => mount,
            // Mounted since the list was read.
            Err(errno) => return left(format!("its mount: {errno}")),
        };
        if mount.id == self.mount.id {
            return State::Open;
        }
        if facts.is_of_overlay(mount) || (is_marked(mount) && mount.kind == "cgroup2") {
            return State::Settled(Outcome::Already);
        }
        let kind: String = mount.kind.escape_debug().take(LONGEST_KIND).collect();
        if !KINDS.contains(&mount.kind.as_str()) {
            return left(format!("a mount of {kind} covers it"));
        }
        let verdict = match verdicts.get(&mount.minor) {
            Some(&verdict) => verdict,
            None => match probe::ask(place.as_fd()) {
                Ok(verdict) => *verdicts.entry(mount.minor).or_insert(verdict),
                Err(error) => return left(error.message),
            },
        };
        match verdict {
            Verdict::Dead => State::Dead,
            Verdict::Alive if options.replace => State::Open,
            Verdict::Alive => left(format!("{kind} serves it; --replace covers that")),
            Verdict::Silent => left(format!("{kind} serves it and does not answer")),
        }
    }

    /// Removes the dead mounts from the top of a target.
    pub(super) fn clear(&self, target: &str, verdicts: &Verdicts) -> Result<(), String> {
        self.remove(target, |place| {
            let minor = lookup::on(place)?.minor;
            Ok(minor.is_some_and(|minor| verdicts.get(&minor) == Some(&Verdict::Dead)))
        })
        .map(drop)
    }

    /// Removes the mounts of attach from the top of a target.
    pub(super) fn uncover(&self, target: &str) -> Outcome {
        let marked = |place: BorrowedFd<'_>| match lookup::mount_of(place, self.mounts) {
            Ok(mount) => Ok(mount.id != self.mount.id && is_marked(mount)),
            Err(Errno::STALE) => Ok(false),
            Err(errno) => Err(errno),
        };
        match self.remove(target, marked) {
            Ok(0) => Outcome::Absent,
            Ok(_) => Outcome::Removed,
            Err(reason) => Outcome::Left(reason),
        }
    }

    /// Removes mounts from the top of a target while the function says so, and returns how many.
    fn remove(
        &self,
        target: &str,
        mut is_removed: impl FnMut(BorrowedFd<'_>) -> Result<bool, Errno>,
    ) -> Result<usize, String> {
        let mut step = || -> Result<bool, (&str, Errno)> {
            let (folder, name) = match self.folder(target) {
                Ok(found) => found,
                Err(Errno::NOENT | Errno::XDEV) => return Ok(false),
                Err(errno) => return Err(("openat2", errno)),
            };
            let place = match find(&folder, name, Mounts::Crossed) {
                Ok(place) => place,
                Err(Errno::NOENT) => return Ok(false),
                Err(errno) => return Err(("openat2", errno)),
            };
            if !is_removed(place.as_fd()).map_err(|errno| ("statx", errno))? {
                return Ok(false);
            }
            drop(place);
            unmount(&folder, name).map_err(|errno| ("umount2", errno))?;
            Ok(true)
        };
        for count in 0..LAYERS {
            match step() {
                Ok(true) => {}
                Ok(false) => return Ok(count),
                Err(("umount2", Errno::INVAL)) => {
                    return Err("the kernel does not allow to remove the mount here".to_owned());
                }
                Err((call, errno)) => return Err(format!("{call}: {errno}")),
            }
        }
        Ok(LAYERS)
    }
}

/// Detaches the topmost mount on a name in a folder. umount2(2) takes no descriptor, and a path of
/// `/proc/self/fd` would lead through the container's `/proc`: so the folder is the working folder
/// meanwhile.
pub(super) fn unmount(folder: &OwnedFd, name: &str) -> Result<(), Errno> {
    let flags = OFlags::PATH | OFlags::DIRECTORY | OFlags::CLOEXEC;
    let before = rustix::fs::open(".", flags, Mode::empty())?;
    rustix::process::fchdir(folder)?;
    let done = rustix::mount::unmount(name, UnmountFlags::DETACH | UnmountFlags::NOFOLLOW);
    rustix::process::fchdir(before)?;
    done
}
