//! Becoming the caller: its control groups, namespaces, root, working directory, ids and
//! capabilities.
//!
//! Everything is entered by descriptors that were opened while the caller was known to wait, never
//! by a pid or a path. A process that has become the caller must never have a right that the caller
//! does not have. Where any step fails, the call is left to the kernel. Start reading at
//! [`WholeCaller::enter`]; `pin.rs` makes a [`WholeCaller`].

use std::os::fd::{AsFd, OwnedFd};

use nix::sched::{CloneFlags, setns};
use nix::sys::resource::{Resource, getrlimit, setrlimit};
use rustix::process::{Gid, Uid};
use rustix::thread::{CapabilitySet, CapabilitySets};
use serde::{Deserialize, Serialize};

use super::child::die_with_parent;
use super::error::{Context, Error, MarkUntried};
use super::no_mounts::leave_mounts;
use ambit_kernel::sys::capabilities::{limit_bounding_set, limit_permitted};
use ambit_kernel::text::id_map::IdMap;

/// All that a process needs to become the thread that made the system call: descriptors, and ids of
/// its own user namespace. A worker stays outside of the caller's namespaces, and gets a
/// [`CallerHandle`](crate::operation::CallerHandle).
#[derive(Debug)]
pub struct WholeCaller {
    /// Its user namespace.
    pub users: OwnedFd,
    /// Its mount namespace.
    pub mounts: OwnedFd,
    /// Its other namespaces, each with its kind: pid, network, ipc, uts, cgroup, time.
    pub others: Vec<(i32, OwnedFd)>,
    /// Its root, `O_PATH`.
    pub root: OwnedFd,
    /// Its working directory, `O_PATH`.
    pub folder: OwnedFd,
    /// Its `/proc/<tid>/environ`, which stays with the memory that it had when this was opened.
    pub environment: Option<OwnedFd>,
    /// `cgroup.procs` of its control groups, open for writing.
    pub groups: Vec<OwnedFd>,
    /// What is not a descriptor.
    pub facts: Facts,
}

/// `uid_map` and `gid_map` of a caller's user namespace.
#[derive(Debug)]
pub struct IdMaps {
    /// `uid_map`.
    pub users: IdMap,
    /// `gid_map`.
    pub groups: IdMap,
}

/// The attributes of a caller that its `/proc/<tid>` shows as text.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Facts {
    /// Effective user and group, as ids of its own user namespace.
    pub ids: (u32, u32),
    /// Supplementary groups, as ids of its own user namespace.
    pub supplementary: Vec<u32>,
    /// The effective capabilities.
    pub effective: u64,
    /// The capability bounding set.
    pub bounding: u64,
    /// Set if execve(2) grants no privileges (`PR_SET_NO_NEW_PRIVS`).
    pub no_new_privs: bool,
    /// The file mode creation mask, umask(2).
    pub umask: u32,
    /// The AppArmor profile that confines it.
    pub label: Option<String>,
    /// Resource limits: number, soft, hard.
    pub limits: Vec<(i32, u64, u64)>,
    /// `oom_score_adj`, -1000 to 1000.
    pub oom_score: i32,
}

impl WholeCaller {
    /// Enters the control groups alone: resources used from here on are charged to the container.
    pub(super) fn enter_groups(&self) -> Result<(), Error> {
        for group in &self.groups {
            let entered = rustix::io::write(group, b"0");
            entered.context("write to the caller's cgroup.procs").mark_untried()?;
        }
        Ok(())
    }

    /// Enters all namespaces but the mount namespace. From here on this process has all
    /// capabilities in the container's user namespace and none over the host, and still sees the
    /// host's files. Its children are in the caller's pid namespace.
    pub(super) fn enter_users(&self) -> Result<(), Error> {
        // A user namespace that its user made itself may forbid setgroups(2) (user_namespaces(7)).
        let entered = rustix::thread::set_thread_groups(&[])
            .context("setgroups")
            .and_then(|()| self.enter_others())
            .and_then(|()| self.enter_user_namespace());
        entered.mark_untried()
    }

    /// Enters the user namespace. Fails for that of this process.
    pub(super) fn enter_user_namespace(&self) -> Result<(), Error> {
        setns(&self.users, CloneFlags::CLONE_NEWUSER).context("setns to the caller's users")
    }

    /// Enters all namespaces but those of users and mounts.
    pub(super) fn enter_others(&self) -> Result<(), Error> {
        // The container can see this process in its pid namespace. It must not open the
        // `/proc/<pid>` files, because this process has descriptors of the host. execve(2) makes it
        // dumpable again.
        rustix::process::set_dumpable_behavior(rustix::process::DumpableBehavior::NotDumpable)
            .context("prctl(PR_SET_DUMPABLE)")?;
        // Before the user namespace: some namespaces may belong to the host or to a pod.
        for (kind, namespace) in &self.others {
            let kind = CloneFlags::from_bits_retain(*kind);
            setns(namespace, kind).context(format!("setns to the caller's {kind:?}"))?;
        }
        Ok(())
    }

    /// Enters the control groups and the mount namespace, and assumes ids, root, working directory
    /// and capabilities. [`WholeCaller::enter_users`] comes first. For a process that needs a device
    /// before, which the container's device policy may not allow; others enter the groups first.
    pub(super) fn enter(&self) -> Result<(), Error> {
        self.enter_groups()?;
        self.enter_within_groups()
    }

