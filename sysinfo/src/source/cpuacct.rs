//! Processor time of cgroup v1, exact and divided into user and system.
//!
//! The kernel has exact times in `cpuacct.usage_percpu`, and their division in `cpuacct.usage_all`,
//! which is sampled at each timer tick. A container under a quota wakes in step with the ticks, so
//! that its samples can be wrong by a fifth. Here the exact time is divided in proportion to the
//! samples, as the kernel does for processes (`cputime_adjust` in `kernel/sched/cputime.c`). No
//! result ever decreases. Start reading at [`Cpuacct::sample`].

use ambit_kernel::text::scan;

use super::{Cgroup, CgroupFile};
use crate::Error;
use crate::cpuset::CpuSet;
use crate::sample::Busy;

/// The files of one cgroup and their last values.
#[derive(Debug)]
pub(super) struct Cpuacct {
    sampled: CgroupFile,
    exact: CgroupFile,
    /// Samples at the last reading: processor number, user and system time, in the order of the
    /// file.
    ticks: Vec<(u64, u64, u64)>,
    /// Last values by processor number.
    known: Vec<Known>,
}

/// Values of one processor at the last reading.
#[derive(Debug, Clone, Copy, Default)]
struct Known {
    exact: u64,
    ticks: (u64, u64),
    user: u64,
    system: u64,
}

impl Cpuacct {
    pub(super) fn new(cgroup: &Cgroup) -> Self {
        let [sampled, exact] =
            ["cpuacct.usage_all", "cpuacct.usage_percpu"].map(|name| cgroup.file(name));
        Self { sampled, exact, ticks: Vec::new(), known: Vec::new() }
    }

    /// `false` when the kernel has no such file (before 4.9).
    pub(super) fn sample(&mut self, busy: &mut Busy, buffer: &mut Vec<u8>) -> Result<bool, Error> {
        let Some(text) = self.sampled.read(buffer)? else { return Ok(false) };
        self.ticks.clear();
        self.ticks.extend(parse(text));
        let exact = self.exact.read(buffer)?;
        let mut exact = exact.map(|text| scan::words(text).map(|n| scan::decimal(n).unwrap_or(0)));
        for &(cpu, user, system) in &self.ticks {
            // One number for each possible processor, in the order of `usage_all`.
            let exact = exact.as_mut().and_then(Iterator::next);
            let Ok(cpu) = usize::try_from(cpu) else { continue };
            if cpu > CpuSet::MAX as usize {
                continue;
            }
            if self.known.len() <= cpu {
                self.known.resize(cpu + 1, Known::default());
            }
            let known = &mut self.known[cpu];
            match exact {
                Some(exact) => known.advance(exact, (user, system)),
                None => (known.user, known.system) = (user, system),
            }
            if busy.per_cpu.len() <= cpu {
                busy.per_cpu.resize(cpu + 1, (0, 0));
            }
            busy.per_cpu[cpu] = (known.user, known.system);
            busy.user = busy.user.saturating_add(known.user);
            busy.system = busy.system.saturating_add(known.system);
        }
        Ok(true)
    }

    /// Continues from time that is already divided.
    pub(super) fn resume(&mut self, used: &Busy) {
        self.known.clear();
        self.known.extend(used.per_cpu.iter().map(|&(user, system)| Known::resumed(user, system)));
    }

    pub(super) fn files(&mut self) -> [&mut CgroupFile; 2] {
        [&mut self.sampled, &mut self.exact]
    }
}

impl Known {
    /// The samples of the earlier division are unknown: u64::MAX makes those of the first reading
    /// count as old.
    fn resumed(user: u64, system: u64) -> Self {
        let exact = user.saturating_add(system);
        Self { exact, ticks: (u64::MAX, u64::MAX), user, system }
    }

    fn advance(&mut self, exact: u64, ticks: (u64, u64)) {
        let spent = exact.saturating_sub(self.exact);
        let user = ticks.0.saturating_sub(self.ticks.0);
        let system = ticks.1.saturating_sub(self.ticks.1);
        // Without a new sample, time is divided in proportion to all samples so far.
        let (user, system) = if user == 0 && system == 0 { ticks } else { (user, system) };
        let all = u128::from(user) + u128::from(system);
        let share = (u128::from(spent) * u128::from(system)).checked_div(all).unwrap_or(0);
        let share = u64::try_from(share).unwrap_or(spent).min(spent);
        self.system = self.system.saturating_add(share);
        self.user = self.user.saturating_add(spent - share);
        self.exact = self.exact.max(exact);
        self.ticks = ticks;
    }
}

/// A header, then `cpu user system` in nanoseconds for each possible processor.
fn parse(text: &[u8]) -> impl Iterator<Item = (u64, u64, u64)> + '_ {
    scan::lines(text).skip(1).filter_map(|line| {
        let mut numbers = scan::words(line).map(|word| scan::decimal(word).unwrap_or(0));
        Some((numbers.next()?, numbers.next()?, numbers.next()?))
    })
}

#[cfg(any(test, feature = "fuzzing"))]
pub(super) fn add(text: &[u8], busy: &mut Busy) {
    for (cpu, user, system) in parse(text) {
        let mut known = Known::default();
        known.advance(user.saturating_add(system), (user, system));
        if cpu == busy.per_cpu.len() as u64 {
            busy.per_cpu.push((known.user, known.system));
        }
        busy.user = busy.user.saturating_add(known.user);
        busy.system = busy.system.saturating_add(known.system);
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    #[test]
    fn the_lines_of_usage_all_are_parsed() {
        let lines: Vec<_> = parse(b"cpu user system\n0 100 10\n1 200 20\n").collect();
        assert_eq!(lines, [(0, 100, 10), (1, 200, 20)]);
    }

    #[test]
    fn exact_time_is_divided_as_the_samples_are() {
        let mut known = Known::default();
        known.advance(1000, (900, 300));
        assert_eq!((known.user, known.system), (750, 250));
        known.advance(1100, (900, 300));
        assert_eq!((known.user, known.system), (825, 275), "no tick between: as before");
        known.advance(1200, (900, 400));
        assert_eq!((known.user, known.system), (825, 375));
        let mut unseen = Known::default();
        unseen.advance(77, (0, 0));
        assert_eq!((unseen.user, unseen.system), (77, 0));
    }

    #[test]
    fn a_successor_continues_the_division() {
        let mut known = Known::default();
        known.advance(1000, (900, 300));
        known.advance(2000, (900, 900));
        let before = (known.user, known.system);
        let mut known = Known::resumed(known.user, known.system);
        known.advance(2000, (900, 900));
        assert_eq!((known.user, known.system), before, "nothing was used meanwhile");
        known.advance(2100, (1000, 900));
        assert_eq!((known.user, known.system), (before.0 + 100, before.1));
    }

    proptest! {
        #[test]
        fn nothing_decreases_and_nothing_is_lost(steps: Vec<(u64, u64, u64)>) {
            let mut known = Known::default();
            for (exact, user, system) in steps {
                let before = known;
                known.advance(exact, (user, system));
                prop_assert!(known.user >= before.user && known.system >= before.system);
                prop_assert_eq!(known.user + known.system, known.exact);
            }
        }
    }
}
