//! How many threads of a container run, wait in the kernel, and exist.
//!
//! cgroup v1 counts by itself (`cgroupstats` over netlink, a few microseconds a cgroup), but its
//! columns leave out threads in killable sleep (FUSE, NFS, a parent in vfork) and, since Linux 6.1,
//! most that sleep. Where the columns do not tell of all threads, and on v2, the state of each
//! thread is read, of very many threads that of a part. Sub-cgroups count, however deep.

mod cgroupstats;

use std::collections::HashMap;
use std::os::fd::{AsFd, AsRawFd, OwnedFd};
use std::sync::{Mutex, PoisonError};

use ambit_kernel::text::{scan, stat};
use rustix::fs::{Dir, Mode, OFlags};

use crate::KernelFiles;
use crate::clock;
use crate::context::Context;
use crate::hierarchy::{Controller, Hierarchies, Mount};
use crate::membership::Membership;

use cgroupstats::Cgroupstats;

/// Containers do not nest deeper; a directory loop cannot exist, a hostile depth can.
const DEEPEST: usize = 128;

/// States that are read for one count at most, a few microseconds each. Of more threads one in two,
/// in three and so on stands for all, each time another one.
const MOST_READ: usize = 8192;

/// How long a count holds for other containers of the same cgroup, in nanoseconds. Pid namespaces
/// share the cgroup that they were made in: without this, n of them there would have the threads
/// of all n looked at n times.
const SHARED_FOR: u64 = 1_000_000_000;

/// Counts of the last second by cgroup.
#[derive(Debug, Default)]
pub(crate) struct RecentCounts(Mutex<HashMap<String, (u64, Counts)>>);

impl RecentCounts {
    fn get(&self, cgroup: &str, now: u64) -> Option<Counts> {
        let counts = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        let &(when, counts) = counts.get(cgroup)?;
        (now.saturating_sub(when) < SHARED_FOR).then_some(counts)
    }

    fn put(&self, cgroup: &str, now: u64, new: Counts) {
        let mut counts = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        counts.retain(|_, (when, _)| now.saturating_sub(*when) < SHARED_FOR);
        counts.insert(cgroup.to_owned(), (now, new));
    }
}

/// Threads of one container at one instant.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub(crate) struct Counts {
    /// Runnable.
    pub(crate) running: u64,
    /// In uninterruptible sleep, killable or not: these count for load averages.
    pub(crate) blocked: u64,
    /// Waiting for input or output, as far as that can be told: the kernel's `nr_iowait`.
    pub(crate) in_iowait: u64,
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

/// What is counted, and how.
struct Count<'a> {
    hierarchies: &'a Hierarchies,
    proc: &'a KernelFiles,
    legacy: bool,
    counts: Counts,
    /// Threads whose states are to be read; of those that are not running only, where the kernel
    /// counted the running ones.
    unknown: Vec<(u32, Running)>,
    /// Threads that the kernel says are, or can be, waiting for input or output.
    reported_iowait: u64,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Running {
    Counted,
    NotCounted,
}

impl Counter {
    /// Opens what counting needs.
    #[must_use]
    pub(crate) fn new() -> Self {
        let stats = Cgroupstats::open()
            .inspect_err(|error| tracing::debug!(%error, "no cgroupstats: reading each thread"));
        Self { stats: stats.ok(), text: Vec::new() }
    }

    /// Counts the threads of a container, unless those of its cgroup were counted within a second;
    /// none when it has no cgroup of its own. `turn` is another one each time.
    pub(crate) fn count_shared(
        &mut self,
        context: &Context,
        membership: &Membership,
        round: usize,
    ) -> Counts {
        let Context { hierarchies, proc, counted, .. } = context;
        let Some((mount, cgroup, _)) = cgroup_to_count(hierarchies, membership) else {
            return Counts::default();
        };
        // The same path can be another cgroup in another hierarchy.
        let cgroup = format!("{} {cgroup}", mount.root().as_raw_fd());
        let now = clock::awake();
        counted.get(&cgroup, now).unwrap_or_else(|| {
            let counts = self.count(hierarchies, membership, proc, round);
            counted.put(&cgroup, now, counts);
            counts
        })
    }

