//! Token buckets without a lock, for budgets of calls, lines, bytes and processor time.
//!
//! A bucket is one number: the time at which it will be full again. [`now`] is also the clock of
//! `epoll.rs`.

use std::sync::OnceLock;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Instant;

const SECOND: u64 = 1_000_000_000;

/// Returns the nanoseconds since the first call of this function in this process.
pub(super) fn now() -> u64 {
    static START: OnceLock<Instant> = OnceLock::new();
    let elapsed = START.get_or_init(Instant::now).elapsed();
    u64::try_from(elapsed.as_nanos()).unwrap_or(u64::MAX)
}

/// How many tokens a bucket gains, and how many it holds.
#[derive(Debug, Clone, Copy)]
pub(super) struct Rate {
    pub(super) per_second: u64,
    pub(super) most: u64,
}

impl Rate {
    /// Returns the nanoseconds in which the bucket gains so many tokens.
    fn time(self, tokens: u64) -> u64 {
        let time = u128::from(tokens) * u128::from(SECOND) / u128::from(self.per_second.max(1));
        u64::try_from(time).unwrap_or(u64::MAX)
    }
}

/// A bucket, which begins full. For `take` and `spend` it holds the tokens of one second.
#[derive(Debug, Default)]
pub(super) struct Bucket {
    /// When it will be full again if nothing more is taken.
    full: AtomicU64,
}

impl Bucket {
    pub(super) const fn new() -> Self {
        Self { full: AtomicU64::new(0) }
    }

    /// Takes a token. False if there is none.
    pub(super) fn take(&self, now: u64, per_second: u64) -> bool {
        let step = SECOND / per_second.max(1);
        let taken = self.full.fetch_update(Ordering::Relaxed, Ordering::Relaxed, |full| {
            let full = full.max(now).saturating_add(step);
            (full - now <= SECOND).then_some(full)
        });
        taken.is_ok()
    }

    /// Takes so many tokens. False if there are fewer.
    pub(super) fn take_many(&self, now: u64, tokens: u64, rate: Rate) -> bool {
        let taken = self.full.fetch_update(Ordering::Relaxed, Ordering::Relaxed, |full| {
            let full = full.max(now).saturating_add(rate.time(tokens));
            (full - now <= rate.time(rate.most)).then_some(full)
        });
        taken.is_ok()
    }

    /// Takes so many tokens, but no more than there are and `debt` beyond.
    pub(super) fn charge(&self, now: u64, tokens: u64, rate: Rate, debt: u64) {
        let last = now.saturating_add(rate.time(rate.most.saturating_add(debt)));
        let _ = self.full.fetch_update(Ordering::Relaxed, Ordering::Relaxed, |full| {
            Some(full.max(now).saturating_add(rate.time(tokens)).min(last.max(full)))
        });
    }

    /// Returns after how many nanoseconds the bucket has so many tokens.
    pub(super) fn wait_for(&self, now: u64, tokens: u64, rate: Rate) -> u64 {
        let full = self.full.load(Ordering::Relaxed).saturating_sub(now);
        full.saturating_sub(rate.time(rate.most.saturating_sub(tokens)))
    }

    /// Takes a token even if there is none. Returns after how many nanoseconds there is another
    /// one; 0 if there is one now.
    pub(super) fn spend(&self, now: u64, per_second: u64) -> u64 {
        let step = SECOND / per_second.max(1);
        let spent = self.full.fetch_update(Ordering::Relaxed, Ordering::Relaxed, |full| {
            Some(full.max(now).saturating_add(step))
        });
        let full = spent.unwrap_or_else(|full| full).max(now).saturating_add(step);
        (full - now).saturating_sub(SECOND)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_bucket_begins_full_and_gains_one_token_at_a_time() {
        let bucket = Bucket::default();
        assert!((0..10).all(|_| bucket.take(5, 10)));
        assert!(!bucket.take(5, 10));
        assert!(!bucket.take(5 + SECOND / 20, 10));
        assert!(bucket.take(5 + SECOND / 10, 10));
        assert!(!bucket.take(5 + SECOND / 10, 10));
    }

    #[test]
    fn a_bucket_holds_more_than_it_gains_in_a_second() {
        let (bucket, rate) = (Bucket::default(), Rate { per_second: 100, most: 1000 });
        assert!(bucket.take_many(5, 900, rate) && !bucket.take_many(5, 101, rate));
        assert!(bucket.take_many(5, 100, rate) && !bucket.take_many(5, 1, rate));
        assert!(bucket.take_many(5 + SECOND, 100, rate) && !bucket.take_many(5 + SECOND, 1, rate));
        assert!(!bucket.take_many(u64::MAX / 2, 1001, rate), "more than it ever holds");
    }

    #[test]
    fn a_debt_is_bounded() {
        let (bucket, rate) = (Bucket::default(), Rate { per_second: 100, most: 1000 });
        bucket.charge(5, 900, rate, 50);
        assert_eq!(
            (bucket.wait_for(5, 100, rate), bucket.wait_for(5, 101, rate)),
            (0, SECOND / 100)
        );
        bucket.charge(5, 1 << 40, rate, 50);
        assert_eq!(bucket.wait_for(5, 0, rate), SECOND / 2);
        assert_eq!(bucket.wait_for(5, 100, rate), SECOND / 2 + SECOND);
        assert_eq!(bucket.wait_for(5 + 2 * SECOND, 0, rate), 0);
    }

    #[test]
    fn spending_more_than_there_is_takes_longer() {
        let bucket = Bucket::default();
        assert!((0..10).all(|_| bucket.spend(7, 10) == 0));
        assert_eq!(bucket.spend(7, 10), SECOND / 10);
        assert_eq!(bucket.spend(7, 10), SECOND / 5);
        assert_eq!(bucket.spend(7 + SECOND, 10), 0, "a second later");
    }
}
