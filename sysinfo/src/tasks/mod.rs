//! How many threads of a container run, wait for disks, and exist.
//!
//! cgroup v1 counts by itself (`cgroupstats` over netlink, a few microseconds a cgroup). v2
//! does not: there the state of each thread is read, and only where the container has used
//! processor time since the last count. Sub-cgroups count, however deep.

mod cgroupstats;

use std::os::fd::{AsFd, OwnedFd};

use rustix::fs::{Dir, Mode, OFlags};

use crate::hierarchy::{Controller, Hierarchies, Mount};
use crate::membership::Membership;
use crate::procfs::Procfs;
use crate::scan;

use cgroupstats::Cgroupstats;

/// Containers do not nest deeper; a directory loop cannot exist, a hostile depth can.
const DEEPEST: usize = 128;

/// Threads of one container at one instant.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub(crate) struct Counts {
    /// Runnable.
    pub(crate) running: u64,
    /// In uninterruptible sleep.
    pub(crate) blocked: u64,
    /// All of them.
    pub(crate) threads: u64,
    /// The highest process id, in the daemon's numbering.
    pub(crate) newest: Option<u32>,
}

/// Counts threads; one per daemon.
#[derive(Debug)]
pub(crate) struct Counter {
    stats: Option<Cgroupstats>,
    text: Vec<u8>,
}

impl Counter {
    /// Opens what counting needs.
    #[must_use]
    pub(crate) fn new() -> Self {
        let stats = Cgroupstats::open()
            .inspect_err(|error| tracing::debug!(%error, "no cgroupstats: reading each thread"));
        Self { stats: stats.ok(), text: Vec::new() }
    }

    /// Can the kernel count the threads of this container, so that counting is cheap?
    #[must_use]
    pub(crate) fn is_cheap(&self, hierarchies: &Hierarchies, membership: &Membership) -> bool {
        self.stats.is_some() && place(hierarchies, membership).is_none_or(|(_, _, legacy)| legacy)
    }

    /// Counts the threads of a container; none when it has no cgroup of its own.
    pub(crate) fn count(
        &mut self,
        hierarchies: &Hierarchies,
        membership: &Membership,
        proc: &Procfs,
    ) -> Counts {
        let mut counts = Counts::default();
        if let Some((mount, cgroup, legacy)) = place(hierarchies, membership)
            && let Ok(dir) = open_dir(mount.root(), cgroup)
        {
            self.walk(&dir, legacy, proc, &mut counts, 0);
        }
        counts
    }

    fn walk(
        &mut self,
        dir: &OwnedFd,
        legacy: bool,
        proc: &Procfs,
        counts: &mut Counts,
        depth: usize,
    ) {
        let by_kernel = match &mut self.stats {
            Some(stats) if legacy => stats.of(dir.as_fd()).ok(),
            _ => None,
        };
        match by_kernel {
            Some(found) => {
                counts.running = counts.running.saturating_add(found.running);
                counts.blocked = counts.blocked.saturating_add(found.uninterruptible);
                counts.threads = counts.threads.saturating_add(found.all());
            }
            None => self.read_states(dir, legacy, proc, counts),
        }
        self.text.clear();
        if crate::kernel_file::read_to_end(dir.as_fd(), "cgroup.procs", &mut self.text).is_ok() {
            let newest = scan::lines(&self.text).filter_map(scan::decimal).max();
            counts.newest = counts.newest.max(newest.and_then(|pid| u32::try_from(pid).ok()));
        }
        // A directory of the cgroup file system has two links and one for each child.
        let childless = rustix::fs::fstat(dir).is_ok_and(|stat| stat.st_nlink <= 2);
        if childless || depth == DEEPEST {
            return;
        }
        let Ok(entries) = Dir::read_from(dir) else { return };
        for entry in entries.flatten() {
            if entry.file_type() == rustix::fs::FileType::Directory
                && !entry.file_name().to_bytes().starts_with(b".")
                && let Ok(name) = entry.file_name().to_str()
                && let Ok(child) = open_dir(dir.as_fd(), name)
            {
                self.walk(&child, legacy, proc, counts, depth + 1);
            }
        }
    }

