//! The processors a container is shown, and counters of their time that never decrease.
//!
//! The kernel tells how much processor time a cgroup used, but not on which processors (v2), and
//! counts no idle time for it. [`CpuClock`] turns usage into the `cpu` lines of `/proc/stat`: each
//! visible processor gets the time that the machine was awake, divided into used and idle time.
//! Used time that exceeds what the visible processors can show is carried to the next intervals, up
//! to two seconds for each processor; no processor is more than fully busy.

#[cfg(test)]
mod tests;

use crate::clock::TICK;
use crate::context::Options;
use crate::cpuset::CpuSet;
use crate::host::Host;
use crate::policy::CpuPolicy;
use crate::sample::{Busy, Quota, Sample, Weight};
use crate::view::{Cpu, Times};

/// Returns the processors a container is shown: at least one, and only online ones.
pub fn visible(sample: &Sample, host: &Host, options: &Options) -> CpuSet {
    let online = &host.online;
    let allowed = sample.cpus.as_ref().map(|cpus| cpus.intersection(online));
    let allowed = allowed.filter(|cpus| !cpus.is_empty()).unwrap_or_else(|| online.clone());
    let by_quota = sample.quota.map_or(usize::MAX, Quota::processors);
    let count = match (options.cpu_policy, sample.weight) {
        (CpuPolicy::Cpuset, _) => usize::MAX,
        (CpuPolicy::Weight, Some(weight)) => {
            by_quota.min(by_weight(weight, options, allowed.len()))
        }
        _ => by_quota,
    };
    host.topology.choose(&allowed, count, sample.limit_of)
}

/// Returns the smallest number of processors that weigh this much, at least one and at most `most`.
fn by_weight(weight: Weight, options: &Options, most: usize) -> usize {
    let reaches = |processors: usize| {
        let shares = options.weight_base.saturating_mul(processors as u64);
        match weight {
            Weight::Shares(own) => shares >= own,
            Weight::Unified(own) => options.weight_formula.weight(shares) >= own,
        }
    };
    let (mut low, mut high) = (1, most.max(1));
    while low < high {
        let middle = low.midpoint(high);
        (low, high) = if reaches(middle) { (low, middle) } else { (middle + 1, high) };
    }
    low
}

/// Time of one processor in nanoseconds.
#[derive(Debug, Clone, Copy, Default)]
struct Spent {
    user: u64,
    nice: u64,
    system: u64,
    idle: u64,
    steal: u64,
    /// Unused time that is kept back: it is idle or stolen.
    unused: u64,
}

impl Spent {
    /// Reduces busy time to `most`, each part in proportion.
    fn cut(&mut self, most: u64) {
        let total = self.user.saturating_add(self.nice).saturating_add(self.system);
        if total > most {
            let part = |time: u64| {
                let part = u128::from(time) * u128::from(most) / u128::from(total);
                u64::try_from(part).unwrap_or(most).min(most)
            };
            (self.user, self.nice) = (part(self.user), part(self.nice));
            self.system = most.saturating_sub(self.user).saturating_sub(self.nice);
        }
    }

    fn times(self) -> Times {
        Times {
            user: self.user / TICK,
            nice: self.nice / TICK,
            system: self.system / TICK,
            idle: self.idle / TICK,
            steal: self.steal / TICK,
            ..Times::default()
        }
    }
}

/// Most time carried for each visible processor, in nanoseconds. The bursts of a quota and late
/// ticks carry a fraction of a second. Real-time tasks without a quota use more than can ever be
/// shown, and a container that is idle again must look idle.
const CARRY_BOUND: u64 = 2_000_000_000;

/// The accumulated time of one container.
#[derive(Debug, Default)]
pub struct CpuClock {
    /// End of the last interval.
    at: u64,
    /// Usage at that time.
    last: Busy,
    /// Used, but not yet shown.
    carried: Spent,
    /// By processor number; kept when a processor is no longer visible.
    spent: Vec<Spent>,
    started: bool,
    keep_back: u64,
}

impl CpuClock {
    /// Creates a clock whose first interval is the life of the container so far.
    pub fn starting_at(start: u64) -> Self {
        Self { at: start, ..Self::default() }
    }

    /// The words of a counter record: the whole state.
    pub(crate) fn words(&self) -> impl Iterator<Item = u64> {
        let spent = |spent: &Spent| [spent.user, spent.nice, spent.system, spent.idle];
        let Busy { user, nice, system, throttled, per_cpu } = &self.last;
        let first = [self.at, u64::from(self.started), *user, *nice, *system];
        let counts = [self.spent.len() as u64, per_cpu.len() as u64];
        let first = first.into_iter().chain(spent(&self.carried)).chain(counts);
        let per_cpu = per_cpu.iter().flat_map(|&(user, system)| [user, system]);
        let stolen = std::iter::once(*throttled).chain(self.spent.iter().map(|spent| spent.steal));
        let any = *throttled > 0 || self.spent.iter().any(|spent| spent.steal > 0);
        let stolen = stolen.filter(move |_| any);
        first.chain(self.spent.iter().flat_map(spent)).chain(per_cpu).chain(stolen)
    }

    /// Restores a clock from the words of a record; their time is capped at `now`.
    pub(crate) fn restored(words: &mut impl Iterator<Item = u64>, now: u64) -> Self {
        let mut next = || words.next().unwrap_or(0);
        let (at, started) = (next().min(now), next() != 0);
        let (user, nice, system) = (next(), next(), next());
        let spent = |[user, nice, system, idle]: [u64; 4]| Spent {
            user,
            nice,
            system,
            idle,
            ..Spent::default()
        };
        let carried = spent([next(), next(), next(), next()]);
        let (count, per_cpu) = (next().min(1 << 16), next().min(1 << 16));
        let mut spent: Vec<_> =
            (0..count).map(|_| spent([next(), next(), next(), next()])).collect();
        let per_cpu = (0..per_cpu).map(|_| (next(), next())).collect();
        let throttled = next();
        spent.iter_mut().for_each(|spent| spent.steal = next());
        let last = Busy { user, nice, system, throttled, per_cpu };
        Self { at, last, carried, spent, started, keep_back: 0 }
    }

