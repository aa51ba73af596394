//! The processors a container is shown, and counters of their time that never decrease.
//!
//! The kernel tells how much processor time a cgroup used, but not on which processors (v2), and
//! counts no idle time for it. [`CpuClock`] turns usage into the `cpu` lines of `/proc/stat`: each
//! visible processor gets the time that the machine was awake, divided into used and idle time.
//! Used time that exceeds what the visible processors can show is carried to the next intervals, up
//! to two seconds for each processor; no processor is more than fully busy.

use serde::{Deserialize, Serialize};

use crate::clock::TICK;
use crate::cpuset::CpuSet;
use crate::host::Host;
use crate::sample::{Busy, Quota, Sample};
use crate::view::{Cpu, Times};

/// How many processors a container is shown.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, Deserialize, Serialize)]
#[serde(rename_all = "lowercase")]
pub enum CpuPolicy {
    /// The processors of its cpuset, as many as its quota can keep busy.
    #[default]
    Quota,
    /// The processors of its cpuset.
    Cpuset,
}

/// Returns the processors a container is shown: at least one, and only online ones.
#[must_use]
pub fn visible(sample: &Sample, host: &Host, policy: CpuPolicy) -> CpuSet {
    let online = &host.online;
    let allowed = sample.cpus.as_ref().map(|cpus| cpus.intersection(online));
    let allowed = allowed.filter(|cpus| !cpus.is_empty()).unwrap_or_else(|| online.clone());
    let count = match policy {
        CpuPolicy::Quota => sample.quota.map_or(usize::MAX, Quota::processors),
        CpuPolicy::Cpuset => usize::MAX,
    };
    host.topology.choose(&allowed, count, sample.quota_of)
}

/// Time of one processor in nanoseconds.
#[derive(Debug, Clone, Copy, Default)]
struct Spent {
    user: u64,
    nice: u64,
    system: u64,
    idle: u64,
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
}

impl CpuClock {
    /// Creates a clock whose first interval is the life of the container so far.
    #[must_use]
    pub fn starting_at(start: u64) -> Self {
        Self { at: start, ..Self::default() }
    }

    /// The words of a counter record: the whole state.
    pub(crate) fn words(&self) -> impl Iterator<Item = u64> {
        let spent = |spent: &Spent| [spent.user, spent.nice, spent.system, spent.idle];
        let Busy { user, nice, system, per_cpu } = &self.last;
        let first = [self.at, u64::from(self.started), *user, *nice, *system];
        let counts = [self.spent.len() as u64, per_cpu.len() as u64];
        let first = first.into_iter().chain(spent(&self.carried)).chain(counts);
        let per_cpu = per_cpu.iter().flat_map(|&(user, system)| [user, system]);
        first.chain(self.spent.iter().flat_map(spent)).chain(per_cpu)
    }

    /// Restores a clock from the words of a record; their time is capped at `now`.
    pub(crate) fn restored(words: &mut impl Iterator<Item = u64>, now: u64) -> Self {
        let mut next = || words.next().unwrap_or(0);
        let (at, started) = (next().min(now), next() != 0);
        let (user, nice, system) = (next(), next(), next());
        let carried = Spent { user: next(), nice: next(), system: next(), idle: next() };
        let (spent, per_cpu) = (next().min(1 << 16), next().min(1 << 16));
        let spent = (0..spent)
            .map(|_| Spent { user: next(), nice: next(), system: next(), idle: next() })
            .collect();
        let per_cpu = (0..per_cpu).map(|_| (next(), next())).collect();
        Self { at, last: Busy { user, nice, system, per_cpu }, carried, spent, started }
    }

    /// Usage at the end of the last interval.
    pub(crate) fn used(&self) -> &Busy {
        &self.last
    }

