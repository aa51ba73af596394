//! Reads a caller from its `/proc/<tid>` while it waits in its system call.
//!
//! The thread id may have been reused, so code that calls [`WholeCaller::pin`] must check afterwards
//! that the caller still waits. Only then the result describes the caller. Paths of
//! `/proc/<tid>/cgroup` are looked up below the mount points of the hierarchies on the host.

use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::path::PathBuf;

use ambit_kernel::text::id_map::IdMap;
use ambit_kernel::text::mountinfo;
use ambit_kernel::text::status::{Credentials, Status};
use ambit_kernel::text::{self, control_groups, limits, profile};
use nix::sched::CloneFlags;
use rustix::fs::{CWD, Mode, OFlags};
use rustix::io::Errno;

use super::caller::{Facts, IdMaps, WholeCaller};
use super::error::{Context, Error, MarkUntried};

/// All namespaces besides user and mount, in an order in which they can be entered. An older kernel
/// lacks some.
const OTHERS: [(&str, i32); 6] = [
    ("ns/pid", CloneFlags::CLONE_NEWPID.bits()),
    ("ns/net", CloneFlags::CLONE_NEWNET.bits()),
    ("ns/ipc", CloneFlags::CLONE_NEWIPC.bits()),
    ("ns/uts", CloneFlags::CLONE_NEWUTS.bits()),
    ("ns/cgroup", CloneFlags::CLONE_NEWCGROUP.bits()),
    ("ns/time", 0x80),
];

impl WholeCaller {
    /// Opens what [`WholeCaller`] has and reads the id maps. `proc` is the caller's `/proc/<tid>`.
    pub fn pin(proc: BorrowedFd<'_>) -> Result<(Self, IdMaps), Error> {
        Self::read(proc).mark_untried()
    }

    fn read(proc: BorrowedFd<'_>) -> Result<(Self, IdMaps), Error> {
        let open = |name: &str, flags: OFlags| {
            rustix::fs::openat(proc, name, flags | OFlags::CLOEXEC, Mode::empty())
        };
        let text = |name: &str| text::read(proc, name).context(format!("read of {name}"));
        let status = text("status")?;
        let status = Status(&status);
        let gone = || Error::new(Errno::SRCH, "the caller has ended");
        let Credentials { umask, groups, effective, .. } =
            Credentials::of(status).ok_or_else(gone)?;
        let users = IdMap::parse(&text("uid_map")?);
        let maps = IdMaps { users, groups: IdMap::parse(&text("gid_map")?) };
        let unmapped = || Error::new(Errno::PERM, "an id of the caller is not mapped");
        // The order is real, effective, saved, filesystem.
        let inside = |map: &IdMap, label: &str| {
            status.numbers(label).nth(1).and_then(|id| map.inside(id)).ok_or_else(unmapped)
        };
        let mut others = Vec::new();
        for (name, kind) in OTHERS {
            match open(name, OFlags::RDONLY) {
                Ok(namespace) => others.push((kind, namespace)),
                Err(Errno::NOENT) => {}
                Err(errno) => return Err(errno).context(format!("open of {name}")),
            }
        }
        let caller = Self {
            users: open("ns/user", OFlags::RDONLY).context("open of ns/user")?,
            mounts: open("ns/mnt", OFlags::RDONLY).context("open of ns/mnt")?,
            others,
            root: open("root", OFlags::PATH).context("open of root")?,
            folder: open("cwd", OFlags::PATH).context("open of cwd")?,
            // Errors are ignored: a helper then has no environment.
            environment: open("environ", OFlags::RDONLY).ok(),
            groups: control_groups(&text("cgroup")?)?,
            facts: Facts {
                ids: (inside(&maps.users, "Uid:")?, inside(&maps.groups, "Gid:")?),
                supplementary: groups.into_iter().filter_map(|id| maps.groups.inside(id)).collect(),
                effective,
                bounding: status.radix("CapBnd:", 16).unwrap_or(0),
                no_new_privs: status.numbers("NoNewPrivs:").next() == Some(1),
                umask: umask.unwrap_or(0o022),
                label: text("attr/apparmor/current").ok().and_then(|text| profile::parse(&text)),
                limits: limits::parse(&text("limits")?),
                oom_score: text::numbers(&text("oom_score_adj")?).next().unwrap_or(0),
            },
        };
        Ok((caller, maps))
    }
}

impl WholeCaller {
    /// Replaces the control groups by those that the first process of the caller's pid namespace is
    /// in now. A program that outlives the caller belongs there: a service manager ends what is left
    /// in the caller's own. Without that process in reach they stay the caller's.
    pub fn use_groups_of_init(&mut self, tid: u32) {
        let groups = self.init_above(tid).and_then(|init| {
            let text = text::read(init.as_fd(), "cgroup").ok()?;
            control_groups(&text).ok()
        });
        if let Some(groups) = groups.filter(|groups| !groups.is_empty()) {
            self.groups = groups;
        }
    }

    /// Opens the `/proc/<pid>` of the first process of the caller's pid namespace, which is an
    /// ancestor of its processes.
    fn init_above(&self, tid: u32) -> Option<OwnedFd> {
        let kind = CloneFlags::CLONE_NEWPID.bits();
        let (_, own) = self.others.iter().find(|(one, _)| *one == kind)?;
        let own = rustix::fs::fstat(own).ok()?.st_ino;
        let mut pid = tid;
        // 1000 generations are many.
        for _ in 0..1000 {
            let flags = OFlags::PATH | OFlags::DIRECTORY | OFlags::CLOEXEC;
            let proc = rustix::fs::openat(CWD, format!("/proc/{pid}"), flags, Mode::empty());
            let proc = proc.ok()?;
            let status = text::read(proc.as_fd(), "status").ok()?;
            let status = Status(&status);
            if status.numbers("NSpid:").last() == Some(1) {
                let flags = rustix::fs::AtFlags::empty();
                let namespace = rustix::fs::statat(&proc, "ns/pid", flags).ok()?.st_ino;
                return (namespace == own).then_some(proc);
            }
            pid = status.numbers("PPid:").next().filter(|&parent| parent != 0)?;
        }
        None
    }
}

/// Opens `cgroup.procs` of each control group for writing. `text` is the content of
/// `/proc/<tid>/cgroup`.
pub(super) fn control_groups(text: &[u8]) -> Result<Vec<OwnedFd>, Error> {
    let mounts = mountinfo::own().context("mountinfo")?;
    let open = |folder: PathBuf| {
        let flags = OFlags::WRONLY | OFlags::CLOEXEC;
        let file = folder.join("cgroup.procs");
        let opened = rustix::fs::openat(CWD, &file, flags, Mode::empty());
        opened.context(format!("open of {}", file.display()))
    };
    control_groups::folders(&mounts, text).map(open).collect()
}

/// Returns the path of the root control group of cgroup v2.
pub(super) fn top_of_cgroup2() -> Option<PathBuf> {
    control_groups::folders(&mountinfo::own().ok()?, b"0::/").next()
}
