//! Decides which control groups belong to a container: those below the root of its cgroup namespace
//! that are owned by one of its users.
//!
//! The root itself does not belong to it: programs of the host are attached there, and a caller
//! that may attach or detach there could replace them. Control groups are compared by their inode
//! numbers in the hierarchy, never by paths: the caller's descriptor may be from another mount.
//! Start reading at [`HostControlGroups::own`].

use std::os::fd::{AsFd, BorrowedFd, OwnedFd};

use ambit_kernel::sys::bpf::{self, ALLOW_MULTI};
use ambit_kernel::sys::errno::to_errno;
use ambit_kernel::sys::file_handle;
use nix::sched::{CloneFlags, setns};
use rustix::fs::{CWD, Mode, OFlags, fstat, fstatfs, openat};
use rustix::io::Errno;
use rustix::mount::{FsMountFlags, FsOpenFlags, MountAttrFlags, fsconfig_create, fsmount, fsopen};
use rustix::thread::CapabilitySet;

use super::with;
use crate::child::exit;
use crate::operation::reply::Reply;
use crate::pin::top_of_cgroup2;

/// `CGROUP2_SUPER_MAGIC`
const CGROUP2: u64 = 0x6367_7270;
/// The inode number of the root control group.
const TOP: u64 = 1;
/// The most levels of control groups that are walked.
const DEEPEST: usize = 1024;

/// The host's view of control groups, opened before the worker changes its root.
#[derive(Debug)]
pub(in crate::operation) struct HostControlGroups {
    /// The host's mount of cgroup v2, if there is one.
    mount: Option<OwnedFd>,
    /// The worker's own cgroup namespace.
    namespace: Option<OwnedFd>,
    /// The program ids that queries have returned.
    pub(super) known: Vec<u32>,
}

impl HostControlGroups {
    pub(in crate::operation) fn open() -> Self {
        let mount = top_of_cgroup2().and_then(|path| {
            let flags = OFlags::RDONLY | OFlags::DIRECTORY | OFlags::CLOEXEC;
            openat(CWD, path, flags, Mode::empty()).ok()
        });
        let flags = OFlags::RDONLY | OFlags::CLOEXEC;
        let namespace = openat(CWD, "/proc/self/ns/cgroup", flags, Mode::empty()).ok();
        Self { mount, namespace, known: Vec::new() }
    }

    /// Opens the control group of a caller's descriptor in the host's mount. EPERM if it does not
    /// belong to the container. `groups` is the caller's cgroup namespace.
    pub(super) fn own(
        &self,
        named: BorrowedFd<'_>,
        groups: BorrowedFd<'_>,
        users: &[(u32, u32)],
    ) -> Result<OwnedFd, Reply> {
        let (Some(mount), Some(_)) = (&self.mount, &self.namespace) else {
            return Err(Reply::Kernel);
        };
        // The errno of the kernel for a descriptor that is not a cgroup v2 directory.
        if !is_control_group(named) {
            return Err(Reply::Failed(Errno::BADF));
        }
        let group =
            with(CapabilitySet::DAC_READ_SEARCH, || file_handle::reopen(named, mount.as_fd()));
        // Also for a file in a control group.
        let group = group.map_err(|_| Reply::Failed(Errno::BADF))?;
        let owner = fstat(&group).map_err(|_| Reply::Kernel)?.st_uid;
        let within =
            |&(first, count): &(u32, u32)| owner.checked_sub(first).is_some_and(|at| at < count);
        let top = self.top_of(groups)?;
        if users.iter().any(within) && is_below(&group, top)? {
            Ok(group)
        } else {
            Err(Reply::Failed(Errno::PERM))
        }
    }

    /// Returns the inode number of the control group at the root of a cgroup namespace, which is
    /// the root of a mount made in it. `groups` must not be the host's cgroup namespace, where such
    /// a mount would change options of the whole hierarchy; the handler of the call checks that.
    fn top_of(&self, groups: BorrowedFd<'_>) -> Result<u64, Reply> {
        with(CapabilitySet::SYS_ADMIN, || {
            let own = self.namespace.as_ref().ok_or(Errno::NOENT)?;
            setns(groups, CloneFlags::CLONE_NEWCGROUP).map_err(to_errno)?;
            let top = mounted_top();
            if setns(own, CloneFlags::CLONE_NEWCGROUP).is_err() {
                // A worker in the container's cgroup namespace must take no further task.
                exit(1);
            }
            top
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

/// True if a control group is below the one of inode number `top`, and the programs of `top` and of
/// all control groups above are run for it too. The control groups in between are the container's
/// own.
///
/// The kernel runs the programs of all control groups from the root down to the task's own, and one
/// that denies is enough, if all of them were attached with `BPF_F_ALLOW_MULTI`. A program with
/// `BPF_F_ALLOW_OVERRIDE` is not run for a descendant that has a program of its own, so nothing may
/// be attached below it. Below a program with neither flag the kernel itself allows nothing.
fn is_below(group: &OwnedFd, top: u64) -> Result<bool, Reply> {
    let flags = OFlags::RDONLY | OFlags::DIRECTORY | OFlags::CLOEXEC;
    let mut below = false;
    let mut at = group.try_clone().map_err(|_| Reply::Kernel)?;
    for _ in 0..DEEPEST {
        at = with(CapabilitySet::DAC_READ_SEARCH, || openat(&at, "..", flags, Mode::empty()))?;
        // The walk has left the mount, which then does not show the whole hierarchy.
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
