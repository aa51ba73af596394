//! The accounting of one daemon. One instance is started per process and may be called from any
//! thread. It owns the load sampler thread; all reading of a container is in `container.rs`, all
//! identification in `callers.rs`. Start reading at [`Accounting::view_of`].

use std::io;
use std::sync::{Arc, Condvar, Mutex, PoisonError, Weak};
use std::time::Duration;

use ambit_kernel::text::scan;

use crate::KernelFiles;
use crate::account::Owner;
use crate::account::budget::{Descriptors, What};
use crate::callers::{Caller, Callers};
use crate::clock;
use crate::container::Container;
use crate::context::{self, Context, OpenCounter, Options};
use crate::counter_store::CounterStore;
use crate::hierarchy::Hierarchies;
use crate::host::Host;
use crate::host_files::HostFiles;
use crate::kernel_names::KernelNames;
use crate::personality;
use crate::pressure::{self, Stall, TriggerFile};
use crate::stats::StatSet;
use crate::tasks::{Counter, RecentCounts};
use crate::view::View;
use crate::{Error, Numbers, Views, load};

/// All known containers, and the thread that samples their load.
#[derive(Debug)]
pub struct Accounting {
    context: Context,
    callers: Callers,
    wake: Arc<Wake>,
}

/// Wakes the load sampler thread, which sleeps without a timeout while no container is to be
/// sampled.
#[derive(Debug, Default)]
struct Wake {
    state: Mutex<WakeState>,
    changed: Condvar,
}

#[derive(Debug, Default, Clone, Copy)]
struct WakeState {
    wanted: bool,
    ended: bool,
}

impl Accounting {
    /// Opens the host's files and starts the load sampler.
    ///
    /// # Errors
    /// procfs, sysfs or the cgroup file systems cannot be read.
    pub fn start(options: Options) -> Result<Arc<Self>, Error> {
        Self::with(options, Hierarchies::discover()?)
    }

    fn with(options: Options, hierarchies: Hierarchies) -> Result<Arc<Self>, Error> {
        let proc = KernelFiles::procfs().map_err(read("/proc"))?;
        let sys = KernelFiles::sysfs().map_err(read("/sys"))?;
        Self::over(options, hierarchies, proc, sys)
    }

    /// Starts accounting with these hierarchies, procfs and sysfs.
    ///
    /// # Errors
    /// They cannot be read.
    pub fn over(
        options: Options,
        hierarchies: Hierarchies,
        proc: KernelFiles,
        sys: KernelFiles,
    ) -> Result<Arc<Self>, Error> {
        let proc = Arc::new(proc);
        let host = HostFiles::open(proc.clone(), sys).map_err(read("/proc/meminfo"))?;
        let own = std::process::id();
        let open_containers = options.open_containers.min(affordable());
        let options = Options { open_containers, ..options };
        let mut text = Vec::new();
        let offset = proc.read_of(own, "timens_offsets", &mut text).ok();
        let [namespaces, cgroups, pressure_files] = context::budgets();
        let context = Context {
            own_offset: offset.and_then(clock::boottime_offset).unwrap_or(0),
            own_namespace: proc.pid_namespace(own).map_err(read("/proc/self/ns/pid"))?,
            // A kernel without user namespaces has no such file, for no task.
            own_users: proc.namespace(own, "user").unwrap_or(0),
            namespaces,
            cgroups,
            pressure_files,
            open: OpenCounter::default(),
            options,
            counter_store: std::sync::OnceLock::new(),
            proc,
            host,
            hierarchies,
            names: KernelNames::default(),
            counted: RecentCounts::default(),
        };
        let wake = Arc::new(Wake::default());
        let this = Arc::new(Self { context, callers: Callers::new(), wake: wake.clone() });
        let weak = Arc::downgrade(&this);
        std::thread::Builder::new()
            .name("load".to_owned())
            .spawn(move || sample_loads(&weak, &wake))
            .map_err(read("a new thread"))?;
        Ok(this)
    }

    /// Keeps counters in this file, which outlives the process, and continues from those that a
    /// predecessor wrote there. Must be called before the first view is taken.
    pub fn remember(&self, file: std::os::fd::OwnedFd) {
        let processors =
            self.context.host.snapshot().online.iter().last().map_or(1, |last| last + 1);
        // A second call has no effect.
        let _ = self.context.counter_store.set(CounterStore::open(file, processors as usize));
        // Load averages of recorded containers are sampled before their first request.
        self.wake.request_sampling();
    }

    /// Returns the container that a thread belongs to.
    ///
    /// # Errors
    /// The thread is gone or not visible.
    pub fn identify(&self, tid: u32) -> Result<Arc<Container>, Error> {
        self.caller(tid).map(|caller| caller.container)
    }

    fn caller(&self, tid: u32) -> Result<Caller, Error> {
        self.callers.identify(tid, clock::now(), &self.context)
    }

    /// Returns the number of the owner of a thread: the same in every process, whatever namespaces
    /// the thread's container creates.
    #[must_use]
    pub fn owner_number(&self, tid: u32) -> Option<u64> {
        Owner::find(tid, &self.context).ok().map(|owner| owner.number())
    }

