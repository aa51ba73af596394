//! One container: who its init is, where its cgroups are, and its current [`View`].
//!
//! A view that is younger than the age bound is served as it is. Otherwise one thread takes a
//! new sample while the others go on with the last view; they wait only when that is older
//! than a second. A kernel file that does not answer costs the thread that reads it and nobody
//! else: the others wait for a bounded time, then go on with the last view however old it is.

use std::cell::RefCell;
use std::os::fd::OwnedFd;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, TryLockError};
use std::time::Duration;

use arc_swap::{ArcSwap, ArcSwapOption};
use rustix::event::{PollFd, PollFlags};

use crate::Error;
use crate::account::Account;
use crate::activity::Activity;
use crate::budget::Charge;
use crate::cgroup_namespace;
use crate::clock;
use crate::context::{Context, OpenGuard};
use crate::counter_store;
use crate::cpu::{self, CpuClock};
use crate::derive;
use crate::hierarchy::Controller;
use crate::host::Host;
use crate::membership::Membership;
use crate::policy::BootTime;
use crate::sample::Sample;
use crate::source::huge::HugeFiles;
use crate::source::nodes::NodeFiles;
use crate::source::stats::StatFiles;
use crate::source::{self, Source};
use crate::stats::{StatSampler, StatSet, Stats};
use crate::tasks::Counter;
use crate::view::{Clock, Cpu, Origin, View};

/// Older views are waited for.
const HARD_BOUND: u64 = 1_000_000_000;
/// A container this young is still being set up: engines move it and set its limits while its
/// files are looked at already. No number of it is kept.
const SETUP_TIME: u64 = 2_000_000_000;
/// How often those who wait for a sample look for it.
const POLL_INTERVAL: Duration = Duration::from_millis(1);
/// How often the cgroup of the init is looked up again: runtimes move it while they start.
const MEMBERSHIP_BOUND: u64 = 500_000_000;
/// How often it is looked up whether a young container is a part of another one.
const YOUNG_MEMBERSHIP_BOUND: u64 = 20_000_000;

thread_local! {
    /// For the texts of kernel files.
    static TEXT: RefCell<Vec<u8>> = const { RefCell::new(Vec::new()) };
}

/// A container, or a cgroup of the host that a process asked from.
pub struct Container {
    identity: Identity,
    /// Who pays for what it makes the daemon hold; of a cgroup of the host, who asked from it first.
    account: Arc<Account>,
    /// What it costs to know it.
    _charge: Charge,
    /// Where its counters are remembered, and under which key.
    counter_record: Option<(usize, counter_store::RecordKey)>,
    activity: Activity,
    view: ArcSwapOption<View>,
    /// When the view was taken.
    view_taken: AtomicU64,
    /// When somebody last asked.
    last_use: AtomicU64,
    membership: ArcSwap<Membership>,
    /// The container that it is a part of, and when that was looked up.
    enclosing: ArcSwapOption<Container>,
    enclosing_checked: AtomicU64,
    /// When the sample began that is being taken; 0: none is.
    sample_began: AtomicU64,
    sampler: Mutex<Sampler>,
}

/// Who a container is; never changes.
#[derive(Debug)]
pub(crate) struct Identity {
    /// The inode of its pid namespace; 0 for a cgroup in the host's pid namespace.
    pub(crate) namespace: u64,
    /// Its first process; `None` in the host's pid namespace.
    pub(crate) init: Option<Init>,
    /// Is this the machine itself?
    pub(crate) is_host: bool,
}

/// The first process of a pid namespace.
#[derive(Debug)]
pub(crate) struct Init {
    pub(crate) pid: u32,
    pub(crate) pidfd: OwnedFd,
    /// Nanoseconds after boot.
    pub(crate) start: u64,
    /// Shift of the container's boot time clock against the daemon's, when it has a time
    /// namespace of its own: the kernel shifts what it shows there by the same amount.
    pub(crate) offset: Option<i64>,
}