    /// Usage at the end of the last interval.
    pub(crate) fn used(&self) -> &Busy {
        &self.last
    }

    /// Resets the usage counters: the container was moved to a cgroup that counts from 0.
    pub(crate) fn change_cgroup(&mut self) {
        (self.last, self.carried, self.started) = (Busy::default(), Spent::default(), false);
    }

    /// Sets how much unused time of each processor is kept back, in nanoseconds. The kernel counts
    /// throttled time when it ends, up to a period of the quota late, and time that was shown as
    /// idle cannot become stolen.
    pub(crate) fn keep_back(&mut self, time: u64) {
        self.keep_back = time;
    }

    /// Adds the interval up to `now`, in which `visible` processors were shown.
    pub fn advance(&mut self, now: u64, busy: &Busy, visible: &CpuSet) {
        let wall = now.saturating_sub(self.at);
        self.at = self.at.max(now);
        let count = visible.len() as u64;
        if let Some(last) = visible.iter().last()
            && self.spent.len() <= last as usize
        {
            self.spent.resize(last as usize + 1, Spent::default());
        }
        let mut pool = Spent {
            user: busy.user.saturating_sub(self.last.user),
            nice: busy.nice.saturating_sub(self.last.nice),
            system: busy.system.saturating_sub(self.last.system),
            ..Spent::default()
        };
        // When time already counted is divided in another way, one part decreases and the others
        // grow by time that was shown before. Only growth of the total is new.
        pool.cut(busy.total().saturating_sub(self.last.total()));
        pool.user = pool.user.saturating_add(self.carried.user);
        pool.nice = pool.nice.saturating_add(self.carried.nice);
        pool.system = pool.system.saturating_add(self.carried.system);
        // First the time of each visible processor, where the kernel gives it.
        let mut room: Vec<(u32, u64)> = visible.iter().map(|cpu| (cpu, wall)).collect();
        for (cpu, room) in &mut room {
            let index = *cpu as usize;
            let Some(&(user, system)) = busy.per_cpu.get(index) else { continue };
            let (user_before, system_before) =
                self.last.per_cpu.get(index).copied().unwrap_or_default();
            let spent = &mut self.spent[index];
            let user = user.saturating_sub(user_before);
            take(&mut pool.user, &mut spent.user, user, room);
            let system = system.saturating_sub(system_before);
            take(&mut pool.system, &mut spent.system, system, room);
        }
        // Then the rest, evenly. Processors with the least room come first, so that what they
        // cannot take goes to the others.
        room.sort_by_key(|&(_, room)| room);
        let mut left = count;
        for (cpu, room) in &mut room {
            let spent = &mut self.spent[*cpu as usize];
            for (pool, spent) in [
                (&mut pool.user, &mut spent.user),
                (&mut pool.nice, &mut spent.nice),
                (&mut pool.system, &mut spent.system),
            ] {
                let share = pool.div_ceil(left);
                take(pool, spent, share, room);
            }
            spent.unused = spent.unused.saturating_add(*room);
            left -= 1;
        }
        // Throttled time is a part of the unused time. The kernel may count more, because each of
        // the machine's processors counts its own.
        let mut throttled = busy.throttled.saturating_sub(self.last.throttled);
        room.sort_by_key(|&(cpu, _)| self.spent[cpu as usize].unused);
        for (left, (cpu, _)) in (1..=count).rev().zip(&room) {
            let Spent { steal, unused, idle, .. } = &mut self.spent[*cpu as usize];
            let share = throttled.div_ceil(left).min(*unused);
            throttled -= share;
            *unused -= share;
            *steal = steal.saturating_add(share);
            *idle = idle.saturating_add(unused.saturating_sub(self.keep_back));
            *unused = (*unused).min(self.keep_back);
        }
        // Time used before the container's first process, or before the container was known,
        // belongs to no interval and is not carried.
        pool.cut(if self.started { CARRY_BOUND.saturating_mul(count) } else { 0 });
        self.carried = pool;
        self.started = true;
        self.last.clone_from(busy);
    }

    /// Returns the processor times of a view.
    pub fn view(&self, visible: CpuSet) -> Cpu {
        let mut total = Times::default();
        for spent in &self.spent {
            let times = spent.times();
            total.user += times.user;
            total.nice += times.nice;
            total.system += times.system;
            total.idle += times.idle;
            total.steal += times.steal;
        }
        let spent = |cpu: u32| self.spent.get(cpu as usize).copied().unwrap_or_default();
        // Views are kept for each container, so that there is no room to spare in them.
        let mut times = Vec::with_capacity(visible.len());
        times.extend(visible.iter().map(|cpu| (cpu, spent(cpu).times())));
        Cpu { online: visible, times, total, ..Cpu::default() }
    }

    /// Returns idle nanoseconds, summed over all processors that were ever visible.
    pub fn idle(&self) -> u64 {
        self.spent.iter().fold(0, |sum, spent| sum.saturating_add(spent.idle))
    }
}

/// Moves time from the pool to a processor, at most `most` and what there is room for.
fn take(pool: &mut u64, spent: &mut u64, most: u64, room: &mut u64) {
    let taken = most.min(*pool).min(*room);
    *pool -= taken;
    *room -= taken;
    *spent = spent.saturating_add(taken);
}
