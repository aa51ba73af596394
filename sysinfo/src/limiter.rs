//! Rate limit for log messages that a container can trigger, so that it cannot fill the log: one
//! message per second for each call site. The number of suppressed messages is part of the next
//! one. Start reading at [`Limiter::allow`].

use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Instant;

/// Allows one message per second.
#[derive(Debug)]
pub struct Limiter {
    start: Instant,
    /// Seconds since `start`, plus one, of the last message that was allowed.
    last: AtomicU64,
    suppressed: AtomicU64,
}

impl Default for Limiter {
    /// The first message is allowed.
    fn default() -> Self {
        Self { start: Instant::now(), last: AtomicU64::new(0), suppressed: AtomicU64::new(0) }
    }
}

impl Limiter {
    /// Returns the number of messages suppressed since the last one if a message may be logged now.
    pub fn allow(&self) -> Option<u64> {
        self.allow_at(self.start.elapsed().as_secs())
    }

    fn allow_at(&self, seconds: u64) -> Option<u64> {
        let now = seconds.saturating_add(1);
        if self.last.fetch_max(now, Ordering::Relaxed) < now {
            Some(self.suppressed.swap(0, Ordering::Relaxed))
        } else {
            self.suppressed.fetch_add(1, Ordering::Relaxed);
            None
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn one_message_per_second_is_allowed() {
        let limiter = Limiter::default();
        assert_eq!(limiter.allow_at(0), Some(0));
        assert_eq!(limiter.allow_at(0), None);
        assert_eq!(limiter.allow_at(0), None);
        assert_eq!(limiter.allow_at(1), Some(2));
        assert_eq!(limiter.allow_at(0), None, "a clock that stands still");
    }
}
