//! Accounting of containers in fixtures and on this machine.

use std::path::Path;

use std::os::unix::fs::FileExt;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};

use super::*;
use crate::account::Account;
use crate::container::{Identity, Init};

#[test]
fn this_thread_has_numbers_that_hold_together() {
    let accounting = Accounting::start(Options::default()).unwrap();
    let tid = u32::try_from(rustix::thread::gettid().as_raw_nonzero().get()).unwrap();
    let view = accounting.view(tid).unwrap();
    assert!(view.memory.total > 0 && view.memory.free <= view.memory.available);
    assert!(!view.cpu.online.is_empty());
    assert!(view.clock.uptime <= clock::now());
    assert_eq!(accounting.containers().len(), 1);
    assert!(matches!(accounting.view(u32::MAX), Err(Error::Gone(_))));
}

/// A cgroup2 hierarchy of plain files, with one cgroup of 64 MiB.
fn files(root: &Path) -> Hierarchies {
    let cgroup = root.join("sys/fs/cgroup/c");
    std::fs::create_dir_all(&cgroup).unwrap();
    let write = |file: &str, text: &str| std::fs::write(cgroup.join(file), text).unwrap();
    write("../cgroup.controllers", "cpuset cpu io memory pids\n");
    write("memory.current", "8388608\n");
    write("memory.max", "67108864\n");
    write("memory.stat", "anon 4194304\nfile 2097152\n");
    write("cpu.stat", "usage_usec 30\nuser_usec 20\nsystem_usec 10\n");
    write("pids.current", "3\n");
    let mounts = b"30 1 0:26 / /sys/fs/cgroup rw - cgroup2 cgroup2 rw\n";
    Hierarchies::from_mountinfo(mounts, root).unwrap()
}

/// Accounting whose views are never returned a second time, and a container.
fn uncached() -> (tempfile::TempDir, Arc<Accounting>, Container) {
    let root = tempfile::tempdir().unwrap();
    let options = Options { age_bound: 0, ..Options::default() };
    let accounting = Accounting::with(options, files(root.path())).unwrap();
    let one = container(&accounting);
    (root, accounting, one)
}

/// Replaces a file by a FIFO, whose opening hangs.
fn make_hang(path: &Path) {
    use rustix::fs::{CWD, FileType, Mode, mknodat};
    std::fs::remove_file(path).unwrap();
    mknodat(CWD, path, FileType::Fifo, Mode::from_raw_mode(0o600), 0).unwrap();
}

/// Ends the hang of each thread that opens the FIFO until they are done.
fn end_hangs(fifo: &Path, are_done: impl Fn() -> bool) {
    while !are_done() {
        let flags = rustix::fs::OFlags::WRONLY | rustix::fs::OFlags::NONBLOCK;
        drop(rustix::fs::open(fifo, flags, rustix::fs::Mode::empty()));
        std::thread::sleep(Duration::from_millis(1));
    }
}

fn container(accounting: &Accounting) -> Container {
    container_with(accounting, None)
}

fn container_with(accounting: &Accounting, init: Option<Init>) -> Container {
    let identity = Identity { namespace: 0, init, is_host: false, part: None };
    let membership = crate::membership::Membership::parse(b"0::/c\n");
    let account = Account::new(Owner::User(0));
    let charge = accounting.context.cgroups.charge(Some(&account), 1).unwrap();
    Container::new(identity, membership, (account, charge), &accounting.context)
}

#[test]
fn a_read_resumes_sampling_of_an_unused_container() {
    let root = tempfile::tempdir().unwrap();
    let options = Options { age_bound: 0, ..Options::default() };
    let accounting = Accounting::with(options, files(root.path())).unwrap();
    // The sampler thread would consume the request at once: it is stopped.
    accounting.wake.stop();
    while Arc::strong_count(&accounting.wake) > 1 {
        std::thread::yield_now();
    }
    let one = container(&accounting);
    let is_wanted = || {
        accounting.view_of(&one).unwrap();
        std::mem::take(&mut accounting.wake.state.lock().unwrap().wanted)
    };
    assert!(is_wanted(), "at the first view");
    assert!(!is_wanted());
    one.miss_counts();
    assert!(is_wanted(), "after a pause");
    assert!(!is_wanted());
}

