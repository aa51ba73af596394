//! Takes a sample of a container and derives its view. One thread at a time does that.

use std::cell::RefCell;
use std::os::fd::AsFd;
use std::sync::Arc;
use std::sync::atomic::Ordering;

use super::{Container, MEMBERSHIP_BOUND, MOST_SKIPPED};
use crate::Error;
use crate::cgroup_namespace;
use crate::clock;
use crate::context::Context;
use crate::cpu::{self, CpuClock};
use crate::derive;
use crate::hierarchy::Controller;
use crate::host::Host;
use crate::kernel_file::{KeptFile, ShortPath};
use crate::membership::Membership;
use crate::policy::{BootTime, StealPolicy};
use crate::sample::{Busy, Sample};
use crate::source::Source;
use crate::source::huge::HugeFiles;
use crate::source::nodes::NodeFiles;
use crate::stat_sampler::StatSampler;
use crate::stats::{StatSet, Stats};
use crate::tasks::Counter;
use crate::view::{Clock, Cpu, Origin, View};

thread_local! {
    /// Buffer for the texts of kernel files.
    static TEXT: RefCell<Vec<u8>> = const { RefCell::new(Vec::new()) };
    static COUNTER: RefCell<Counter> = RefCell::new(Counter::new());
    /// Buffer for a counter record.
    static RECORD: RefCell<Vec<u8>> = const { RefCell::new(Vec::new()) };
}

/// What the thread that takes a sample needs.
pub(super) struct Sampler {
    pub(super) checked: u64,
    pub(super) source: Source,
    /// The `cgroup` file of the first process, which it pins as its pidfd does.
    pub(super) init_cgroup: Option<KeptFile>,
    pub(super) stats: StatSampler,
    pub(super) huge: HugeFiles,
    pub(super) nodes: NodeFiles,
    /// Processor time when it was last read.
    pub(super) busy: Busy,
    pub(super) clock: CpuClock,
    /// Processor time at the last count of threads, and counts skipped since.
    pub(super) busy_at_count: u64,
    pub(super) skipped: u32,
    /// Number of counts taken.
    pub(super) round: usize,
}

impl Sampler {
    /// Reads these groups into a new sample; the processor time becomes [`Self::busy`].
    fn read(&mut self, groups: StatSet) -> Result<Sample, Error> {
        let busy = std::mem::take(&mut self.busy).emptied();
        let mut sample = Sample { busy, ..Sample::default() };
        let read = TEXT.with_borrow_mut(|text| self.source.sample(groups, &mut sample, text));
        self.busy = std::mem::take(&mut sample.busy);
        read.map(|()| sample)
    }

    /// True if no processor time was used since the last count of threads.
    pub(super) fn is_unchanged(&self) -> bool {
        let busy = self.busy.total();
        busy == self.busy_at_count && busy != 0
    }
}

impl Container {
    /// Reads only the processor time.
    pub(super) fn read_usage(&self, sampler: &mut Sampler) -> Result<(), Error> {
        self.sample_began.store(clock::awake(), Ordering::Relaxed);
        let read = sampler.read(StatSet::USAGE);
        self.sample_began.store(0, Ordering::Relaxed);
        read.map(drop)
    }

    /// Takes a sample and publishes the view.
    pub(super) fn refresh(
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
        mut wanted: StatSet,
    ) -> Result<Arc<View>, Error> {
        let now = clock::now();
        let last = self.view.load_full();
        // The load sampler counts for the readers of other files.
        let shows_tasks = wanted.contains(StatSet::THREADS) || wanted.contains(StatSet::TIMES);
        let must_count = shows_tasks && self.is_overdue();
        if last.is_none() {
            wanted |= StatSet::BASE;
        }
        if must_count {
            // The count is compared with the processor time at the last one.
            wanted |= StatSet::TIMES;
        }
        self.follow(sampler, context, now);
        let mut sample = sampler.read(wanted)?;
        if must_count {
            COUNTER.with_borrow_mut(|counter| self.count_threads(sampler, context, counter));
        }
        let host = context.host.snapshot_for(wanted);
        if wanted.contains(StatSet::MEMORY) {
            self.sample_pools(sampler, &mut sample, &host, context)?;
        }
        let last = (wanted, last.as_deref());
        let mut view = self.derive(sampler, &sample, host, context, last, now);
        view.stats = sampler.stats.sample(wanted, now, &self.membership.load(), context);
        let view = Arc::new(view);
        self.view.store(Some(view.clone()));
        Ok(view)
    }