    /// The same for a process that has entered the control groups.
    pub(super) fn enter_within_groups(&self) -> Result<(), Error> {
        self.enter_mounts().and_then(|()| self.become_caller()).mark_untried()
    }

    /// The same as [`WholeCaller::enter`] in a mount namespace without mounts: root and folder are the
    /// caller's, and this process keeps no mount but these two.
    pub(super) fn enter_without_mounts(&self) -> Result<(), Error> {
        self.enter_groups()?;
        let entered = self.enter_mounts().and_then(|()| leave_mounts());
        entered.and_then(|()| self.become_caller()).mark_untried()
    }

    fn enter_mounts(&self) -> Result<(), Error> {
        // A low `oom_score_adj` of the daemon must not protect a process that works for a
        // container. Errors are ignored: lowering the value needs CAP_SYS_RESOURCE, which may be
        // missing.
        let _ = std::fs::write("/proc/self/oom_score_adj", self.facts.oom_score.to_string());
        // Fails if the mount namespace does not belong to this user namespace. The caller may not
        // mount then either.
        setns(&self.mounts, CloneFlags::CLONE_NEWNS).context("setns to the caller's mounts")
    }

    fn become_caller(&self) -> Result<(), Error> {
        self.set_ids()?;
        // The root may not answer.
        die_with_parent();
        self.enter_folders()?;
        self.drop_capabilities()
    }

    /// Enters root and working directory. The ids must be the caller's already: chdir(2) to a FUSE
    /// filesystem fails with EOVERFLOW for ids that its user namespace does not map.
    fn enter_folders(&self) -> Result<(), Error> {
        rustix::process::fchdir(&self.root).context("fchdir to the caller's root")?;
        rustix::process::chroot(".").context("chroot to the caller's root")?;
        rustix::process::fchdir(&self.folder).context("fchdir to the caller's folder")?;
        rustix::process::umask(rustix::fs::Mode::from_raw_mode(self.facts.umask));
        Ok(())
    }

    /// Assumes the caller's ids and keeps all capabilities in the container's user namespace.
    fn set_ids(&self) -> Result<(), Error> {
        let groups: Vec<_> = self.facts.supplementary.iter().map(|&id| Gid::from_raw(id)).collect();
        // enter_users() has dropped those of this process.
        if !groups.is_empty() {
            rustix::thread::set_thread_groups(&groups).context("setgroups")?;
        }
        let (uid, gid) = (Uid::from_raw(self.facts.ids.0), Gid::from_raw(self.facts.ids.1));
        rustix::thread::set_keep_capabilities(true).context("prctl(PR_SET_KEEPCAPS)")?;
        rustix::thread::set_thread_res_gid(gid, gid, gid).context("setresgid")?;
        rustix::thread::set_thread_res_uid(uid, uid, uid).context("setresuid")?;
        // setresuid(2) clears the effective set.
        let all = rustix::thread::capabilities(None).context("capget")?;
        let all = CapabilitySets { effective: all.permitted, ..all };
        rustix::thread::set_capabilities(None, all).context("capset")
    }

    /// Drops all capabilities that the caller does not have.
    fn drop_capabilities(&self) -> Result<(), Error> {
        let [bounding, effective] = [self.facts.bounding, self.facts.effective];
        // EPERM: without CAP_SETPCAP.
        let _ = limit_bounding_set(CapabilitySet::from_bits_retain(bounding));
        limit_permitted(CapabilitySet::from_bits_retain(effective)).context("capset")?;
        if self.facts.no_new_privs {
            rustix::thread::set_no_new_privs(true).context("prctl(PR_SET_NO_NEW_PRIVS)")?;
        }
        die_with_parent();
        Ok(())
    }

    /// Sets the caller's resource limits, for a program that is executed next. A hard limit above
    /// the one of this process is lowered to that.
    pub(super) fn set_limits(&self) {
        for &(number, soft, hard) in &self.facts.limits {
            let Some(resource) = RESOURCES.iter().find(|&&one| one as i32 == number) else {
                continue;
            };
            let ours = getrlimit(*resource).map_or(hard, |(_, ours)| ours);
            let hard = hard.min(ours);
            let _ = setrlimit(*resource, soft.min(hard), hard);
        }
    }

    pub(super) fn users(&self) -> impl AsFd + '_ {
        self.users.as_fd()
    }
}

/// All limits of setrlimit(2).
const RESOURCES: [Resource; 16] = [
    Resource::RLIMIT_AS,
    Resource::RLIMIT_CORE,
    Resource::RLIMIT_CPU,
    Resource::RLIMIT_DATA,
    Resource::RLIMIT_FSIZE,
    Resource::RLIMIT_LOCKS,
    Resource::RLIMIT_MEMLOCK,
    Resource::RLIMIT_MSGQUEUE,
    Resource::RLIMIT_NICE,
    Resource::RLIMIT_NOFILE,
    Resource::RLIMIT_NPROC,
    Resource::RLIMIT_RSS,
    Resource::RLIMIT_RTPRIO,
    Resource::RLIMIT_RTTIME,
    Resource::RLIMIT_SIGPENDING,
    Resource::RLIMIT_STACK,
];