    /// The current numbers of a container.
    ///
    /// # Errors
    /// No sample of it was ever taken, and none can be taken now.
    pub fn view_of(&self, container: &Container) -> Result<Arc<View>, Error> {
        let view = self.current(container, clock::now(), StatSet::NONE);
        self.callers.sweep_if_crowded(&self.context);
        view
    }

    fn current(
        &self,
        container: &Container,
        now: u64,
        wanted: StatSet,
    ) -> Result<Arc<View>, Error> {
        // The sampler stops sampling a container that has no readers, so this is checked at every
        // view.
        let is_overdue = container.is_overdue();
        let view = container.view(now, &self.context, wanted)?;
        if is_overdue {
            self.wake.request_sampling();
        }
        Ok(view)
    }

    /// Returns all containers with a request to this process or to a predecessor that still exist.
    pub fn containers(&self) -> Vec<Arc<Container>> {
        self.callers.adopt_recorded(&self.context);
        self.callers.sweep(&self.context);
        self.callers.containers()
    }

    /// Returns a snapshot of the machine.
    pub fn host(&self) -> Arc<Host> {
        self.context.host.snapshot()
    }

    /// Returns how many processes the OOM killer has killed on the machine (Linux 4.13).
    pub fn oom_kills(&self) -> Option<u64> {
        let mut text = Vec::new();
        self.context.proc.read("vmstat", &mut text).ok()?;
        scan::pairs(&text).find(|(key, _)| *key == b"oom_kill").map(|(_, count)| count)
    }

    /// Returns the mounted cgroup hierarchies.
    pub fn hierarchies(&self) -> &Hierarchies {
        &self.context.hierarchies
    }

    /// Runs one round of the load sampler. True while any container is to be sampled.
    fn sample_loads(&self, counter: &mut Counter) -> bool {
        self.callers.sweep(&self.context);
        let now = clock::now();
        let mut any = false;
        for container in self.callers.containers() {
            // Sampling opens the files of containers again; the number of open files stays bounded.
            self.callers.sweep_if_crowded(&self.context);
            if now.saturating_sub(container.last_use()) <= self.context.options.load_bound
                && !container.is_host()
            {
                container.sample_load(&self.context, counter);
                any = true;
            }
        }
        any
    }
}

impl Views for Accounting {
    fn view(&self, tid: u32) -> Result<Arc<View>, Error> {
        self.view_with(tid, StatSet::NONE)
    }

    fn view_with(&self, tid: u32, wanted: StatSet) -> Result<Arc<View>, Error> {
        self.numbers(tid, wanted).map(|numbers| numbers.view)
    }

    fn numbers(&self, tid: u32, wanted: StatSet) -> Result<Numbers, Error> {
        let now = clock::now();
        let Caller { container, account } = self.callers.identify(tid, now, &self.context)?;
        let view = self.current(&container, now, wanted)?;
        self.callers.sweep_if_crowded(&self.context);
        Ok(Numbers { view, account: Some(account) })
    }

    fn last_view(&self, tid: u32) -> Result<Arc<View>, Error> {
        let container = self.identify(tid)?;
        container.last_view().ok_or_else(|| container.hangs())
    }

    fn trigger_file(&self, tid: u32, stall: Stall) -> Result<TriggerFile, Error> {
        let Caller { container, account } = self.caller(tid)?;
        let charge = self.context.pressure_files.charge(Some(&account), 1);
        let charge = charge.ok_or(Error::UsedUp(What::PressureFiles))?;
        let membership = container.membership();
        let file = pressure::open(tid, container.is_host(), &membership, stall, &self.context)?;
        let privileged = pressure::is_privileged(tid, &self.context);
        Ok(TriggerFile { file, charge, privileged })
    }

    fn has_32_bit_personality(&self, tid: u32) -> bool {
        let mut text = Vec::new();
        self.context.proc.read_of(tid, "personality", &mut text).is_ok_and(personality::is_32_bit)
    }

    fn host(&self) -> Option<Arc<Host>> {
        Some(self.context.host.snapshot())
    }
}

impl Drop for Accounting {
    fn drop(&mut self) {
        self.wake.stop();
    }
}

impl Wake {
    fn request_sampling(&self) {
        self.state.lock().unwrap_or_else(PoisonError::into_inner).wanted = true;
        self.changed.notify_all();
    }

    fn stop(&self) {
        self.state.lock().unwrap_or_else(PoisonError::into_inner).ended = true;
        self.changed.notify_all();
    }

    /// Sleeps until a container is to be sampled; `false` when accounting ends.
    fn until_wanted(&self) -> bool {
        let state = self.state.lock().unwrap_or_else(PoisonError::into_inner);
        let mut state = self
            .changed
            .wait_while(state, |state| !state.wanted && !state.ended)
            .unwrap_or_else(PoisonError::into_inner);
        state.wanted = false;
        !state.ended
    }

