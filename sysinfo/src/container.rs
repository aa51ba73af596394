//! One container: its first process, its cgroups, and its current [`View`].
//!
//! A view whose groups are younger than the age bound is returned as it is. Otherwise one thread
//! takes a new sample of the groups that its request is for, and the others stay as they are;
//! other threads return the last view, or wait for the sample if that view is older than a second.
//! A read of a kernel file that hangs blocks only the thread that reads: the waiting threads have a
//! deadline, after which they return the last view, however old. The view of one container must
//! never be returned for another. Start reading at [`Container::view`].

mod identity;
mod sampler;

use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, TryLockError};
use std::time::Duration;

use ambit_kernel::lock;
use arc_swap::{ArcSwap, ArcSwapOption};

pub(crate) use self::identity::{Identity, Init, Part};
use self::sampler::Sampler;
use crate::Error;
use crate::account::Account;
use crate::account::budget::Charge;
use crate::activity::Activity;
use crate::clock;
use crate::context::Context;
use crate::counter_store;
use crate::cpu::CpuClock;
use crate::membership::Membership;
use crate::sample::Busy;
use crate::source::Source;
use crate::source::huge::HugeFiles;
use crate::source::nodes::NodeFiles;
use crate::stat_sampler::StatSampler;
use crate::stats::StatSet;
use crate::tasks::Counter;
use crate::view::View;

/// Age in nanoseconds above which a view is not returned without waiting for a new sample.
const HARD_BOUND: u64 = 1_000_000_000;
/// Age in nanoseconds below which every request takes a new sample: a container engine may still
/// move the container and set its limits.
pub(crate) const SETUP_TIME: u64 = 2_000_000_000;
/// The length of a lease of a container that is being set up, in ns: less than a tick of the kernel,
/// but a program that reads a byte at a time does not cause a sample for each.
const SHORT_LEASE: u64 = 1_000_000;
/// How much longer than it is asked to the kernel keeps attributes: it counts in ticks of at most
/// 10 ms, and rounds up twice.
const TICKS: u64 = 20_000_000;
/// How often a thread that waits for a sample tries the lock.
const POLL_INTERVAL: Duration = Duration::from_millis(1);
/// How often the cgroup of the first process is read again: runtimes move it while they start.
const MEMBERSHIP_BOUND: u64 = 500_000_000;
/// How many counts of threads in a row are skipped while a container uses no processor time.
/// Reading the state of each thread is expensive, and a thread that does not run does not change
/// its state. But processes can be moved in and out.
const MOST_SKIPPED: u32 = 11;
/// How often it is looked up whether a young container is part of another one.
const YOUNG_MEMBERSHIP_BOUND: u64 = 20_000_000;

/// A container, or a cgroup of the host with a process that made a request.
pub struct Container {
    identity: Identity,
    /// The account that is charged for the container. For a cgroup of the host, it is that of the
    /// first caller.
    account: Arc<Account>,
    /// The charge for knowing the container.
    _charge: Charge,
    /// Slot and key of its counter record.
    counter_record: Option<(usize, counter_store::RecordKey)>,
    activity: Activity,
    view: ArcSwapOption<View>,
    /// Until when these groups of the view are on lease: the kernel shows them from its page cache.
    leased: Mutex<(u64, StatSet)>,
    /// Time of the last request.
    last_use: AtomicU64,
    membership: ArcSwap<Membership>,
    /// The container that it is part of, and the time of that lookup.
    enclosing: ArcSwapOption<Container>,
    enclosing_checked: AtomicU64,
    /// Start of the sample in progress; 0 if there is none.
    sample_began: AtomicU64,
    sampler: Mutex<Sampler>,
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
        let mut source = Source::new(&context.hierarchies, &membership, &context.options);
        // It is not known whether the machine was suspended before the container's start or since;
        // before is the usual case.
        let awake = clock::awake();
        let mut clock = CpuClock::starting_at(awake.saturating_sub(now.saturating_sub(start)));
        let activity = Activity::default();
        let store = context.counter_store.get().filter(|_| !identity.is_host);
        let counter_record = store.and_then(|store| {
            let key = identity.record_key(&membership);
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
            leased: Mutex::default(),
            last_use: AtomicU64::new(now),
            membership: ArcSwap::from_pointee(membership),
            enclosing: ArcSwapOption::empty(),
            enclosing_checked: AtomicU64::new(0),
            sample_began: AtomicU64::new(0),
            sampler: Mutex::new(Sampler {
                checked: now,
                source,
                init_cgroup: None,
                stats: StatSampler::default(),
                huge: HugeFiles::default(),
                nodes: NodeFiles::default(),
                busy: Busy::default(),
                busy_at_count: clock.used().total(),
                clock,
                // A predecessor's count is not reused: the first count is not skipped.
                skipped: MOST_SKIPPED,
                round: 0,
            }),
        }
    }

    /// Returns the account that is charged for the container.
    pub(crate) fn account(&self) -> &Arc<Account> {
        &self.account
    }

    /// Its cgroups.
    pub fn membership(&self) -> Arc<Membership> {
        self.membership.load_full()
    }

    /// Returns the last view, if there is one.
    pub fn last_view(&self) -> Option<Arc<View>> {
        self.view.load_full()
    }

    /// Returns the container that this pid namespace is part of; `Err` when that must be looked up
    /// again. For one that is part of none, that is until its engine has set it up, and when its
    /// first process was moved to another cgroup.
    pub(crate) fn enclosing(&self, now: u64) -> Result<Option<Arc<Self>>, ()> {
        let enclosing = self.enclosing.load_full();
        if self.identity.init.is_none() || self.identity.part.is_some() {
            return Ok(enclosing);
        }
        let checked = self.enclosing_checked.load(Ordering::Acquire);
        let bound = match enclosing {
            _ if self.is_young(now) => YOUNG_MEMBERSHIP_BOUND,
            None if !self.is_young(checked) => return Ok(None),
            _ => MEMBERSHIP_BOUND,
        };
        if now.saturating_sub(checked) > bound { Err(()) } else { Ok(enclosing) }
    }