    fn read_states(&mut self, dir: &OwnedFd, legacy: bool, proc: &Procfs, counts: &mut Counts) {
        let list = if legacy { "tasks" } else { "cgroup.threads" };
        let mut tids = Vec::new();
        if crate::kernel_file::read_to_end(dir.as_fd(), list, &mut tids).is_err() {
            return;
        }
        for tid in scan::lines(&tids).filter_map(scan::decimal) {
            let Ok(tid) = u32::try_from(tid) else { continue };
            counts.threads += 1;
            match proc.read_of(tid, "stat", &mut self.text).ok().and_then(state) {
                Some(b'R') => counts.running += 1,
                Some(b'D') => counts.blocked += 1,
                _ => {}
            }
        }
    }
}

impl Default for Counter {
    fn default() -> Self {
        Self::new()
    }
}

/// The cgroup to count in: v1 first, because the kernel counts there, and never the root, which
/// holds what belongs to no container.
fn place<'a>(
    hierarchies: &'a Hierarchies,
    membership: &'a Membership,
) -> Option<(&'a Mount, &'a str, bool)> {
    let legacy = Controller::ALL.into_iter().filter_map(|controller| {
        let mount = hierarchies.legacy_mount(controller)?;
        Some((mount, mount.relative(membership.legacy(controller)?)?, true))
    });
    let unified = hierarchies
        .unified
        .as_ref()
        .and_then(|(mount, _)| Some((mount, mount.relative(membership.unified()?)?, false)));
    legacy.chain(unified).find(|(_, cgroup, _)| !cgroup.is_empty())
}

fn open_dir(parent: std::os::fd::BorrowedFd<'_>, path: &str) -> rustix::io::Result<OwnedFd> {
    let flags = OFlags::RDONLY | OFlags::DIRECTORY | OFlags::CLOEXEC | OFlags::NOFOLLOW;
    rustix::fs::openat(parent, path, flags, Mode::empty())
}

/// The state letter of `/proc/<tid>/stat`: the field after the command name.
fn state(stat: &[u8]) -> Option<u8> {
    let close = memchr::memrchr(b')', stat)?;
    stat.get(close + 2).copied()
}

#[cfg(any(test, feature = "fuzzing"))]
pub(crate) fn parse(text: &[u8]) {
    let _ = state(text);
    cgroupstats::parse(text);
}

#[cfg(test)]
mod tests {
    use std::fmt::Write;

    use super::*;

    /// 50,000 threads in groups that lie 64 levels deep, none is lost; what is read of each is its
    /// own state and nothing of the rest of the machine.
    #[test]
    fn fifty_thousand_threads_are_counted_sixty_four_levels_deep() {
        const LEVELS: u32 = 64;
        const THREADS: u32 = 50_000;
        let root = tempfile::tempdir().unwrap();
        let mut folder = root.path().join("sys/fs/cgroup/c");
        for level in 0..LEVELS {
            std::fs::create_dir_all(&folder).unwrap();
            let mut list = String::new();
            for tid in (1..=THREADS).filter(|tid| tid % LEVELS == level) {
                writeln!(list, "{tid}").unwrap();
            }
            std::fs::write(folder.join("cgroup.threads"), &list).unwrap();
            std::fs::write(folder.join("cgroup.procs"), &list).unwrap();
            folder.push("deeper");
        }
        // The others ended meanwhile.
        for (tid, state) in [(1, 'R'), (2, 'D'), (63, 'R'), (THREADS, 'S')] {
            let folder = root.path().join(format!("proc/{tid}"));
            std::fs::create_dir_all(&folder).unwrap();
            std::fs::write(folder.join("stat"), format!("{tid} (x) {state} 1 1\n")).unwrap();
        }
        let mounts = b"30 1 0:26 / /sys/fs/cgroup rw - cgroup2 cgroup2 rw\n";
        let hierarchies = Hierarchies::from_mountinfo(mounts, root.path()).unwrap();
        let proc = Procfs::at(&root.path().join("proc")).unwrap();
        let mut counter = Counter { stats: None, text: Vec::new() };
        let counts = counter.count(&hierarchies, &Membership::parse(b"0::/c\n"), &proc);
        let wanted =
            Counts { running: 2, blocked: 1, threads: u64::from(THREADS), newest: Some(THREADS) };
        assert_eq!(counts, wanted);
    }

    #[test]
    fn the_state_stands_after_any_command_name() {
        assert_eq!(state(b"7 (a) R) D 1 2"), Some(b'D'));
        assert_eq!(state(b"7 (a"), None);
    }
}
