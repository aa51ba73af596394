//! Load averages and task counts of one container, as of the last count of its threads. The load
//! sampler writes them and readers of views load them, without a lock: each number is an atomic of
//! its own. The arithmetic is in `load.rs`.

use std::sync::atomic::{AtomicU64, Ordering};

use crate::load::{self, INTERVAL};
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
    in_iowait: AtomicU64,
    threads: AtomicU64,
    newest_pid: AtomicU64,
    /// Time of the last count, in nanoseconds awake; 0 before the first one.
    counted: AtomicU64,
}

impl Activity {
    /// The words of a counter record: load averages, time of the last count, newest process id,
    /// tasks.
    pub(crate) fn words(&self) -> [u64; 8] {
        self.all().map(|word| word.load(Ordering::Relaxed))
    }

    /// Continues from the words of a predecessor; their time is capped at `now`.
    pub(crate) fn restore(&self, words: [u64; 8], now: u64) {
        self.all().iter().zip(words).for_each(|(own, word)| own.store(word, Ordering::Relaxed));
        self.counted.fetch_min(now, Ordering::Relaxed);
    }

    fn all(&self) -> [&AtomicU64; 8] {
        let Self { one, five, fifteen, running, blocked, threads, newest_pid, counted, .. } = self;
        [one, five, fifteen, counted, newest_pid, running, blocked, threads]
    }

    /// True before the first count.
    pub(crate) fn is_new(&self) -> bool {
        self.counted.load(Ordering::Relaxed) == 0
    }

    /// True when the sampler missed a count, or never took one.
    pub(crate) fn is_stale(&self, now: u64) -> bool {
        now.saturating_sub(self.counted.load(Ordering::Relaxed)) > 2 * INTERVAL
    }

    /// Takes a count. `newest` is in the container's own numbering; `used` is the processor time
    /// used since the last count.
    pub(crate) fn record(&self, counts: Counts, newest: Option<u64>, used: u64, now: u64) {
        self.running.store(counts.running, Ordering::Relaxed);
        let blocked = self.blocked.swap(counts.blocked, Ordering::Relaxed).min(counts.blocked);
        self.in_iowait.store(counts.in_iowait, Ordering::Relaxed);
        self.threads.store(counts.threads, Ordering::Relaxed);
        self.newest_pid.fetch_max(newest.unwrap_or(0), Ordering::Relaxed);
        self.age(now, used, blocked);
    }

    /// Records that no thread ran since the last count, so that each is in the state it was in.
    pub(crate) fn record_unchanged(&self, now: u64) {
        self.age(now, 0, self.blocked.load(Ordering::Relaxed));
    }

    /// Records that the threads cannot be counted: none is taken to be running, and the blocked
    /// ones to be still blocked.
    pub(crate) fn record_unknown(&self, now: u64) {
        self.running.store(0, Ordering::Relaxed);
        self.record_unchanged(now);
    }

    /// Ages the averages up to `now`. A count stands for the interval before it, or for two when it
    /// is late. Over a longer gap, the number of running threads is the average that `used`, the
    /// processor time since the last count, implies; threads are taken as blocked if they were
    /// blocked at both ends.
    fn age(&self, now: u64, used: u64, blocked: u64) {
        let before = self.counted.load(Ordering::Relaxed);
        if before == 0 {
            self.counted.store(now, Ordering::Relaxed);
            return;
        }
        let half = INTERVAL / 2;
        let intervals = now.saturating_sub(before).saturating_add(half) / INTERVAL;
        if intervals == 0 {
            return;
        }
        // Advances by whole intervals, so that late counts do not make intervals longer.
        self.counted.store(before.saturating_add(intervals * INTERVAL), Ordering::Relaxed);
        let running = self.running.load(Ordering::Relaxed);
        let active = running.saturating_add(self.blocked.load(Ordering::Relaxed));
        let ran = u128::from(used) * u128::from(load::ONE) / u128::from(intervals * INTERVAL);
        let ran = u64::try_from(ran).unwrap_or(u64::MAX);
        let average = ran.saturating_add(blocked.saturating_mul(load::ONE));
        let counted = if intervals > 2 { 1 } else { intervals };
        let load = self.load().after_average(intervals - counted, average).after(counted, active);
        self.one.store(load.one, Ordering::Relaxed);
        self.five.store(load.five, Ordering::Relaxed);
        self.fifteen.store(load.fifteen, Ordering::Relaxed);
    }