    /// Sets what [`Self::enclosing`] returns from `now` on.
    pub(crate) fn set_enclosing(&self, enclosing: Option<Arc<Self>>, now: u64) {
        self.enclosing.store(enclosing);
        self.enclosing_checked.store(now, Ordering::Release);
    }

    /// True for a pid namespace that is part of another container.
    pub(crate) fn is_nested(&self) -> bool {
        self.enclosing.load().is_some()
    }

    /// Returns the slot of its counter record.
    pub(crate) fn counter_slot(&self) -> Option<usize> {
        self.counter_record.map(|(slot, _)| slot)
    }

    /// True when the load sampler does not sample the container: its threads must be counted for
    /// the view.
    pub(crate) fn is_overdue(&self) -> bool {
        if self.identity.is_host {
            return self.activity.is_new();
        }
        self.activity.is_stale(clock::awake())
    }

    /// Simulates that the load sampler has stopped sampling the container.
    #[cfg(test)]
    pub(crate) fn miss_counts(&self) {
        self.activity.restore(self.activity.words(), 1);
    }

    /// Returns the time of the last request for its numbers.
    pub(crate) fn last_use(&self) -> u64 {
        self.last_use.load(Ordering::Relaxed)
    }

    /// Returns a view of which these groups are recent at `now`.
    pub(crate) fn view(
        &self,
        now: u64,
        context: &Context,
        wanted: StatSet,
    ) -> Result<Arc<View>, Error> {
        let (until, leased) = *self.lock_leased();
        // What the kernel shows and what else is asked for agree until the lease ends.
        let wanted = if now < until { wanted.without(leased) } else { wanted };
        self.view_within(now, context, wanted, context.options.age_bound)
    }

    /// Takes a lease of these groups: until it ends, views show what the returned one does. Returns
    /// its length, which is [`SHORT_LEASE`] for a container that is being set up.
    pub(crate) fn lease(
        &self,
        context: &Context,
        wanted: StatSet,
        length: u64,
    ) -> Result<(Arc<View>, u64), Error> {
        // A reader can have the kernel ask at any time (`AT_STATX_FORCE_SYNC`), so this view may be
        // some milliseconds old.
        let view = self.view_within(clock::now(), context, wanted, length / 4)?;
        let now = clock::now();
        let length = if self.is_young(now) { length.min(SHORT_LEASE) } else { length };
        *self.lock_leased() = (now.saturating_add(length + TICKS), wanted);
        Ok((view, length))
    }

    fn lock_leased(&self) -> MutexGuard<'_, (u64, StatSet)> {
        lock(&self.leased)
    }

    fn view_within(
        &self,
        now: u64,
        context: &Context,
        wanted: StatSet,
        age: u64,
    ) -> Result<Arc<View>, Error> {
        self.last_use.store(now, Ordering::Relaxed);
        let since = |time: u64| {
            self.view.load_full().filter(|view| view.stats.taken.oldest(wanted) >= time)
        };
        if !self.is_young(now)
            && let Some(view) = since(now.saturating_sub(age))
        {
            return Ok(view);
        }
        let mut sampler = match self.sampler.try_lock() {
            Ok(sampler) => sampler,
            Err(TryLockError::Poisoned(poisoned)) => poisoned.into_inner(),
            Err(TryLockError::WouldBlock) => {
                if let Some(view) = since(now.saturating_sub(HARD_BOUND)) {
                    return Ok(view);
                }
                let Some(sampler) = self.lock_within(context.options.patience) else {
                    return self.view.load_full().ok_or_else(|| self.hangs());
                };
                if let Some(view) = since(now) {
                    return Ok(view);
                }
                sampler
            }
        };
        match self.refresh(&mut sampler, context, wanted) {
            Ok(view) => Ok(view),
            // The cgroup is being removed, or a file fails: the last good numbers of this container
            // are shown.
            Err(error) => self.view.load_full().ok_or(error),
        }
    }

    /// Counts threads and ages the load averages. Called by the load sampler.
    pub(crate) fn sample_load(&self, context: &Context, counter: &mut Counter) {
        // A container whose files hang does not delay the sampling of others.
        let Some(mut sampler) = self.lock_within(HARD_BOUND) else { return };
        if !self.activity.is_new() {
            // Of a container that does not run, nothing else is read.
            if sampler.skipped < MOST_SKIPPED
                && self.read_usage(&mut sampler).is_ok()
                && sampler.is_unchanged()
            {
                sampler.skipped += 1;
                self.activity.record_unchanged(clock::awake());
                return;
            }
            if self.refresh(&mut sampler, context, StatSet::TIMES).is_err() {
                self.activity.record_unknown(clock::awake());
                return;
            }
        }
        self.count_threads(&mut sampler, context, counter);
        self.remember(&sampler, context);
    }

    /// Closes the kept descriptors; the next sample opens them again.
    pub(crate) fn close_files(&self) {
        if let Ok(mut sampler) = self.sampler.try_lock() {
            sampler.source.close();
            sampler.huge.close();
            sampler.nodes.close();
            sampler.stats.close();
            sampler.init_cgroup = None;
        }
    }

    /// Locks the sampler, unless a sample has been in progress for this long. The deadline is that
    /// of the sample, not of the wait: a thread that comes late waits for the rest only.
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

    /// The error for a container without a view whose file hangs.
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