    fn count(
        &mut self,
        hierarchies: &Hierarchies,
        membership: &Membership,
        proc: &KernelFiles,
        round: usize,
    ) -> Counts {
        let Some((mount, cgroup, legacy)) = cgroup_to_count(hierarchies, membership) else {
            return Counts::default();
        };
        let Ok(dir) = open_dir(mount.root(), cgroup) else { return Counts::default() };
        let counts = Counts::default();
        let mut count =
            Count { hierarchies, proc, legacy, counts, unknown: Vec::new(), reported_iowait: 0 };
        self.walk(&dir, &mut count, 0);
        self.read_states(&mut count, round);
        let mut counts = count.counts;
        // A thread that is blocked need not wait for a disk: its parent, a lock, a server can be
        // what it waits for. No container has more that do than the machine.
        let told = legacy && self.stats.is_some();
        let most = if told { count.reported_iowait } else { counts.blocked };
        counts.in_iowait = if most == 0 { 0 } else { most.min(self.machine_iowait(proc)) };
        counts
    }

    fn walk(&mut self, dir: &OwnedFd, count: &mut Count<'_>, depth: usize) {
        let list = if count.legacy { "tasks" } else { "cgroup.threads" };
        self.text.clear();
        let _ = crate::kernel_file::read_to_end(dir.as_fd(), list, &mut self.text);
        let tids = || scan::lines(&self.text).filter_map(scan::decimal);
        let threads = tids().count() as u64;
        let told = match &mut self.stats {
            Some(stats) if count.legacy && threads > 0 => stats.count(dir.as_fd()).ok(),
            _ => None,
        };
        let running = told.map_or(Running::NotCounted, |_| Running::Counted);
        if let Some(told) = told {
            count.counts.running = count.counts.running.saturating_add(told.running);
            let iowait = told.uninterruptible.saturating_add(told.io_wait);
            count.reported_iowait = count.reported_iowait.saturating_add(iowait);
        }
        count.counts.threads = count.counts.threads.saturating_add(threads);
        if told.is_none_or(|told| told.at_rest_or_running() < threads) {
            let tids = tids().filter_map(|tid| u32::try_from(tid).ok());
            count.unknown.extend(tids.map(|tid| (tid, running)));
        }
        self.text.clear();
        if crate::kernel_file::read_to_end(dir.as_fd(), "cgroup.procs", &mut self.text).is_ok() {
            let newest = scan::lines(&self.text).filter_map(scan::decimal).max();
            let newest = newest.and_then(|pid| u32::try_from(pid).ok());
            count.counts.newest = count.counts.newest.max(newest);
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
                self.walk(&child, count, depth + 1);
            }
        }
    }

    fn read_states(&mut self, count: &mut Count<'_>, round: usize) {
        let step = count.unknown.len().div_ceil(MOST_READ).max(1);
        let stands_for = step as u64;
        for &(tid, running) in count.unknown.iter().skip(round % step).step_by(step) {
            match count.proc.read_of(tid, "stat", &mut self.text).ok().and_then(stat::state) {
                Some(b'R') if running == Running::NotCounted => count.counts.running += stands_for,
                Some(b'D') if !self.is_frozen(tid, count) => count.counts.blocked += stands_for,
                _ => {}
            }
        }
    }

    /// True for a thread that the freezer of cgroup v1 stopped: it looks blocked in
    /// `/proc/<tid>/stat` (`__task_state_index` in include/linux/sched.h), and is no load.
    fn is_frozen(&mut self, tid: u32, count: &Count<'_>) -> bool {
        let Some(mount) = &count.hierarchies.freezer else { return false };
        let Ok(text) = count.proc.read_of(tid, "cgroup", &mut self.text) else { return false };
        let membership = Membership::parse(text);
        let Some(cgroup) = membership.legacy_named("freezer") else { return false };
        let Some(cgroup) = mount.relative(cgroup).filter(|cgroup| !cgroup.is_empty()) else {
            return false;
        };
        self.text.clear();
        let file = format!("{cgroup}/freezer.state");
        crate::kernel_file::read_to_end(mount.root(), &file, &mut self.text).is_ok()
            && !self.text.starts_with(b"THAWED")
    }

    /// `procs_blocked` of the machine.
    fn machine_iowait(&mut self, proc: &KernelFiles) -> u64 {
        self.text.clear();
        if proc.read("stat", &mut self.text).is_err() {
            return u64::MAX;
        }
        let line = scan::pairs(&self.text).find(|(key, _)| *key == b"procs_blocked");
        line.map_or(u64::MAX, |(_, count)| count)
    }
}