    pub(crate) fn load(&self) -> Load {
        Load {
            one: self.one.load(Ordering::Relaxed),
            five: self.five.load(Ordering::Relaxed),
            fifteen: self.fifteen.load(Ordering::Relaxed),
        }
    }

    /// Returns the task counts. `threads` is the count of the pids controller, where there is one.
    pub(crate) fn tasks(&self, threads: Option<u64>) -> Tasks {
        let newest_pid = self.newest_pid.load(Ordering::Relaxed).max(1);
        Tasks {
            total: threads.unwrap_or_else(|| self.threads.load(Ordering::Relaxed)).max(1),
            running: self.running.load(Ordering::Relaxed).max(1),
            blocked: self.in_iowait.load(Ordering::Relaxed),
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
        activity.record(busy, Some(9), 0, INTERVAL);
        assert_eq!(activity.load(), Load::default());
        activity.record(busy, Some(7), INTERVAL, 2 * INTERVAL);
        assert!(activity.load().one > 0);
        let tasks = activity.tasks(None);
        assert_eq!((tasks.total, tasks.newest_pid, tasks.forks), (3, 9, 9));
        let idle = Counts { threads: 3, ..Counts::default() };
        activity.record(idle, None, 0, 3 * INTERVAL);
        assert_eq!(activity.tasks(Some(4)).running, 1, "the thread that reads this runs");
    }

    /// An hour without a reader, at the end of which one thread runs by chance.
    #[test]
    fn a_pause_is_credited_with_the_time_used_in_it() {
        const HOUR: u64 = 720 * INTERVAL;
        let one = Counts { running: 1, threads: 3, ..Counts::default() };
        let load_after = |used| {
            let activity = Activity::default();
            activity.record(one, None, 0, INTERVAL);
            activity.record(one, None, used, INTERVAL + HOUR);
            activity.load()
        };
        let once = Load::default().after(1, 1);
        assert_eq!(load_after(0), once, "idle all the time");
        let half = load_after(HOUR / 2);
        assert!((1020..=1200).contains(&half.one), "half a processor: {half:?}");
        assert_eq!(load_after(4 * HOUR).fifteen / load::ONE, 3, "four threads");
    }

    #[test]
    fn what_blocks_without_running_still_blocks_after_a_pause() {
        let activity = Activity::default();
        activity.record(Counts { blocked: 2, ..Counts::default() }, None, 0, INTERVAL);
        activity.record_unchanged(2000 * INTERVAL);
        assert_eq!(activity.load().fifteen, 2 * load::ONE);
    }

    #[test]
    fn late_counts_do_not_lose_intervals() {
        let activity = Activity::default();
        let one = Counts { running: 1, ..Counts::default() };
        // Each count is late by a fifth: ten counts in twelve intervals.
        for count in 1..=11 {
            activity.record(one, None, 6 * INTERVAL / 5, count * 6 * INTERVAL / 5);
        }
        let exact = Load::default().after(12, 1);
        assert!(activity.load().one.abs_diff(exact.one) < 10, "{:?} {exact:?}", activity.load());
    }

    #[test]
    fn a_record_from_the_future_does_not_stop_the_averages() {
        let activity = Activity::default();
        activity.restore([0, 0, 0, 1000 * INTERVAL, 0, 0, 0, 0], INTERVAL);
        let one = Counts { running: 1, ..Counts::default() };
        activity.record(one, None, INTERVAL, 2 * INTERVAL);
        assert!(activity.load().one > 0);
    }
}