#[test]
fn until_a_lease_ends_every_view_shows_its_numbers() {
    let (root, accounting, one) = uncached();
    let lease = |length| one.lease(&accounting.context, StatSet::MEMORY, length).unwrap();
    let (leased, length) = lease(3_600_000_000_000);
    assert_eq!(length, 3_600_000_000_000);
    let current = root.path().join("sys/fs/cgroup/c/memory.current");
    std::fs::write(current, "16777216\n").unwrap();
    let view = accounting.view_of(&one).unwrap();
    assert_eq!(view.memory.free, leased.memory.free);
    let taken = |view: &View| view.stats.taken.oldest(StatSet::TIMES);
    assert!(taken(&view) > taken(&leased), "other numbers are current");
    let (renewed, _) = lease(0);
    assert_eq!(renewed.memory.free + (8 << 20), leased.memory.free);
}

/// A read that begins after another one has ended shows no smaller counter.
#[test]
fn concurrent_readers_never_see_less_than_was_seen() {
    let (root, accounting, one) = uncached();
    let stat = root.path().join("sys/fs/cgroup/c/cpu.stat");
    let seen: [AtomicU64; 3] = Default::default();
    let ended = AtomicBool::new(false);
    std::thread::scope(|scope| {
        for reader in 0..4 {
            let (one, accounting, seen, ended) = (&one, &accounting, &seen, &ended);
            scope.spawn(move || {
                while !ended.load(Ordering::Relaxed) {
                    let before: Vec<_> =
                        seen.iter().map(|seen| seen.load(Ordering::SeqCst)).collect();
                    // Some ask for more statistics, which takes a new sample.
                    let wanted = if reader % 2 == 0 {
                        StatSet::TIMES
                    } else {
                        StatSet::TIMES | StatSet::VM_EVENTS
                    };
                    let view = one.view(clock::now(), &accounting.context, wanted).unwrap();
                    let total = &view.cpu.total;
                    let now = [total.user, total.idle, view.clock.idle];
                    for ((now, before), seen) in now.iter().zip(before).zip(seen) {
                        assert!(*now >= before, "{before} became {now}");
                        seen.fetch_max(*now, Ordering::SeqCst);
                    }
                }
            });
        }
        // Written in place by one system call, as the kernel changes its files.
        let stat = std::fs::OpenOptions::new().write(true).open(stat).unwrap();
        for step in 1..=300_u64 {
            let text = format!("user_usec {:09}\nsystem_usec {:09}\n", step * 1000, step * 1000);
            stat.write_all_at(text.as_bytes(), 0).unwrap();
            std::thread::sleep(Duration::from_millis(1));
        }
        ended.store(true, Ordering::Relaxed);
    });
    assert!(seen.iter().all(|seen| seen.load(Ordering::SeqCst) > 0), "{seen:?}");
}

#[test]
fn a_command_that_asks_for_all_containers_closes_what_it_opened_if_too_much_is_open() {
    let root = tempfile::tempdir().unwrap();
    let current = root.path().join("sys/fs/cgroup/c/memory.current");
    for (kept_files, used) in [(Options::default().kept_files, 8 << 20), (0, 16 << 20)] {
        let options = Options { age_bound: 0, kept_files, ..Options::default() };
        let accounting = Accounting::with(options, files(root.path())).unwrap();
        let one = container(&accounting);
        let shown = || accounting.groups_of(&one, StatSet::MEMORY).unwrap().memory.used;
        assert_eq!(shown(), 8 << 20);
        // A file that is open is still the old one.
        std::fs::remove_file(&current).unwrap();
        std::fs::write(&current, "16777216\n").unwrap();
        assert_eq!(shown(), used);
    }
}

