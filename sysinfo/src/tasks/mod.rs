//! Counts the threads of a container: running, blocked, in I/O wait, and in total.
//!
//! For cgroup v1 the kernel counts (`cgroupstats` over netlink, a few microseconds for each
//! cgroup), but its columns leave out threads in killable sleep (FUSE, NFS, a parent in vfork) and,
//! since Linux 6.1, most sleeping threads. If the columns do not add up to all threads, and on v2,
//! the state of each thread is read; of very many threads, that of a part. Sub-cgroups of any depth
//! count. Start reading at [`Counter::count_shared`].

mod cgroupstats;

use std::collections::HashMap;
use std::os::fd::{AsFd, AsRawFd, OwnedFd};
use std::sync::Mutex;

use ambit_kernel::lock;
use ambit_kernel::text::{scan, stat};
use rustix::fs::{Dir, Mode, OFlags};

use crate::KernelFiles;
use crate::clock;
use crate::hierarchy::{Controller, Hierarchies, Mount};
use crate::membership::Membership;

use cgroupstats::Cgroupstats;

/// Bounds the recursion: a hostile container can nest cgroups deeper.
const DEEPEST: usize = 128;

/// Most thread states read for one count; each takes a few microseconds. Of more threads every
/// second, third and so on is read and stands for the others, with another offset for each count.
const MOST_READ: usize = 8192;

/// Nanoseconds for which a count is used for other containers of the same cgroup. Nested pid
/// namespaces are in the same cgroup: without this, n of them would count the threads of all n for
/// n times.
const SHARED_FOR: u64 = 1_000_000_000;

/// Counts of the last second by cgroup.
#[derive(Debug, Default)]
pub(crate) struct RecentCounts(Mutex<Recent>);

#[derive(Debug, Default)]
struct Recent {
    counts: HashMap<String, (u64, Counts)>,
    /// When old counts were last removed.
    swept: u64,
}

impl RecentCounts {
    fn get(&self, cgroup: &str, now: u64) -> Option<Counts> {
        let recent = lock(&self.0);
        let &(when, counts) = recent.counts.get(cgroup)?;
        (now.saturating_sub(when) < SHARED_FOR).then_some(counts)
    }

    fn put(&self, cgroup: &str, now: u64, new: Counts) {
        let mut recent = lock(&self.0);
        if now.saturating_sub(recent.swept) >= SHARED_FOR {
            recent.forget_old(now);
        }
        recent.counts.insert(cgroup.to_owned(), (now, new));
    }

    /// Frees the memory of old counts.
    pub(crate) fn trim(&self, now: u64) {
        lock(&self.0).forget_old(now);
    }
}

impl Recent {
    fn forget_old(&mut self, now: u64) {
        self.counts.retain(|_, (when, _)| now.saturating_sub(*when) < SHARED_FOR);
        self.counts.shrink_to_fit();
        self.swept = now;
    }
}

/// Threads of one container at one instant.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub(crate) struct Counts {
    /// Runnable.
    pub(crate) running: u64,
    /// In uninterruptible sleep, killable or not: these count for load averages.
    pub(crate) blocked: u64,
    /// In I/O wait, as far as that can be known: the kernel's `nr_iowait`.
    pub(crate) in_iowait: u64,
    /// In any state.
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

/// A count in progress.
struct Count<'a> {
    hierarchies: &'a Hierarchies,
    proc: &'a KernelFiles,
    legacy: bool,
    counts: Counts,
    /// Threads whose states must be read. If the kernel has counted the running threads of their
    /// cgroup, only blocked ones are counted.
    unknown: Vec<(u32, Running)>,
    /// Threads that are in I/O wait, or can be, by the kernel's columns.
    reported_iowait: u64,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Running {
    Counted,
    NotCounted,
}

impl Counter {
    /// Opens the netlink socket, if the kernel has the family.
    pub(crate) fn new() -> Self {
        let stats = Cgroupstats::open()
            .inspect_err(|error| tracing::debug!(%error, "no cgroupstats: reading each thread"));
        Self { stats: stats.ok(), text: Vec::new() }
    }

    /// Counts the threads of a container, or returns the count of its cgroup of the last second. A
    /// container without a cgroup of its own has none. `round` must differ from that of the last
    /// count.
    pub(crate) fn count_shared(
        &mut self,
        (hierarchies, proc, counted): (&Hierarchies, &KernelFiles, &RecentCounts),
        membership: &Membership,
        round: usize,
    ) -> Counts {
        let Some((mount, cgroup, _)) = cgroup_to_count(hierarchies, membership) else {
            return Counts::default();
        };
        // The same path is another cgroup in another hierarchy.
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
        // A blocked thread need not wait for I/O: it can wait for its child, a lock or a server.
        // The count is at most that of the machine.
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
        // A cgroup directory has two links and one for each child.
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

    /// True for a thread stopped by the freezer of cgroup v1: it has state D in `/proc/<tid>/stat`
    /// (`__task_state_index` in include/linux/sched.h) but is no load.
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

/// Returns the cgroup to count in. v1 is preferred, because the kernel counts there. The root is
/// never used: it holds threads of no container.
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

/// Most processes that [`processes_of`] returns.
const MOST_LISTED: usize = 512;

/// Returns processes of a cgroup without its children.
pub(crate) fn processes_of(hierarchies: &Hierarchies, membership: &Membership) -> Vec<u32> {
    let Some((mount, cgroup, _)) = cgroup_to_count(hierarchies, membership) else {
        return Vec::new();
    };
    let Ok(dir) = open_dir(mount.root(), cgroup) else { return Vec::new() };
    let mut text = Vec::new();
    let _ = crate::kernel_file::read_to_end(dir.as_fd(), "cgroup.procs", &mut text);
    let pids = scan::lines(&text).filter_map(scan::decimal).take(MOST_LISTED);
    pids.filter_map(|pid| u32::try_from(pid).ok()).collect()
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

    /// 50,000 threads in cgroups of 64 levels. All are counted, and only their own states are read.
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
        // The other threads have ended.
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
        // A part of the threads is read in each round; after this many rounds each was read once.
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
    fn frozen_threads_are_not_blocked_and_iowait_is_at_most_the_machines() {
        let root = tempfile::tempdir().unwrap();
        let write = |path: &str, text: &str| crate::fixture::write(root.path(), path, text);
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
    fn a_count_is_used_for_its_cgroup_for_a_second() {
        let recent = RecentCounts::default();
        let counts = Counts { threads: 3, ..Counts::default() };
        recent.put("/a", 5, counts);
        assert_eq!(recent.get("/a", 5 + SHARED_FOR - 1), Some(counts));
        assert_eq!(recent.get("/a", 5 + SHARED_FOR), None);
        assert_eq!(recent.get("/b", 5), None);
        recent.put("/b", 5 + SHARED_FOR, counts);
        assert_eq!(recent.0.lock().unwrap().counts.len(), 1);
    }
}
