//! Becoming the caller: its control groups, namespaces, root, folder, ids and capabilities.
//!
//! Everything is entered by descriptors that were opened while the caller was known to wait, never
//! by a number or a path. What acts afterwards can do nothing that the caller could not do itself.
//! Where any of it fails, the kernel answers the call.

use std::os::fd::{AsFd, OwnedFd};

use nix::sched::{CloneFlags, setns};
use nix::sys::resource::{Resource, getrlimit, setrlimit};
use rustix::process::{Gid, Uid};
use rustix::thread::{CapabilitySet, CapabilitySets};
use serde::{Deserialize, Serialize};

use super::child::die_with_parent;
use super::failure::{Failure, OnOurSide, OrFail};
use ambit_kernel::text::id_map::IdMap;

/// The thread that called mount(2), as descriptors and numbers of its own user namespace.
#[derive(Debug)]
pub struct Caller {
    /// Its user namespace.
    pub users: OwnedFd,
    /// Its mount namespace.
    pub mounts: OwnedFd,
    /// Its other namespaces, each with its kind: pid, network, ipc, uts, cgroup, time.
    pub others: Vec<(i32, OwnedFd)>,
    /// Its root, `O_PATH`.
    pub root: OwnedFd,
    /// Its folder, `O_PATH`.
    pub folder: OwnedFd,
    /// `cgroup.procs` of its control groups, open for writing.
    pub groups: Vec<OwnedFd>,
    /// What can be written down.
    pub facts: Facts,
}

/// The maps of a caller's user namespace.
#[derive(Debug)]
pub struct IdMaps {
    /// Those of users.
    pub users: IdMap,
    /// Those of groups.
    pub groups: IdMap,
}

/// Numbers of a caller.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Facts {
    /// User and group, in its own namespace.
    pub ids: (u32, u32),
    /// Supplementary groups, in its own namespace.
    pub supplementary: Vec<u32>,
    /// Capabilities it can use, and those it can ever get.
    pub effective: u64,
    /// The bounding set.
    pub bounding: u64,
    /// Whether it can gain nothing by executing programs.
    pub no_new_privs: bool,
    /// The mask for modes of new files.
    pub umask: u32,
    /// The AppArmor profile that confines it.
    pub label: Option<String>,
    /// Resource limits: number, soft, hard.
    pub limits: Vec<(i32, u64, u64)>,
    /// How readily it is killed when memory is short, -1000 to 1000.
    pub oom_score: i32,
}

impl Caller {
    /// Enters its control groups alone: what is used from here on is the container's.
    pub(super) fn enter_groups(&self) -> Result<(), Failure> {
        for group in &self.groups {
            let entered = rustix::io::write(group, b"0");
            entered.or_fail("write to the caller's cgroup.procs").on_our_side()?;
        }
        Ok(())
    }

    /// Enters everything but the mount namespace: from here on this process has all capabilities,
    /// but over the container only, while it still sees the host's files. Its children are in the
    /// caller's pid namespace.
    pub(super) fn enter_users(&self) -> Result<(), Failure> {
        self.enter_namespaces().on_our_side()
    }

    fn enter_namespaces(&self) -> Result<(), Failure> {
        // From its pid namespace the container sees what acts for it, and may not look inside: there
        // are descriptors of the host. Executing a program ends this.
        rustix::process::set_dumpable_behavior(rustix::process::DumpableBehavior::NotDumpable)
            .or_fail("prctl(PR_SET_DUMPABLE)")?;
        // With the host's rights: some may be the host's own, or those of a pod.
        for (kind, namespace) in &self.others {
            let kind = CloneFlags::from_bits_retain(*kind);
            setns(namespace, kind).or_fail(format!("setns to the caller's {kind:?}"))?;
        }
        setns(&self.users, CloneFlags::CLONE_NEWUSER).or_fail("setns to the caller's users")
    }