#[test]
fn files_that_fail_leave_the_last_good_numbers() {
    let (root, accounting, one) = uncached();
    let cgroup = root.path().join("sys/fs/cgroup/c");
    let good = accounting.view_of(&one).unwrap().memory;
    assert_eq!(good.total, 64 << 20);
    for file in ["memory.current", "memory.stat", "memory.max", "cpu.stat", "pids.current"] {
        let path = cgroup.join(file);
        let text = std::fs::read(&path).unwrap();
        // Reading a directory fails, as EIO would.
        std::fs::remove_file(&path).unwrap();
        std::fs::create_dir(&path).unwrap();
        one.close_files();
        assert_eq!(accounting.view_of(&one).unwrap().memory, good, "{file}");
        // A container without a view gets an error, and not the numbers of another one.
        assert!(accounting.view_of(&container(&accounting)).is_err(), "{file}");
        std::fs::remove_dir(&path).unwrap();
        std::fs::write(&path, text).unwrap();
        assert_eq!(accounting.view_of(&one).unwrap().memory, good, "{file}");
    }
    // A removed cgroup is not replaced by its parent.
    std::fs::remove_dir_all(&cgroup).unwrap();
    one.close_files();
    assert_eq!(accounting.view_of(&one).unwrap().memory, good);
    assert!(accounting.view_of(&container(&accounting)).is_err());
}

/// How much longer the kernel keeps a lease than it is asked to.
const TICKS: std::time::Duration = std::time::Duration::from_millis(20);

#[test]
fn the_limits_of_a_young_container_are_shown_as_soon_as_they_are_set() {
    let root = tempfile::tempdir().unwrap();
    let options = Options { age_bound: u64::MAX, ..Options::default() };
    let accounting = Accounting::with(options, files(root.path())).unwrap();
    let started = |start| {
        let pidfd = std::fs::File::open("/dev/null").unwrap().into();
        let init = Init { pid: 0, pidfd, mounts: 0, start, offset: None };
        container_with(&accounting, Some(init))
    };
    let (young, old) = (started(u64::MAX), started(0));
    let total = |one: &Container| accounting.view_of(one).unwrap().memory.total;
    assert_eq!([&young, &old].map(total), [64 << 20; 2]);
    std::fs::write(root.path().join("sys/fs/cgroup/c/memory.max"), "33554432\n").unwrap();
    [&young, &old].into_iter().for_each(Container::close_files);
    assert_eq!([&young, &old].map(total), [32 << 20, 64 << 20]);
    // What the kernel shows on lease and what is read beside it agree.
    let taken = std::time::Instant::now();
    let leased = young.lease(&accounting.context, StatSet::MEMORY, u64::MAX).unwrap();
    assert_eq!(leased.1, 1_000_000);
    std::fs::write(root.path().join("sys/fs/cgroup/c/memory.max"), "16777216\n").unwrap();
    young.close_files();
    let beside = total(&young);
    assert!(beside == 32 << 20 || taken.elapsed() >= TICKS, "{beside}");
    std::thread::sleep(2 * TICKS);
    assert_eq!(total(&young), 16 << 20);
}

/// Its `cgroup` file stays open, and its container is looked up again in the pid namespaces around.
#[test]
fn a_container_whose_first_process_was_moved_is_shown_its_new_cgroup() {
    let root = tempfile::tempdir().unwrap();
    let (proc, own) = (root.path().join("proc"), std::process::id());
    let hierarchies = files(root.path());
    let limit = |cgroup: &str, bytes: &str| {
        let cgroup = root.path().join("sys/fs/cgroup").join(cgroup);
        std::fs::create_dir_all(&cgroup).unwrap();
        std::fs::write(cgroup.join("memory.current"), "4096\n").unwrap();
        std::fs::write(cgroup.join("memory.max"), bytes).unwrap();
    };
    limit("d", "33554432\n");
    let process = proc.join(own.to_string());
    std::fs::create_dir_all(process.join("ns")).unwrap();
    std::os::unix::fs::symlink("pid:[1]", process.join("ns/pid")).unwrap();
    std::fs::write(proc.join("meminfo"), "MemTotal: 1048576 kB\n").unwrap();
    std::fs::write(process.join("cgroup"), "0::/c\n").unwrap();
    let (proc, sys) = (KernelFiles::at(&proc).unwrap(), KernelFiles::sysfs().unwrap());
    let accounting = Accounting::over(Options::default(), hierarchies, proc, sys).unwrap();
    let pidfd = rustix::process::pidfd_open(
        rustix::process::getpid(),
        rustix::process::PidfdFlags::empty(),
    );
    let init = Init { pid: own, pidfd: pidfd.unwrap(), mounts: 0, start: u64::MAX, offset: None };
    let one = container_with(&accounting, Some(init));
    let total = || accounting.view_of(&one).unwrap().memory.total >> 20;
    assert_eq!(total(), 64);
    one.set_enclosing(None, u64::MAX);
    std::fs::write(process.join("cgroup"), "0::/d\n").unwrap();
    assert_eq!(total(), 32);
    assert!(one.enclosing(u64::MAX).is_err(), "it may be part of another container now");
}