struct Sampler {
    checked: u64,
    /// Set while files may be open.
    open: Option<OpenGuard>,
    source: Box<dyn Source>,
    stats: StatSampler,
    huge: HugeFiles,
    nodes: NodeFiles,
    sample: Sample,
    clock: CpuClock,
    /// Processor time at the last count of threads, and counts skipped since.
    busy_at_count: u64,
    skipped: u32,
    /// Counts taken.
    round: usize,
    /// For what is remembered.
    record: Vec<u8>,
}

impl Container {
    pub(crate) fn new(
        identity: Identity,
        membership: Membership,
        (account, charge): (Arc<Account>, Charge),
        context: &Context,
    ) -> Self {
        let now = clock::now();
        let start = identity.init.as_ref().map_or(0, |init| init.start.min(now));
        let mut source =
            source::open(&context.hierarchies, &membership, context.options.memory_limit);
        let stats = StatSampler::new(StatFiles::new(&context.hierarchies, &membership));
        // Whether the machine slept before the container's start or since is not known; in the
        // usual case, before.
        let awake = clock::awake();
        let mut clock = CpuClock::starting_at(awake.saturating_sub(now.saturating_sub(start)));
        let activity = Activity::default();
        let store = context.counter_store.get().filter(|_| !identity.is_host);
        let counter_record = store.and_then(|store| {
            let key = match &identity.init {
                Some(init) => (identity.namespace, init.start),
                None => (0, membership.key()),
            };
            let (slot, words) = store.claim(key);
            if let Some(words) = words {
                let mut words = words.into_iter();
                let first = std::array::from_fn(|_| words.next().unwrap_or(0));
                activity.restore(first, awake);
                clock = CpuClock::restored(&mut words, awake);
                source.resume(clock.used());
            }
            slot.map(|slot| (slot, key))
        });
        Self {
            identity,
            account,
            _charge: charge,
            counter_record,
            activity,
            view: ArcSwapOption::empty(),
            view_taken: AtomicU64::new(0),
            last_use: AtomicU64::new(now),
            membership: ArcSwap::from_pointee(membership),
            enclosing: ArcSwapOption::empty(),
            enclosing_checked: AtomicU64::new(0),
            sample_began: AtomicU64::new(0),
            sampler: Mutex::new(Sampler {
                checked: now,
                open: None,
                source,
                stats,
                huge: HugeFiles::default(),
                nodes: NodeFiles::default(),
                sample: Sample::default(),
                busy_at_count: clock.used().total(),
                clock,
                // What a predecessor counted is counted again.
                skipped: 3,
                round: 0,
                record: Vec::new(),
            }),
        }
    }

    /// Who pays for what it makes the daemon hold.
    pub(crate) fn account(&self) -> &Arc<Account> {
        &self.account
    }

    /// The pid of its first process in the daemon's numbering.
    #[must_use]
    pub fn init_pid(&self) -> Option<u32> {
        self.identity.init.as_ref().map(|init| init.pid)
    }

    /// Is this the machine itself?
    #[must_use]
    pub fn is_host(&self) -> bool {
        self.identity.is_host
    }

    /// The inode number of its pid namespace; 0 for a cgroup in the host's pid namespace.
    #[must_use]
    pub fn pid_namespace(&self) -> u64 {
        self.identity.namespace
    }

    /// Its cgroups.
    #[must_use]
    pub fn membership(&self) -> Arc<Membership> {
        self.membership.load_full()
    }

    /// The last view, if there was any.
    #[must_use]
    pub fn last_view(&self) -> Option<Arc<View>> {
        self.view.load_full()
    }

    /// The container that this pid namespace is a part of; `Err` when that is to be looked up.
    pub(crate) fn enclosing(&self, now: u64) -> Result<Option<Arc<Self>>, ()> {
        let age = now.saturating_sub(self.enclosing_checked.load(Ordering::Acquire));
        let bound = if self.is_young(now) { YOUNG_MEMBERSHIP_BOUND } else { MEMBERSHIP_BOUND };
        if self.identity.init.is_some() && age > bound {
            return Err(());
        }
        Ok(self.enclosing.load_full())
    }

