//! What the keeper starts servers from, and when it goes back to what it started them from before.
//!
//! A new program, or a new configuration, is on trial until a server has served with it for a minute. If
//! three servers die before that, or one before it has served at all, servers are started from the
//! last one that served for a minute.

use std::time::Duration;

/// A server that lives for so long proves what it was started from.
const PROVEN: Duration = Duration::from_secs(60);
/// So many servers may die earlier than that.
const EARLY_DEATHS: u32 = 3;

/// The current one, and the one before while the current one is on trial.
#[derive(Debug)]
pub(super) struct Succession<T> {
    current: T,
    before: Option<T>,
    is_proven: bool,
    has_served: bool,
    early_deaths: u32,
}

impl<T> Succession<T> {
    pub(super) fn new(current: T) -> Self {
        Self { current, before: None, is_proven: false, has_served: false, early_deaths: 0 }
    }

    pub(super) fn current(&self) -> &T {
        &self.current
    }

    pub(super) fn current_mut(&mut self) -> &mut T {
        &mut self.current
    }

    /// Makes `next` current, on trial. `served` is how long the server of
    /// the current one has served.
    pub(super) fn replace(&mut self, next: T, served: Option<Duration>) {
        self.note(served);
        let current = std::mem::replace(&mut self.current, next);
        if self.is_proven || self.before.is_none() {
            self.before = Some(current);
        }
        (self.is_proven, self.has_served, self.early_deaths) = (false, false, 0);
    }

    /// A server of the current one has died, after it has served for so long. True if the one
    /// before is current again.
    pub(super) fn died(&mut self, served: Option<Duration>) -> bool {
        self.note(served);
        if self.is_proven {
            return false;
        }
        self.early_deaths += 1;
        if self.has_served && self.early_deaths < EARLY_DEATHS {
            return false;
        }
        let Some(before) = self.before.take() else { return false };
        self.current = before;
        (self.is_proven, self.has_served, self.early_deaths) = (true, true, 0);
        true
    }

    fn note(&mut self, served: Option<Duration>) {
        self.has_served |= served.is_some();
        if served.is_some_and(|served| served >= PROVEN) {
            self.is_proven = true;
            self.before = None;
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const SHORT: Option<Duration> = Some(Duration::from_secs(1));
    const LONG: Option<Duration> = Some(PROVEN);

    #[test]
    fn three_early_deaths_bring_the_one_before_back() {
        let mut succession = Succession::new("old");
        succession.replace("new", LONG);
        assert!(!succession.died(SHORT) && !succession.died(None));
        assert!(succession.died(SHORT));
        assert_eq!(*succession.current(), "old");
        assert!((0..9).all(|_| !succession.died(SHORT)), "there is none before it");
    }

    #[test]
    fn one_that_never_served_is_given_up_at_once() {
        let mut succession = Succession::new("old");
        succession.replace("new", SHORT);
        assert!(succession.died(None));
        assert_eq!(*succession.current(), "old");
    }

    #[test]
    fn one_that_served_for_a_minute_stays() {
        let mut succession = Succession::new("old");
        succession.replace("new", LONG);
        assert!(!succession.died(SHORT) && !succession.died(LONG));
        assert!((0..9).all(|_| !succession.died(SHORT)));
        assert_eq!(*succession.current(), "new");
    }

    #[test]
    fn the_last_one_that_served_for_a_minute_is_kept_over_others() {
        let mut succession = Succession::new("proven");
        succession.replace("second", LONG);
        succession.replace("third", SHORT);
        assert!(succession.died(None));
        assert_eq!(*succession.current(), "proven");
    }
}