    /// Sleeps for one interval; `false` when accounting ends.
    fn pause(&self) -> bool {
        let state = self.state.lock().unwrap_or_else(PoisonError::into_inner);
        let interval = Duration::from_nanos(load::INTERVAL);
        let (state, _) = self
            .changed
            .wait_timeout_while(state, interval, |state| !state.ended)
            .unwrap_or_else(PoisonError::into_inner);
        !state.ended
    }
}

/// Makes the error for a failed read of this file.
fn read(file: &str) -> impl FnOnce(io::Error) -> Error {
    let file = file.to_owned();
    move |source| Error::Read { file, source }
}

/// How many containers keep their files open: each has about forty, up to twice as many containers
/// have files open between two sweeps.
fn affordable() -> usize {
    (Descriptors::of_this_process().files / 80).max(8)
}

fn sample_loads(accounting: &Weak<Accounting>, wake: &Wake) {
    let mut counter = Counter::new();
    while wake.until_wanted() {
        if let Some(accounting) = accounting.upgrade() {
            accounting.callers.adopt_recorded(&accounting.context);
        }
        loop {
            if !wake.pause() {
                return;
            }
            let Some(accounting) = accounting.upgrade() else { return };
            if !accounting.sample_loads(&mut counter) {
                break;
            }
        }
    }
}

#[cfg(test)]
mod tests {
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

    /// A read that begins after another one has ended shows no smaller counter.
    #[test]
    fn concurrent_readers_never_see_less_than_was_seen() {
        let root = tempfile::tempdir().unwrap();
        let options = Options { age_bound: 0, ..Options::default() };
        let accounting = Accounting::with(options, files(root.path())).unwrap();
        let one = container(&accounting);
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
                        let wanted =
                            if reader % 2 == 0 { StatSet::NONE } else { StatSet::VM_EVENTS };
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
                let text =
                    format!("user_usec {:09}\nsystem_usec {:09}\n", step * 1000, step * 1000);
                stat.write_all_at(text.as_bytes(), 0).unwrap();
                std::thread::sleep(Duration::from_millis(1));
            }
            ended.store(true, Ordering::Relaxed);
        });
        assert!(seen.iter().all(|seen| seen.load(Ordering::SeqCst) > 0), "{seen:?}");
    }

    #[test]
    fn files_that_fail_leave_the_last_good_numbers() {
        let root = tempfile::tempdir().unwrap();
        let options = Options { age_bound: 0, ..Options::default() };
        let accounting = Accounting::with(options, files(root.path())).unwrap();
        let cgroup = root.path().join("sys/fs/cgroup/c");
        let one = container(&accounting);
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
    }

    #[test]
    fn a_view_older_than_a_second_is_not_shown_while_a_sample_is_taken() {
        let root = tempfile::tempdir().unwrap();
        let options = Options { age_bound: 0, ..Options::default() };
        let accounting = Accounting::with(options, files(root.path())).unwrap();
        let one = container(&accounting);
        assert_eq!(accounting.view_of(&one).unwrap().memory.total, 64 << 20);
        let cgroup = root.path().join("sys/fs/cgroup/c");
        let (limit, fifo) = (cgroup.join("memory.max"), cgroup.join("fifo"));
        std::fs::remove_file(&limit).unwrap();
        let mode = rustix::fs::Mode::from_raw_mode(0o600);
        let kind = rustix::fs::FileType::Fifo;
        rustix::fs::mknodat(rustix::fs::CWD, &limit, kind, mode, 0).unwrap();
        one.close_files();
        std::thread::scope(|scope| {
            let stuck = scope.spawn(|| accounting.view_of(&one));
            std::thread::sleep(Duration::from_millis(100));
            std::fs::rename(&limit, &fifo).unwrap();
            std::fs::write(&limit, "33554432\n").unwrap();
            let later = clock::now() + 1_100_000_000;
            let (one, context) = (&one, &accounting.context);
            let waits = scope.spawn(move || one.view(later, context, StatSet::NONE));
            std::thread::sleep(Duration::from_millis(100));
            while !stuck.is_finished() {
                let flags = rustix::fs::OFlags::WRONLY | rustix::fs::OFlags::NONBLOCK;
                drop(rustix::fs::open(&fifo, flags, rustix::fs::Mode::empty()));
                std::thread::sleep(Duration::from_millis(1));
            }
            assert_eq!(waits.join().unwrap().unwrap().memory.total, 32 << 20);
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
        std::fs::remove_file(&fifo).unwrap();
        let mode = rustix::fs::Mode::from_raw_mode(0o600);
        let kind = rustix::fs::FileType::Fifo;
        rustix::fs::mknodat(rustix::fs::CWD, &fifo, kind, mode, 0).unwrap();
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
            while stuck.iter().any(|thread| !thread.is_finished()) {
                let flags = rustix::fs::OFlags::WRONLY | rustix::fs::OFlags::NONBLOCK;
                drop(rustix::fs::open(&fifo, flags, rustix::fs::Mode::empty()));
                std::thread::sleep(Duration::from_millis(1));
            }
        });
    }
}
