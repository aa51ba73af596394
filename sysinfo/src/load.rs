//! Load averages by the kernel's own arithmetic (`kernel/sched/loadavg.c`), from the number of a
//! container's runnable and uninterruptible threads, counted every five seconds. Floating point
//! must not be used: the fixed-point results are those of the kernel.

use crate::view::Load;

/// Nanoseconds between two counts of threads.
pub(crate) const INTERVAL: u64 = 5_000_000_000;

/// One thread, in the fixed point of the averages.
pub(crate) const ONE: u64 = 1 << Load::SHIFT;
/// `1/exp(5s/1min)`, `1/exp(5s/5min)`, `1/exp(5s/15min)` in that fixed point.
const DECAY: [u64; 3] = [1884, 2014, 2037];

impl Load {
    /// The averages after `intervals` more intervals with `active` threads in each.
    #[must_use]
    pub fn after(self, intervals: u64, active: u64) -> Self {
        self.after_average(intervals, active.saturating_mul(ONE))
    }

    /// The same with a number of threads in fixed point. At most 2000 intervals are computed, after
    /// which the averages have converged.
    pub(crate) fn after_average(self, intervals: u64, active: u64) -> Self {
        let mut load = self;
        for _ in 0..intervals.min(2000) {
            load = Self {
                one: step(load.one, DECAY[0], active),
                five: step(load.five, DECAY[1], active),
                fifteen: step(load.fifteen, DECAY[2], active),
            };
        }
        load
    }
}

fn step(load: u64, decay: u64, active: u64) -> u64 {
    let mut new = load.saturating_mul(decay).saturating_add(active.saturating_mul(ONE - decay));
    if active >= load {
        new = new.saturating_add(ONE - 1);
    }
    new / ONE
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn one_busy_thread_tends_to_one() {
        let minute = Load::default().after(12, 1);
        assert!((1250..1350).contains(&minute.one), "63 % after a minute: {}", minute.one);
        let long = Load::default().after(2000, 1);
        assert_eq!((long.one, long.five, long.fifteen), (ONE, ONE, ONE));
    }

    #[test]
    fn an_idle_container_tends_to_zero() {
        let busy = Load { one: 5 * ONE, five: 5 * ONE, fifteen: 5 * ONE };
        let later = busy.after(2000, 0);
        assert_eq!((later.one, later.fifteen), (0, 0));
    }
}