    /// Records what [`Self::whole`] returns from `now` on.
    pub(crate) fn set_enclosing(&self, enclosing: Option<Arc<Self>>, now: u64) {
        self.enclosing.store(enclosing);
        self.enclosing_checked.store(now, Ordering::Release);
    }

    /// True for a pid namespace that is a part of another container.
    pub(crate) fn is_nested(&self) -> bool {
        self.enclosing.load().is_some()
    }

    /// Has its first process ended? A host cgroup has none; it is forgotten when unused.
    pub(crate) fn is_gone(&self) -> bool {
        let Some(init) = &self.identity.init else { return false };
        let mut poll = [PollFd::new(&init.pidfd, PollFlags::IN)];
        let now = rustix::time::Timespec { tv_sec: 0, tv_nsec: 0 };
        rustix::event::poll(&mut poll, Some(&now)).is_ok_and(|ready| ready > 0)
    }

    /// Where its counters are remembered.
    pub(crate) fn counter_slot(&self) -> Option<usize> {
        self.counter_record.map(|(slot, _)| slot)
    }

    /// Before they are shown: who reads them must never see less later.
    fn remember(&self, sampler: &mut Sampler, context: &Context) {
        if let (Some(store), Some((slot, key))) = (context.counter_store.get(), self.counter_record)
        {
            let words = self.activity.words().into_iter().chain(sampler.clock.words());
            store.write(slot, key, words, &mut sampler.record);
        }
    }

    fn is_young(&self, now: u64) -> bool {
        self.identity.init.as_ref().is_some_and(|init| now.saturating_sub(init.start) < SETUP_TIME)
    }

    /// True when the load sampler does not know the container, or has given it up: its threads
    /// are to be counted again.
    pub(crate) fn is_overdue(&self) -> bool {
        if self.identity.is_host {
            return self.activity.is_new();
        }
        self.activity.is_stale(clock::awake())
    }

    /// As if the load sampler had given the container up.
    #[cfg(test)]
    pub(crate) fn miss_counts(&self) {
        self.activity.restore(self.activity.words(), 1);
    }

    /// When somebody last asked for its numbers.
    pub(crate) fn last_use(&self) -> u64 {
        self.last_use.load(Ordering::Relaxed)
    }

    /// Its numbers of `now`, with what is wanted of those that few files show.
    pub(crate) fn view(
        &self,
        now: u64,
        context: &Context,
        wanted: StatSet,
    ) -> Result<Arc<View>, Error> {
        self.last_use.store(now, Ordering::Relaxed);
        let age = now.saturating_sub(self.view_taken.load(Ordering::Acquire));
        let last = || self.view.load_full().filter(|view| view.stats.sampled.contains(wanted));
        if age <= context.options.age_bound
            && !self.is_young(now)
            && let Some(view) = last()
        {
            return Ok(view);
        }
        let mut sampler = match self.sampler.try_lock() {
            Ok(sampler) => sampler,
            Err(TryLockError::Poisoned(poisoned)) => poisoned.into_inner(),
            Err(TryLockError::WouldBlock) => {
                if age <= HARD_BOUND
                    && let Some(view) = last()
                {
                    return Ok(view);
                }
                let Some(sampler) = self.lock_within(context.options.patience) else {
                    return self.view.load_full().ok_or_else(|| self.hangs());
                };
                if let Some(view) = last()
                    && self.view_taken.load(Ordering::Acquire) >= now
                {
                    return Ok(view);
                }
                sampler
            }
        };
        match self.refresh(&mut sampler, context, wanted) {
            Ok(view) => Ok(view),
            // Its cgroup is on its way out, or a file fails: the last good numbers are better
            // than none, and never another container's.
            Err(error) => self.view.load_full().ok_or(error),
        }
    }

    /// Takes a sample and publishes the view.
    fn refresh(
        &self,
        sampler: &mut Sampler,
        context: &Context,
        wanted: StatSet,
    ) -> Result<Arc<View>, Error> {
        self.sample_began.store(clock::awake(), Ordering::Relaxed);
        let view = self.sample(sampler, context, wanted);
        self.sample_began.store(0, Ordering::Relaxed);
        view
    }