#[test]
fn only_a_view_younger_than_a_second_is_shown_while_a_sample_is_taken() {
    let root = tempfile::tempdir().unwrap();
    let options = Options { age_bound: 0, patience: u64::MAX, ..Options::default() };
    let accounting = Accounting::with(options, files(root.path())).unwrap();
    let one = container(&accounting);
    let first = accounting.view_of(&one).unwrap();
    assert_eq!(first.memory.total, 64 << 20);
    let taken = first.stats.taken.oldest(StatSet::BASE);
    let cgroup = root.path().join("sys/fs/cgroup/c");
    let (limit, fifo) = (cgroup.join("memory.max"), cgroup.join("fifo"));
    make_hang(&limit);
    one.close_files();
    std::thread::scope(|scope| {
        let stuck = scope.spawn(|| accounting.view_of(&one));
        std::thread::sleep(Duration::from_millis(100));
        std::fs::rename(&limit, &fifo).unwrap();
        std::fs::write(&limit, "33554432\n").unwrap();
        let (one, context) = (&one, &accounting.context);
        let view = |age| {
            scope.spawn(move || one.view(taken + age, context, StatSet::BASE).unwrap().memory.total)
        };
        let (shown, waits) = (view(1_000_000_000), view(1_000_000_001));
        let mut tries = 0;
        while !shown.is_finished() && tries < 60_000 {
            std::thread::sleep(Duration::from_millis(1));
            tries += 1;
        }
        let is_shown_at_once = shown.is_finished();
        std::thread::sleep(Duration::from_millis(100));
        end_hangs(&fifo, || stuck.is_finished());
        assert!(is_shown_at_once);
        assert_eq!([shown, waits].map(|view| view.join().unwrap()), [64 << 20, 32 << 20]);
    });
}

#[test]
fn compressed_swap_is_shown_or_not() {
    let root = tempfile::tempdir().unwrap();
    let hierarchies = files(root.path());
    let cgroup = root.path().join("sys/fs/cgroup/c");
    std::fs::write(cgroup.join("memory.swap.current"), "0\n").unwrap();
    std::fs::write(cgroup.join("memory.stat"), "anon 4194304\nzswap 4096\n").unwrap();
    for (zswap, bytes) in [(true, 4096), (false, 0)] {
        let options = Options { zswap, ..Options::default() };
        let accounting = Accounting::with(options, hierarchies.clone()).unwrap();
        let one = container(&accounting);
        assert_eq!(accounting.view_of(&one).unwrap().swap.zswap, bytes);
    }
}

#[test]
fn a_file_that_hangs_costs_one_thread_and_not_the_numbers() {
    let root = tempfile::tempdir().unwrap();
    let options = Options { age_bound: 0, patience: 50_000_000, ..Options::default() };
    let accounting = Accounting::with(options, files(root.path())).unwrap();
    let (known, unknown) = (container(&accounting), container(&accounting));
    let good = accounting.view_of(&known).unwrap().memory;
    let fifo = root.path().join("sys/fs/cgroup/c/memory.current");
    make_hang(&fifo);
    known.close_files();
    std::thread::scope(|scope| {
        // Opening a FIFO for reading waits for a writer.
        let stuck = [&known, &unknown].map(|one| scope.spawn(|| accounting.view_of(one)));
        std::thread::sleep(Duration::from_millis(1500));
        assert_eq!(accounting.view_of(&known).unwrap().memory, good);
        assert!(matches!(accounting.view_of(&unknown), Err(Error::Read { .. })));
        // Neither the load sampler nor a query of the cgroups waits.
        known.sample_load(&accounting.context, &mut Counter::new());
        assert_eq!(known.membership().path(), "/c");
        // One open for writing ends both waits; the empty text that they read is a failure.
        end_hangs(&fifo, || stuck.iter().all(std::thread::ScopedJoinHandle::is_finished));
    });
}

