//! Token buckets without a lock, for budgets per second.
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

/// A bucket that holds the tokens of one second. It begins full.
#[derive(Debug, Default)]
pub(super) struct Bucket {
    /// When it will be full again if nothing more is taken.
    full: AtomicU64,
}

impl Bucket {
    /// Takes a token. False if there is none.
    pub(super) fn take(&self, now: u64, per_second: u64) -> bool {
        let step = SECOND / per_second.max(1);
        let taken = self.full.fetch_update(Ordering::Relaxed, Ordering::Relaxed, |full| {
            let full = full.max(now).saturating_add(step);
            (full - now <= SECOND).then_some(full)
        });
        taken.is_ok()
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
    fn spending_more_than_there_is_takes_longer() {
        let bucket = Bucket::default();
        assert!((0..10).all(|_| bucket.spend(7, 10) == 0));
        assert_eq!(bucket.spend(7, 10), SECOND / 10);
        assert_eq!(bucket.spend(7, 10), SECOND / 5);
        assert_eq!(bucket.spend(7 + SECOND, 10), 0, "a second later");
    }
}