    /// Enters the rest, its control groups among them.
    pub(super) fn enter(&self) -> Result<(), Failure> {
        // What the daemon was spared must not spare what acts for a container. To lower it needs a
        // capability that there may not be.
        let _ = std::fs::write("/proc/self/oom_score_adj", self.facts.oom_score.to_string());
        self.enter_groups()?;
        // Refused when the mount namespace is not one of this user namespace's: then the caller
        // may not mount either.
        setns(&self.mounts, CloneFlags::CLONE_NEWNS)
            .or_fail("setns to the caller's mounts")
            .on_our_side()?;
        self.take_ids().and_then(|()| self.enter_folders()).on_our_side()?;
        self.lay_down_rights().on_our_side()
    }

    /// Its root and folder. A FUSE filesystem asks for the ids of a process that enters one, and
    /// refuses those that its user namespace does not map (EOVERFLOW), so they are the caller's
    /// already.
    fn enter_folders(&self) -> Result<(), Failure> {
        rustix::process::fchdir(&self.root).or_fail("fchdir to the caller's root")?;
        rustix::process::chroot(".").or_fail("chroot to the caller's root")?;
        rustix::process::fchdir(&self.folder).or_fail("fchdir to the caller's folder")?;
        rustix::process::umask(rustix::fs::Mode::from_raw_mode(self.facts.umask));
        Ok(())
    }

    /// Its ids; all capabilities over the container are kept.
    fn take_ids(&self) -> Result<(), Failure> {
        let groups: Vec<_> = self.facts.supplementary.iter().map(|&id| Gid::from_raw(id)).collect();
        rustix::thread::set_thread_groups(&groups).or_fail("setgroups")?;
        let (uid, gid) = (Uid::from_raw(self.facts.ids.0), Gid::from_raw(self.facts.ids.1));
        rustix::thread::set_keep_capabilities(true).or_fail("prctl(PR_SET_KEEPCAPS)")?;
        rustix::thread::set_thread_res_gid(gid, gid, gid).or_fail("setresgid")?;
        rustix::thread::set_thread_res_uid(uid, uid, uid).or_fail("setresuid")?;
        // Those in force may have gone with the ids.
        let all = rustix::thread::capabilities(None).or_fail("capget")?;
        let all = CapabilitySets { effective: all.permitted, ..all };
        rustix::thread::set_capabilities(None, all).or_fail("capset")
    }

    /// No capability that it does not use.
    fn lay_down_rights(&self) -> Result<(), Failure> {
        let effective = CapabilitySet::from_bits_retain(self.facts.effective);
        for number in 0..64u64 {
            if self.facts.bounding >> number & 1 == 0 {
                let one = CapabilitySet::from_bits_retain(1 << number);
                if rustix::thread::remove_capability_from_bounding_set(one).is_err() {
                    break; // beyond the last one this kernel knows
                }
            }
        }
        let permitted = rustix::thread::capabilities(None).or_fail("capget")?.permitted & effective;
        let inheritable = CapabilitySet::empty();
        let sets = CapabilitySets { effective: permitted, permitted, inheritable };
        rustix::thread::set_capabilities(None, sets).or_fail("capset")?;
        if self.facts.no_new_privs {
            rustix::thread::set_no_new_privs(true).or_fail("prctl(PR_SET_NO_NEW_PRIVS)")?;
        }
        die_with_parent();
        Ok(())
    }

    /// Takes its resource limits, for a program that is to be executed. What would be more than
    /// we have ourselves stays at ours.
    pub(super) fn take_limits(&self) {
        for &(number, soft, hard) in &self.facts.limits {
            let Some(resource) = RESOURCES.iter().find(|&&one| one as i32 == number) else {
                continue;
            };
            let ours = getrlimit(*resource).map_or(hard, |(_, ours)| ours);
            let hard = hard.min(ours);
            let _ = setrlimit(*resource, soft.min(hard), hard);
        }
    }

    /// The user namespace, for mounts that are to be shifted to it.
    pub(super) fn users(&self) -> impl AsFd + '_ {
        self.users.as_fd()
    }
}

/// The limits that a program inherits.
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
