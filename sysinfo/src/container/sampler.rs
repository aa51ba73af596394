//! Takes a sample of a container and derives its view. One thread at a time does that.

use std::cell::RefCell;
use std::sync::Arc;
use std::sync::atomic::Ordering;

use super::{Container, MEMBERSHIP_BOUND};
use crate::Error;
use crate::cgroup_namespace;
use crate::clock;
use crate::context::{Context, OpenGuard};
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
use crate::stat_sampler::StatSampler;
use crate::stats::{StatSet, Stats};
use crate::tasks::Counter;
use crate::view::{Clock, Cpu, Origin, View};

thread_local! {
    /// Buffer for the texts of kernel files.
    static TEXT: RefCell<Vec<u8>> = const { RefCell::new(Vec::new()) };
}

/// What the thread that takes a sample needs.
pub(super) struct Sampler {
    pub(super) checked: u64,
    /// Counts the container as one with open files while this is set.
    pub(super) open: Option<OpenGuard>,
    pub(super) source: Box<dyn Source>,
    pub(super) stats: StatSampler,
    pub(super) huge: HugeFiles,
    pub(super) nodes: NodeFiles,
    pub(super) sample: Sample,
    pub(super) clock: CpuClock,
    /// Processor time at the last count of threads, and counts skipped since.
    pub(super) busy_at_count: u64,
    pub(super) skipped: u32,
    /// Number of counts taken.
    pub(super) round: usize,
    /// Buffer for the counter record.
    pub(super) record: Vec<u8>,
}

impl Container {
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
        // The kernel does not count idle time during a suspend.
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
        TEXT.with_borrow_mut(|text| {
            if let Ok(text) = context.proc.read_of(init.pid, "cgroup", text)
                && !self.membership.load().has_text(text)
                // The pid may have been reused.
                && !self.is_gone()
            {
                let membership = cgroup_namespace::membership(&context.proc, init.pid, text);
                let membership = Arc::new(membership);
                let limit = context.options.memory_limit;
                sampler.source = source::open(&context.hierarchies, &membership, limit);
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
                sampler.stats.follow(StatFiles::new(&context.hierarchies, &membership));
                self.membership.store(membership);
            }
        });
    }

    pub(super) fn count_threads(
        &self,
        sampler: &mut Sampler,
        context: &Context,
        counter: &mut Counter,
    ) {
        let now = clock::awake();
        let busy = sampler.sample.busy.total();
        let used = busy.saturating_sub(sampler.busy_at_count);
        let unchanged = busy == sampler.busy_at_count && busy != 0 && !self.activity.is_new();
        sampler.busy_at_count = busy;
        // Reading the state of each thread is expensive, and a thread that does not run does not
        // change its state. If no processor time was used, the threads are counted only every
        // fourth time.
        if unchanged && sampler.skipped < 3 {
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
    fn remember(&self, sampler: &mut Sampler, context: &Context) {
        if let (Some(store), Some((slot, key))) = (context.counter_store.get(), self.counter_record)
        {
            let words = self.activity.words().into_iter().chain(sampler.clock.words());
            store.write(slot, key, words, &mut sampler.record);
        }
    }
}