#[test]
fn a_group_is_read_when_a_request_needs_it() {
    let (root, accounting, one) = uncached();
    let view = |wanted| one.view(clock::now(), &accounting.context, wanted).unwrap();
    assert_eq!(view(StatSet::TIMES).memory.total, 64 << 20, "the first sample is whole");
    let cgroup = root.path().join("sys/fs/cgroup/c");
    std::fs::write(cgroup.join("memory.max"), "33554432\n").unwrap();
    std::fs::write(cgroup.join("pids.current"), "9\n").unwrap();
    let other = view(StatSet::TIMES);
    assert_eq!((other.memory.total, other.tasks.total), (64 << 20, 3), "not needed");
    let needed = view(crate::sysinfo::NEEDS);
    assert_eq!((needed.memory.total, needed.tasks.total), (32 << 20, 9));
    assert!(needed.clock.uptime > other.clock.uptime);
    assert_eq!(needed.cpu, other.cpu);
}

#[test]
fn a_group_that_is_recent_does_not_make_another_one_recent() {
    let root = tempfile::tempdir().unwrap();
    let options = Options { age_bound: 1000, ..Options::default() };
    let accounting = Accounting::with(options, files(root.path())).unwrap();
    let one = container(&accounting);
    let now = clock::now();
    let view = |at, wanted| one.view(at, &accounting.context, wanted).unwrap();
    let first = view(now, StatSet::BASE);
    let taken = first.stats.taken.oldest(StatSet::BASE);
    assert!(Arc::ptr_eq(&first, &view(taken + 1000, StatSet::MEMORY)));
    let times = view(taken + 1001, StatSet::TIMES);
    assert_eq!(times.stats.taken.oldest(StatSet::MEMORY), taken);
    let memory = view(taken + 1001, StatSet::MEMORY);
    assert!(memory.stats.taken.oldest(StatSet::MEMORY) > taken);
}

/// Of a container that uses no processor time, a round reads that it uses none.
#[test]
fn an_idle_container_costs_one_read_a_round() {
    use rustix::fs::inotify;
    let root = tempfile::tempdir().unwrap();
    let accounting = Accounting::with(Options::default(), files(root.path())).unwrap();
    let cgroup = root.path().join("sys/fs/cgroup/c");
    std::fs::write(cgroup.join("cpu.max"), "max 100000\n").unwrap();
    let one = container(&accounting);
    accounting.view_of(&one).unwrap();
    let accesses = inotify::init(inotify::CreateFlags::NONBLOCK).unwrap();
    inotify::add_watch(&accesses, &cgroup, inotify::WatchFlags::ACCESS).unwrap();
    let mut counter = Counter::new();
    let mut round = || {
        one.sample_load(&accounting.context, &mut counter);
        let mut buffer = [std::mem::MaybeUninit::uninit(); 4096];
        let mut events = inotify::Reader::new(&accesses, &mut buffer);
        let mut names = Vec::new();
        while let Ok(event) = events.next() {
            names.extend(event.file_name().map(|name| name.to_str().unwrap().to_owned()));
        }
        names
    };
    for _ in 0..11 {
        assert_eq!(round(), ["cpu.stat"]);
    }
    assert!(round().len() > 1, "the threads are counted now and then");
    assert_eq!(round(), ["cpu.stat"]);
    std::fs::write(cgroup.join("cpu.stat"), "user_usec 21\nsystem_usec 10\n").unwrap();
    assert!(round().len() > 1, "it has run");
}