    /// Resets the usage counters: the container was moved to a cgroup that counts from 0.
    pub(crate) fn change_cgroup(&mut self) {
        (self.last, self.carried, self.started) = (Busy::default(), Spent::default(), false);
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
            idle: 0,
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
            spent.idle = spent.idle.saturating_add(*room);
            left -= 1;
        }
        // Time used before the container's first process, or before the container was known,
        // belongs to no interval and is not carried.
        pool.cut(if self.started { CARRY_BOUND.saturating_mul(count) } else { 0 });
        self.carried = pool;
        self.started = true;
        self.last.clone_from(busy);
    }

    /// Returns the processor times of a view.
    #[must_use]
    pub fn view(&self, visible: CpuSet) -> Cpu {
        let mut total = Times::default();
        for spent in &self.spent {
            let times = spent.times();
            total.user += times.user;
            total.nice += times.nice;
            total.system += times.system;
            total.idle += times.idle;
        }
        let spent = |cpu: u32| self.spent.get(cpu as usize).copied().unwrap_or_default();
        let times = visible.iter().map(|cpu| (cpu, spent(cpu).times())).collect();
        Cpu { online: visible, times, total, ..Cpu::default() }
    }

    /// Returns idle nanoseconds, summed over all processors that were ever visible.
    #[must_use]
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

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    const SECOND: u64 = 1_000_000_000;

    fn sum(times: &Times) -> u64 {
        times.user + times.nice + times.system + times.idle
    }

    #[test]
    fn half_a_quota_is_half_a_processor() {
        let one = CpuSet::first(1);
        let mut clock = CpuClock::starting_at(0);
        clock.advance(0, &Busy::default(), &one);
        clock.advance(10 * SECOND, &Busy { user: 5 * SECOND, ..Busy::default() }, &one);
        let cpu = clock.view(one);
        assert_eq!((cpu.total.user, cpu.total.idle), (500, 500));
        assert_eq!(cpu.times[0].1, cpu.total);
    }

    #[test]
    fn usage_on_hidden_processors_is_shown_on_visible_ones() {
        let visible = CpuSet::first(1);
        let mut clock = CpuClock::starting_at(0);
        clock.advance(0, &Busy::default(), &visible);
        let busy = Busy { user: SECOND, per_cpu: vec![(0, 0), (SECOND, 0)], ..Busy::default() };
        clock.advance(2 * SECOND, &busy, &visible);
        assert_eq!(clock.view(visible).total.user, 100);
    }

    #[test]
    fn what_a_busy_processor_cannot_show_is_shown_on_the_others() {
        let visible = CpuSet::first(2);
        let mut clock = CpuClock::starting_at(0);
        clock.advance(0, &Busy::default(), &visible);
        let per_cpu = vec![(0, 0), (10 * SECOND, 0)];
        let busy = Busy { user: 18 * SECOND, per_cpu, ..Busy::default() };
        clock.advance(10 * SECOND, &busy, &visible);
        let cpu = clock.view(visible);
        assert_eq!([0, 1].map(|cpu_at| cpu.times[cpu_at].1.user), [800, 1000]);
    }

    #[test]
    fn at_most_two_seconds_are_carried() {
        // A real-time task uses two processors for an hour; one is shown.
        let one = CpuSet::first(1);
        let mut clock = CpuClock::starting_at(0);
        let mut busy = Busy::default();
        for second in 1..=3600 {
            busy.user = 2 * second * SECOND;
            clock.advance(second * SECOND, &busy, &one);
        }
        assert_eq!(clock.idle(), 0);
        clock.advance(3610 * SECOND, &busy, &one);
        assert_eq!(clock.idle(), 8 * SECOND);
        clock.advance(3620 * SECOND, &busy, &one);
        assert_eq!(clock.idle(), 18 * SECOND);
    }

    #[test]
    fn a_new_division_of_counted_time_adds_nothing() {
        let one = CpuSet::first(1);
        let mut clock = CpuClock::starting_at(0);
        let per_cpu = |user, system| Busy { user, system, per_cpu: vec![(user, system)], nice: 0 };
        clock.advance(20 * SECOND, &per_cpu(10 * SECOND, 0), &one);
        clock.advance(21 * SECOND, &per_cpu(10 * SECOND, 0), &one);
        clock.advance(22 * SECOND, &per_cpu(8 * SECOND, 2 * SECOND), &one);
        let total = clock.view(one).total;
        assert_eq!((total.user, total.system, total.idle), (1000, 0, 1200));
    }

    #[test]
    fn a_cgroup_that_was_used_before_adds_no_more_than_fits() {
        let one = CpuSet::first(1);
        let mut clock = CpuClock::starting_at(0);
        let busy = |seconds| Busy { user: seconds * SECOND, ..Busy::default() };
        clock.advance(10 * SECOND, &busy(1), &one);
        clock.change_cgroup();
        clock.advance(11 * SECOND, &busy(500), &one);
        clock.advance(20 * SECOND, &busy(501), &one);
        assert_eq!(clock.view(one).total.user, 300);
    }

    #[test]
    fn the_quota_caps_the_cpuset_and_is_never_empty() {
        let host = Host { online: CpuSet::first(8), ..Host::default() };
        let mut sample = Sample { quota: Quota::new(150, 100), ..Sample::default() };
        assert_eq!(visible(&sample, &host, CpuPolicy::Quota).len(), 2);
        sample.cpus = CpuSet::parse(b"4-7");
        let two = visible(&sample, &host, CpuPolicy::Quota);
        assert_eq!((two.len(), two.intersection(&CpuSet::parse(b"4-7").unwrap())), (2, two));
        assert_eq!(visible(&sample, &host, CpuPolicy::Cpuset).to_string(), "4-7");
        sample.cpus = CpuSet::parse(b"64");
        assert_eq!(visible(&sample, &host, CpuPolicy::Cpuset), host.online);
    }

    proptest! {
        /// For any usage and visible set: nothing decreases, no processor is more than fully busy,
        /// and the lines of processors that stay visible add up to the aggregate.
        #[test]
        fn counters_never_decrease(steps in proptest::collection::vec(
            (0u64..3 * SECOND, 0u64..4 * SECOND, 0u64..4 * SECOND, 1u32..32), 1..40)) {
            let mut clock = CpuClock::starting_at(0);
            let (mut now, mut busy) = (0, Busy::default());
            let mut before: Option<Cpu> = None;
            for (wall, user, system, mask) in steps {
                now += wall;
                busy.user += user;
                busy.system += system;
                let visible: CpuSet = (0..5).filter(|cpu| mask >> cpu & 1 == 1).collect();
                clock.advance(now, &busy, &visible);
                let cpu = clock.view(visible);
                if let Some(before) = &before {
                    prop_assert!(cpu.total.user >= before.total.user);
                    prop_assert!(cpu.total.system >= before.total.system);
                    prop_assert!(cpu.total.idle >= before.total.idle);
                    for (number, times) in &before.times {
                        if let Some((_, later)) = cpu.times.iter().find(|(other, _)| other == number) {
                            prop_assert!(later.user >= times.user && later.idle >= times.idle);
                        }
                    }
                }
                for (_, times) in &cpu.times {
                    prop_assert!(sum(times) <= now / TICK + 1);
                }
                before = Some(cpu);
            }
        }

        /// Across restarts, after which time may be divided in another way: shown plus carried time
        /// is the used time, as far as the visible processors can show it.
        #[test]
        fn all_time_is_shown_once(steps in proptest::collection::vec(
            (1u64..3 * SECOND, 0u64..3 * SECOND, 0u64..=100, 1u32..5, any::<bool>()), 1..40)) {
            let mut clock = CpuClock::starting_at(0);
            let (mut now, mut used, mut fits) = (0, 0, true);
            clock.advance(now, &Busy::default(), &CpuSet::first(1));
            for (wall, more, percent, cpus, restart) in steps {
                if restart {
                    let words: Vec<_> = clock.words().collect();
                    clock = CpuClock::restored(&mut words.into_iter(), now);
                }
                now += wall;
                used += more;
                let user = used / 100 * percent;
                let busy = Busy { user, system: used - user, ..Busy::default() };
                let before = clock.idle();
                clock.advance(now, &busy, &CpuSet::first(cpus));
                let spent = clock.spent.iter().map(|one| one.user + one.nice + one.system);
                let shown: u64 = spent.sum();
                let carried = clock.carried.user + clock.carried.nice + clock.carried.system;
                fits &= carried < CARRY_BOUND * u64::from(cpus);
                prop_assert!(shown + carried <= used);
                prop_assert!(!fits || shown + carried == used, "{shown} + {carried} of {used}");
                prop_assert!(carried <= CARRY_BOUND * u64::from(cpus));
                prop_assert!(carried == 0 || clock.idle() == before, "carried by one that is idle");
            }
            // Idle until nothing is carried any more.
            let busy = clock.used().clone();
            clock.advance(now + 10 * SECOND, &busy, &CpuSet::first(1));
            let before = clock.idle();
            clock.advance(now + 11 * SECOND, &busy, &CpuSet::first(1));
            prop_assert_eq!(clock.idle(), before + SECOND);
        }

        #[test]
        fn lines_add_up_to_the_aggregate(used in proptest::collection::vec(0u64..9 * SECOND, 1..20)) {
            let visible = CpuSet::first(3);
            let mut clock = CpuClock::starting_at(0);
            let mut busy = Busy::default();
            for (step, used) in used.into_iter().enumerate() {
                busy.user += used;
                clock.advance((step as u64 + 1) * SECOND, &busy, &visible);
            }
            let cpu = clock.view(visible);
            let lines: u64 = cpu.times.iter().map(|(_, times)| sum(times)).sum();
            prop_assert_eq!(lines, sum(&cpu.total));
        }
    }
}
