//! Load averages and tasks of one container between two counts, without a lock: the sampler
//! writes, everybody reads.

use std::sync::atomic::{AtomicU64, Ordering};

use crate::load::INTERVAL;
use crate::tasks::Counts;
use crate::view::{Load, Tasks};

/// The last count and the averages up to it.
#[derive(Debug, Default)]
pub(crate) struct Activity {
    one: AtomicU64,
    five: AtomicU64,
    fifteen: AtomicU64,
    running: AtomicU64,
    blocked: AtomicU64,
    threads: AtomicU64,
    newest_pid: AtomicU64,
    /// When it was counted; 0 for never.
    counted: AtomicU64,
}

impl Activity {
    /// The averages, when they were taken, and the newest process, for a successor.
    pub(crate) fn words(&self) -> [u64; 8] {
        self.all().map(|word| word.load(Ordering::Relaxed))
    }

    /// Goes on from what a predecessor had.
    pub(crate) fn restore(&self, words: [u64; 8]) {
        self.all().iter().zip(words).for_each(|(own, word)| own.store(word, Ordering::Relaxed));
    }

    fn all(&self) -> [&AtomicU64; 8] {
        let Self { one, five, fifteen, running, blocked, threads, newest_pid, counted } = self;
        [one, five, fifteen, counted, newest_pid, running, blocked, threads]
    }

    /// When threads were last counted.
    pub(crate) fn counted(&self) -> u64 {
        self.counted.load(Ordering::Relaxed)
    }

    /// Takes a count; `newest` is in the container's own numbering.
    pub(crate) fn record(&self, counts: Counts, newest: Option<u64>, now: u64) {
        self.running.store(counts.running, Ordering::Relaxed);
        self.blocked.store(counts.blocked, Ordering::Relaxed);
        self.threads.store(counts.threads, Ordering::Relaxed);
        self.newest_pid.fetch_max(newest.unwrap_or(0), Ordering::Relaxed);
        self.age(now);
    }

    /// Nothing ran since the last count: what was blocked is taken to be still blocked.
    pub(crate) fn record_idle(&self, now: u64) {
        self.running.store(0, Ordering::Relaxed);
        self.age(now);
    }

    fn age(&self, now: u64) {
        let before = self.counted.swap(now, Ordering::Relaxed);
        if before == 0 {
            return;
        }
        let half = INTERVAL / 2;
        let intervals = now.saturating_sub(before).saturating_add(half) / INTERVAL;
        let running = self.running.load(Ordering::Relaxed);
        let active = running.saturating_add(self.blocked.load(Ordering::Relaxed));
        let load = self.load().after(intervals, active);
        self.one.store(load.one, Ordering::Relaxed);
        self.five.store(load.five, Ordering::Relaxed);
        self.fifteen.store(load.fifteen, Ordering::Relaxed);
    }

    /// The averages.
    pub(crate) fn load(&self) -> Load {
        Load {
            one: self.one.load(Ordering::Relaxed),
            five: self.five.load(Ordering::Relaxed),
            fifteen: self.fifteen.load(Ordering::Relaxed),
        }
    }

    /// The tasks; `threads` is what the pids controller says, where there is one.
    pub(crate) fn tasks(&self, threads: Option<u64>) -> Tasks {
        let newest_pid = self.newest_pid.load(Ordering::Relaxed).max(1);
        Tasks {
            total: threads.unwrap_or_else(|| self.threads.load(Ordering::Relaxed)).max(1),
            running: self.running.load(Ordering::Relaxed).max(1),
            blocked: self.blocked.load(Ordering::Relaxed),
            newest_pid,
            forks: newest_pid,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn averages_start_with_the_second_count() {
        let activity = Activity::default();
        let busy = Counts { running: 1, threads: 3, ..Counts::default() };
        activity.record(busy, Some(9), INTERVAL);
        assert_eq!(activity.load(), Load::default());
        activity.record(busy, Some(7), 2 * INTERVAL);
        assert!(activity.load().one > 0);
        let tasks = activity.tasks(None);
        assert_eq!((tasks.total, tasks.newest_pid, tasks.forks), (3, 9, 9));
        activity.record_idle(3 * INTERVAL);
        assert_eq!(activity.tasks(Some(4)).running, 1, "whoever reads this runs");
    }
}