    fn sample(
        &self,
        sampler: &mut Sampler,
        context: &Context,
        wanted: StatSet,
    ) -> Result<Arc<View>, Error> {
        let now = clock::now();
        sampler.open.get_or_insert_with(|| context.open.register());
        self.follow(sampler, context, now);
        sampler.sample = Sample {
            busy: std::mem::take(&mut sampler.sample.busy).emptied(),
            ..Sample::default()
        };
        TEXT.with_borrow_mut(|text| sampler.source.sample(&mut sampler.sample, text))?;
        if self.is_overdue() {
            self.count_threads(sampler, context, &mut Counter::new());
        }
        let host = context.host.snapshot();
        if !host.huge_pools.is_empty() {
            let Sampler { huge, sample, .. } = &mut *sampler;
            let membership = &self.membership.load();
            let (pools, found) = (&host.huge_pools, &mut sample.huge);
            TEXT.with_borrow_mut(|text| {
                huge.sample(pools, &context.hierarchies, membership, found, text)
            })?;
        }
        {
            let Sampler { nodes, sample, .. } = &mut *sampler;
            let membership = &self.membership.load();
            sample.nodes = TEXT.with_borrow_mut(|text| {
                nodes.sample(&host, &context.hierarchies, membership, text)
            })?;
        }
        let mut view = self.derive(sampler, host, context, now);
        view.stats = sampler.stats.sample(wanted, context);
        let view = Arc::new(view);
        self.view.store(Some(view.clone()));
        self.view_taken.store(now, Ordering::Release);
        Ok(view)
    }

    fn derive(&self, sampler: &mut Sampler, host: Arc<Host>, context: &Context, now: u64) -> View {
        let visible = cpu::visible(&sampler.sample, &host, context.options.cpu_policy);
        // The kernel counts no idle time while the machine sleeps.
        sampler.clock.advance(clock::awake(), &sampler.sample.busy, &visible);
        self.remember(sampler, context);
        let sample = &sampler.sample;
        let mut swap = derive::swap(sample, &host, context.options.swap);
        if !context.options.zswap {
            (swap.zswap, swap.zswapped) = (0, 0);
        }
        View {
            origin: if self.identity.is_host { Origin::Host } else { Origin::Container },
            memory: derive::memory(sample, &host),
            swap,
            tasks: self.activity.tasks(sample.threads),
            load: self.activity.load(),
            clock: self.clock(&host, context.options.boot_time, sampler.clock.idle(), now),
            nodes: sample.nodes.as_ref().map(|nodes| nodes.allowed.clone()),
            cpu: Cpu {
                seed: sample.quota_of,
                possible: context.options.possible,
                ..sampler.clock.view(visible)
            },
            stats: Stats::default(),
            host,
        }
    }

    fn clock(&self, host: &Host, policy: BootTime, idle: u64, now: u64) -> Clock {
        let host_clock = Clock { uptime: now, idle, boot_time: host.boot_time };
        let Some(init) = &self.identity.init else { return host_clock };
        match init.offset {
            // What the kernel shows in a time namespace is shifted already: the same shift
            // here makes uptime, boot time, start times and CLOCK_BOOTTIME agree.
            Some(offset) => Clock {
                uptime: now.saturating_add_signed(offset).min(now),
                boot_time: host.boot_time.saturating_sub_signed(offset.div_euclid(1_000_000_000)),
                idle,
            },
            None => Clock {
                uptime: now.saturating_sub(init.start),
                boot_time: match policy {
                    BootTime::Host => host.boot_time,
                    // The time of day less the uptime, without its jitter.
                    BootTime::Container => {
                        host.boot_time.saturating_add(init.start / 1_000_000_000)
                    }
                },
                ..host_clock
            },
        }
    }

