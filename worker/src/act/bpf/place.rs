//! Which control groups are a container's own: those below the root of its cgroup namespace that belong
//! to one of its users.
//!
//! The root itself is not: the host's programs are attached there, and whoever may attach or detach there
//! could put its own in their place. Below, the kernel runs all programs from the top down to a task's
//! control group, and the first refusal counts — as long as every one above was attached with
//! `BPF_F_ALLOW_MULTI`. One that was attached with `BPF_F_ALLOW_OVERRIDE` instead would not be run any
//! more for a control group that has one of its own, so nothing is attached below such a one. (Below one
//! with neither flag the kernel allows nothing anyway.)
//!
//! Control groups are told apart by their numbers in the hierarchy, never by paths: the caller's
//! descriptor may be of a mount of its own.

use std::os::fd::{AsFd, BorrowedFd, OwnedFd};

use ambit_kernel::sys::bpf::{self, ALLOW_MULTI};
use ambit_kernel::sys::file_handle;
use nix::errno::Errno;
use nix::sched::{CloneFlags, setns};
use rustix::fs::{CWD, Mode, OFlags, fstat, fstatfs, openat};
use rustix::mount::{FsMountFlags, FsOpenFlags, MountAttrFlags, fsconfig_create, fsmount, fsopen};
use rustix::thread::CapabilitySet;

use super::with;
use crate::act::reply::Reply;
use crate::child::leave;
use crate::pin::top_of_cgroup2;

/// `CGROUP2_SUPER_MAGIC`
const CGROUP2: u64 = 0x6367_7270;
/// The number of the topmost control group.
const TOP: u64 = 1;
/// Control groups in each other, at most.
const DEEPEST: usize = 1024;

/// What the worker sees of control groups, opened before it took on anybody's root.
#[derive(Debug)]
pub(in crate::act) struct Surroundings {
    /// Our mount of cgroup v2, if there is one.
    mount: Option<OwnedFd>,
    /// Our own cgroup namespace.
    namespace: Option<OwnedFd>,
    /// Programs that callers asked for: their numbers.
    pub(super) told: Vec<u32>,
}

impl Surroundings {
    pub(in crate::act) fn open() -> Self {
        let mount = top_of_cgroup2().and_then(|path| {
            let flags = OFlags::RDONLY | OFlags::DIRECTORY | OFlags::CLOEXEC;
            openat(CWD, path, flags, Mode::empty()).ok()
        });
        let flags = OFlags::RDONLY | OFlags::CLOEXEC;
        let namespace = openat(CWD, "/proc/self/ns/cgroup", flags, Mode::empty()).ok();
        Self { mount, namespace, told: Vec::new() }
    }

    /// The control group that a caller's descriptor leads to, by our own mount, if it is one of the
    /// container's. `groups` is the caller's cgroup namespace.
    pub(super) fn own(
        &self,
        named: BorrowedFd<'_>,
        groups: BorrowedFd<'_>,
        users: &[(u32, u32)],
    ) -> Result<OwnedFd, Reply> {
        let (Some(mount), Some(_)) = (&self.mount, &self.namespace) else {
            return Err(Reply::Kernel);
        };
        // As the kernel calls what is no control group of v2.
        if !is_control_group(named) {
            return Err(Reply::Failed(Errno::EBADF));
        }
        let place =
            with(CapabilitySet::DAC_READ_SEARCH, || file_handle::reopen(named, mount.as_fd()));
        // A file in it is as little a control group.
        let place = place.map_err(|_| Reply::Failed(Errno::EBADF))?;
        let owner = fstat(&place).map_err(|_| Reply::Kernel)?.st_uid;
        let within =
            |&(first, count): &(u32, u32)| owner.checked_sub(first).is_some_and(|at| at < count);
        let top = self.top_of(groups)?;
        if users.iter().any(within) && is_below(&place, top)? {
            Ok(place)
        } else {
            Err(Reply::Failed(Errno::EPERM))
        }
    }

    /// The number of the control group at the root of a cgroup namespace: that at which a mount made
    /// in it starts. Such a mount of the host's own namespace would change options of the whole
    /// hierarchy; this one is never that (see the handler).
    fn top_of(&self, groups: BorrowedFd<'_>) -> Result<u64, Reply> {
        with(CapabilitySet::SYS_ADMIN, || {
            let own = self.namespace.as_ref().ok_or(Errno::ENOENT)?;
            setns(groups, CloneFlags::CLONE_NEWCGROUP)?;
            let top = mounted_top();
            if setns(own, CloneFlags::CLONE_NEWCGROUP).is_err() {
                // Not fit for anybody any more.
                leave(1);
            }
            top.map_err(|errno| Errno::from_raw(errno.raw_os_error()))
        })
    }
}

fn mounted_top() -> rustix::io::Result<u64> {
    let context = fsopen("cgroup2", FsOpenFlags::FSOPEN_CLOEXEC)?;
    fsconfig_create(context.as_fd())?;
    let flags = FsMountFlags::FSMOUNT_CLOEXEC;
    let mount = fsmount(context.as_fd(), flags, MountAttrFlags::empty())?;
    Ok(fstat(mount)?.st_ino)
}

fn is_control_group(fd: BorrowedFd<'_>) -> bool {
    fstatfs(fd).is_ok_and(|filesystem| filesystem.f_type.cast_unsigned() == CGROUP2)
}

/// Is a control group below the one of this number, and are all programs from there on up run for it
/// too? Those in between are the container's own.
fn is_below(place: &OwnedFd, top: u64) -> Result<bool, Reply> {
    let flags = OFlags::RDONLY | OFlags::DIRECTORY | OFlags::CLOEXEC;
    let mut below = false;
    let mut at = place.try_clone().map_err(|_| Reply::Kernel)?;
    for _ in 0..DEEPEST {
        at = with(CapabilitySet::DAC_READ_SEARCH, || {
            openat(&at, "..", flags, Mode::empty())
                .map_err(|errno| Errno::from_raw(errno.raw_os_error()))
        })?;
        // Above our own mount, which then does not show the whole hierarchy.
        if !is_control_group(at.as_fd()) {
            return Ok(false);
        }
        let number = fstat(&at).map_err(|_| Reply::Kernel)?.st_ino;
        below |= number == top;
        if below {
            let (flags, programs) = with(super::RIGHTS, || bpf::attached(at.as_fd()))?;
            if !programs.is_empty() && flags & ALLOW_MULTI == 0 {
                return Ok(false);
            }
        }
        if number == TOP {
            return Ok(below);
        }
    }
    Ok(false)
}