    /// Reads the memory that only some machines have: huge pages, and several nodes.
    fn sample_pools(
        &self,
        sampler: &mut Sampler,
        sample: &mut Sample,
        host: &Host,
        context: &Context,
    ) -> Result<(), Error> {
        let Sampler { huge, nodes, .. } = sampler;
        if !host.huge_pools.is_empty() {
            let membership = &self.membership.load();
            let (pools, found) = (&host.huge_pools, &mut sample.huge);
            TEXT.with_borrow_mut(|text| {
                huge.sample(pools, &context.hierarchies, membership, found, text)
            })?;
        }
        let membership = &self.membership.load();
        sample.nodes = TEXT
            .with_borrow_mut(|text| nodes.sample(host, &context.hierarchies, membership, text))?;
        Ok(())
    }

    /// Makes a view of the groups that were sampled; the others are those of the last view.
    fn derive(
        &self,
        sampler: &mut Sampler,
        sample: &Sample,
        host: Arc<Host>,
        context: &Context,
        (sampled, last): (StatSet, Option<&View>),
        now: u64,
    ) -> View {
        let kept = |group| last.filter(|_| !sampled.contains(group));
        let (memory, swap, nodes) = match kept(StatSet::MEMORY) {
            Some(last) => (last.memory, last.swap, last.nodes.clone()),
            None => {
                let mut swap = derive::swap(sample, &host, context.options.swap);
                if !context.options.zswap {
                    (swap.zswap, swap.zswapped) = (0, 0);
                }
                let nodes = sample.nodes.as_ref().map(|nodes| nodes.allowed.clone());
                (derive::memory(sample, &host), swap, nodes)
            }
        };
        let mut tasks = self.activity.tasks(sample.threads);
        if let Some(last) = kept(StatSet::THREADS) {
            tasks.total = last.tasks.total;
        }
        let cpu = match kept(StatSet::PROCESSORS) {
            Some(last) => last.cpu.clone(),
            None => {
                let seed = sample.limit_of;
                let visible = cpu::visible(sample, &host, &context.options);
                if sampled.contains(StatSet::TIMES) {
                    // The kernel does not count idle time during a suspend.
                    if context.options.steal == StealPolicy::Throttled {
                        let period = sample.quota.map_or(0, |quota| quota.period);
                        sampler.clock.keep_back(period.saturating_mul(1000));
                    }
                    sampler.clock.advance(clock::awake(), &sampler.busy, &visible);
                    self.remember(sampler, context);
                }
                let possible = context.options.possible;
                Cpu { seed, possible, ..sampler.clock.view(visible) }
            }
        };
        View {
            origin: if self.identity.is_host { Origin::Host } else { Origin::Container },
            memory,
            swap,
            tasks,
            load: self.activity.load(),
            clock: self.clock(&host, context.options.boot_time, sampler.clock.idle(), now),
            nodes,
            cpu,
            stats: Stats::default(),
            host,
        }
    }

    fn clock(&self, host: &Host, policy: BootTime, idle: u64, now: u64) -> Clock {
        let host_clock = Clock { uptime: now, idle, boot_time: host.boot_time };
        let Some(init) = &self.identity.init else { return host_clock };
        match init.offset {
            // The kernel adds the offset to what it shows in a time namespace. Added here as well,
            // uptime, boot time, start times and CLOCK_BOOTTIME agree.
            Some(offset) => Clock {
                uptime: now.saturating_add_signed(offset).min(now),
                boot_time: host.boot_time.saturating_sub_signed(offset.div_euclid(1_000_000_000)),
                idle,
            },
            None => Clock {
                uptime: now.saturating_sub(init.start),
                boot_time: match policy {
                    BootTime::Host => host.boot_time,
                    // The time of day less the uptime, rounded so that it does not jitter.
                    BootTime::Container => {
                        host.boot_time.saturating_add(init.start / 1_000_000_000)
                    }
                },
                ..host_clock
            },
        }
    }