    /// Follows the init into another cgroup.
    fn follow(&self, sampler: &mut Sampler, context: &Context, now: u64) {
        if now.saturating_sub(sampler.checked) < MEMBERSHIP_BOUND && !self.is_young(now) {
            return;
        }
        sampler.checked = now;
        let Some(init) = &self.identity.init else { return };
        TEXT.with_borrow_mut(|text| {
            if let Ok(text) = context.proc.read_of(init.pid, "cgroup", text)
                && !self.membership.load().has_text(text)
                // The pid could be somebody else's by now.
                && !self.is_gone()
            {
                let membership = cgroup_namespace::membership(&context.proc, init.pid, text);
                let membership = Arc::new(membership);
                let limit = context.options.memory_limit;
                sampler.source = source::open(&context.hierarchies, &membership, limit);
                let path = |one: &Membership| {
                    one.path_of(Controller::Cpuacct, &context.hierarchies).map(str::to_owned)
                };
                if path(&membership) == path(&self.membership.load()) {
                    sampler.source.resume(sampler.clock.used());
                } else {
                    sampler.clock.change_cgroup();
                    sampler.busy_at_count = 0;
                }
                sampler.huge.close();
                sampler.nodes.close();
                sampler.stats.follow(StatFiles::new(&context.hierarchies, &membership));
                self.membership.store(membership);
            }
        });
    }

    /// Counts threads and ages the load averages; called by the load sampler.
    pub(crate) fn sample_load(&self, context: &Context, counter: &mut Counter) {
        // Where a file hangs, the others are sampled all the same.
        let Some(mut sampler) = self.lock_within(HARD_BOUND) else { return };
        if !self.activity.is_new() && self.refresh(&mut sampler, context, StatSet::NONE).is_err() {
            self.activity.record_unknown(clock::awake());
            return;
        }
        self.count_threads(&mut sampler, context, counter);
    }

    fn count_threads(&self, sampler: &mut Sampler, context: &Context, counter: &mut Counter) {
        let now = clock::awake();
        let busy = sampler.sample.busy.total();
        let used = busy.saturating_sub(sampler.busy_at_count);
        let unchanged = busy == sampler.busy_at_count && busy != 0 && !self.activity.is_new();
        sampler.busy_at_count = busy;
        // Counting by reading each thread is dear, and no thread changes its state without running:
        // where nothing ran, they are looked at only now and then.
        if unchanged && sampler.skipped < 3 {
            sampler.skipped += 1;
            self.activity.record_unchanged(now);
            return;
        }
        sampler.skipped = 0;
        sampler.round = sampler.round.wrapping_add(1);
        let counts = counter.count_shared(context, &self.membership.load(), sampler.round);
        let newest = counts.newest.and_then(|pid| {
            TEXT.with_borrow_mut(|text| {
                let status = context.proc.read_of(pid, "status", text).ok()?;
                crate::namespace_init::innermost_pid(status).map(u64::from)
            })
        });
        self.activity.record(counts, newest, used, now);
    }

    /// Gives the kept descriptors back; the next sample opens them again.
    pub(crate) fn close_files(&self) {
        if let Ok(mut sampler) = self.sampler.try_lock() {
            sampler.source.close();
            sampler.huge.close();
            sampler.nodes.close();
            sampler.stats.close();
            sampler.open = None;
        }
    }

    /// The sampler, unless another thread has been at one sample for so long already. Who comes
    /// late does not begin to wait anew.
    fn lock_within(&self, patience: u64) -> Option<MutexGuard<'_, Sampler>> {
        let until = clock::awake().saturating_add(patience);
        loop {
            match self.sampler.try_lock() {
                Ok(sampler) => return Some(sampler),
                Err(TryLockError::Poisoned(poisoned)) => return Some(poisoned.into_inner()),
                Err(TryLockError::WouldBlock) => {}
            }
            let (now, sample_began) = (clock::awake(), self.sample_began.load(Ordering::Relaxed));
            if now >= until || (sample_began != 0 && now >= sample_began.saturating_add(patience)) {
                return None;
            }
            std::thread::sleep(POLL_INTERVAL);
        }
    }

    /// There never was a view, and a file of it does not answer.
    pub(crate) fn hangs(&self) -> Error {
        Error::Read {
            file: self.membership.load().path().to_owned(),
            source: std::io::ErrorKind::TimedOut.into(),
        }
    }
}

impl std::fmt::Debug for Container {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Container").field("identity", &self.identity).finish_non_exhaustive()
    }
}