/// The cgroup to count in: v1 first, because the kernel counts there, and never the root, which
/// holds what belongs to no container.
fn cgroup_to_count<'a>(
    hierarchies: &'a Hierarchies,
    membership: &'a Membership,
) -> Option<(&'a Mount, &'a str, bool)> {
    let legacy = Controller::ALL.into_iter().filter_map(|controller| {
        let (mount, cgroup) = hierarchies.legacy_cgroup(controller, membership)?;
        Some((mount, cgroup, true))
    });
    let unified =
        hierarchies.unified_cgroup(membership).map(|(mount, cgroup)| (mount, cgroup, false));
    legacy.chain(unified).find(|(_, cgroup, _)| !cgroup.is_empty())
}

fn open_dir(parent: std::os::fd::BorrowedFd<'_>, path: &str) -> rustix::io::Result<OwnedFd> {
    let flags = OFlags::RDONLY | OFlags::DIRECTORY | OFlags::CLOEXEC | OFlags::NOFOLLOW;
    rustix::fs::openat(parent, path, flags, Mode::empty())
}

#[cfg(any(test, feature = "fuzzing"))]
pub(crate) fn parse(text: &[u8]) {
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
        let proc = KernelFiles::at(&root.path().join("proc")).unwrap();
        let mut counter = Counter { stats: None, text: Vec::new() };
        let membership = Membership::parse(b"0::/c\n");
        // A part of the threads is looked at each time: after so many times each of them was.
        let rounds = (THREADS as usize).div_ceil(MOST_READ);
        let (mut running, mut blocked) = (0, 0);
        for round in 0..rounds {
            let counts = counter.count(&hierarchies, &membership, &proc, round);
            assert_eq!((counts.threads, counts.newest), (THREADS.into(), Some(THREADS)));
            (running, blocked) = (running + counts.running, blocked + counts.blocked);
        }
        assert_eq!((running / rounds as u64, blocked / rounds as u64), (2, 1));
    }

    /// A cgroup v1 container of plain files: three blocked threads, one of which is frozen.
    #[test]
    fn frozen_threads_are_not_blocked_and_no_container_waits_more_than_the_machine() {
        let root = tempfile::tempdir().unwrap();
        let write = |path: &str, text: &str| {
            let path = root.path().join(path);
            std::fs::create_dir_all(path.parent().unwrap()).unwrap();
            std::fs::write(path, text).unwrap();
        };
        write("c/pids/c/tasks", "1\n2\n3\n4\n");
        write("c/pids/c/cgroup.procs", "1\n");
        for (tid, state, freezer) in [(1, 'R', "c"), (2, 'D', "c"), (3, 'D', "c"), (4, 'D', "c/f")]
        {
            write(&format!("proc/{tid}/stat"), &format!("{tid} (x) {state} 1 1\n"));
            write(&format!("proc/{tid}/cgroup"), &format!("5:freezer:/{freezer}\n4:pids:/c\n"));
        }
        write("c/freezer/c/freezer.state", "THAWED\n");
        write("c/freezer/c/f/freezer.state", "FROZEN\n");
        let mounts = b"30 1 0:1 / /c/pids rw - cgroup cgroup rw,pids\n\
                       31 1 0:2 / /c/freezer rw - cgroup cgroup rw,freezer\n";
        let hierarchies = Hierarchies::from_mountinfo(mounts, root.path()).unwrap();
        let proc = KernelFiles::at(&root.path().join("proc")).unwrap();
        let mut counter = Counter { stats: None, text: Vec::new() };
        for (machine, in_iowait) in [(0, 0), (1, 1), (9, 2)] {
            write("proc/stat", &format!("cpu 1 2 3\nprocs_running 1\nprocs_blocked {machine}\n"));
            let membership = Membership::parse(b"4:pids:/c\n");
            let counts = counter.count(&hierarchies, &membership, &proc, 0);
            let wanted = Counts { running: 1, blocked: 2, in_iowait, threads: 4, newest: Some(1) };
            assert_eq!(counts, wanted);
        }
    }

    #[test]
    fn a_count_holds_for_its_cgroup_and_for_a_second() {
        let recent = RecentCounts::default();
        let counts = Counts { threads: 3, ..Counts::default() };
        recent.put("/a", 5, counts);
        assert_eq!(recent.get("/a", 5 + SHARED_FOR - 1), Some(counts));
        assert_eq!(recent.get("/a", 5 + SHARED_FOR), None);
        assert_eq!(recent.get("/b", 5), None);
        recent.put("/b", 5 + SHARED_FOR, counts);
        assert_eq!(recent.0.lock().unwrap().len(), 1);
    }
}