    /// Switches to the cgroups of the first process if that was moved.
    fn follow(&self, sampler: &mut Sampler, context: &Context, now: u64) {
        if now.saturating_sub(sampler.checked) < MEMBERSHIP_BOUND && !self.is_young(now) {
            return;
        }
        sampler.checked = now;
        let Some(init) = self.identity.init.as_ref().filter(|_| !self.is_inside()) else { return };
        let file = match sampler.init_cgroup.take() {
            Some(file) => file,
            None => {
                let path = ShortPath::of_process(init.pid, &"cgroup");
                match KeptFile::open(context.proc.as_fd(), path.as_str()) {
                    // The pid may have been reused.
                    Ok(Some(file)) if !self.is_gone() => file,
                    _ => return,
                }
            }
        };
        TEXT.with_borrow_mut(|text| {
            // It cannot be read once the process has ended.
            let Ok(text) = file.read(text) else { return };
            sampler.init_cgroup = Some(file);
            if !self.membership.load().has_text(text) {
                self.enter(
                    sampler,
                    context,
                    cgroup_namespace::membership(&context.proc, init.pid, text),
                );
            }
        });
    }

    /// Switches to other cgroups.
    fn enter(&self, sampler: &mut Sampler, context: &Context, membership: Membership) {
        let membership = Arc::new(membership);
        sampler.source = Source::new(&context.hierarchies, &membership, &context.options);
        let path = |one: &Membership| {
            context.hierarchies.path_of(Controller::Cpuacct, one).map(str::to_owned)
        };
        if path(&membership) == path(&self.membership.load()) {
            sampler.source.resume(sampler.clock.used());
        } else {
            sampler.clock.change_cgroup();
            sampler.busy_at_count = 0;
        }
        sampler.huge.close();
        sampler.nodes.close();
        sampler.stats.close();
        self.membership.store(membership);
        self.enclosing_checked.store(0, Ordering::Release);
    }

    pub(super) fn count_threads(
        &self,
        sampler: &mut Sampler,
        context: &Context,
        counter: &mut Counter,
    ) {
        let now = clock::awake();
        let busy = sampler.busy.total();
        let used = busy.saturating_sub(sampler.busy_at_count);
        let unchanged = sampler.is_unchanged() && !self.activity.is_new();
        sampler.busy_at_count = busy;
        if unchanged && sampler.skipped < MOST_SKIPPED {
            sampler.skipped += 1;
            self.activity.record_unchanged(now);
            return;
        }
        sampler.skipped = 0;
        sampler.round = sampler.round.wrapping_add(1);
        let Context { hierarchies, proc, counted, .. } = context;
        let shared = (hierarchies, &**proc, counted);
        let counts = counter.count_shared(shared, &self.membership.load(), sampler.round);
        let newest = counts.newest.and_then(|pid| {
            TEXT.with_borrow_mut(|text| {
                let status = context.proc.read_of(pid, "status", text).ok()?;
                crate::namespace_init::innermost_pid(status).map(u64::from)
            })
        });
        self.activity.record(counts, newest, used, now);
    }

    /// Writes the counter record. Called before the counters are shown, so that a reader never sees
    /// smaller ones later.
    pub(super) fn remember(&self, sampler: &Sampler, context: &Context) {
        if let (Some(store), Some((slot, key))) = (context.counter_store.get(), self.counter_record)
        {
            let words = self.activity.words().into_iter().chain(sampler.clock.words());
            RECORD.with_borrow_mut(|record| store.write(slot, key, words, record));
        }
    }
}
