//! The current edition, and the one to fall back to.
//!
//! A new program or configuration is unproven until a server has served with it for a minute. If
//! three servers die before that, or one dies before it has served at all, the keeper falls back to
//! the last edition with which a server has served for a minute.

use std::time::Duration;

/// A server that serves for this long proves its edition.
const PROVEN: Duration = Duration::from_secs(60);
/// The number of earlier deaths after which the keeper falls back.
const EARLY_DEATHS: u32 = 3;

/// The current edition, and the previous one while the current one is unproven.
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

    /// Makes `next` current and unproven. `served` is how long the server of the current edition
    /// has served.
    pub(super) fn replace(&mut self, next: T, served: Option<Duration>) {
        self.note(served);
        let current = std::mem::replace(&mut self.current, next);
        if self.is_proven || self.before.is_none() {
            self.before = Some(current);
        }
        (self.is_proven, self.has_served, self.early_deaths) = (false, false, 0);
    }

    /// Notes that a server of the current edition has died after it had served for `served`. True
    /// if the previous edition is current again.
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
    fn three_early_deaths_restore_the_previous_edition() {
        let mut succession = Succession::new("old");
        succession.replace("new", LONG);
        assert!(!succession.died(SHORT) && !succession.died(None));
        assert!(succession.died(SHORT));
        assert_eq!(*succession.current(), "old");
        assert!((0..9).all(|_| !succession.died(SHORT)), "there is none before it");
    }

    #[test]
    fn an_edition_that_never_served_is_dropped_after_one_death() {
        let mut succession = Succession::new("old");
        succession.replace("new", SHORT);
        assert!(succession.died(None));
        assert_eq!(*succession.current(), "old");
    }

    #[test]
    fn an_edition_that_served_for_a_minute_stays() {
        let mut succession = Succession::new("old");
        succession.replace("new", LONG);
        assert!(!succession.died(SHORT) && !succession.died(LONG));
        assert!((0..9).all(|_| !succession.died(SHORT)));
        assert_eq!(*succession.current(), "new");
    }

    #[test]
    fn the_last_proven_edition_is_restored() {
        let mut succession = Succession::new("proven");
        succession.replace("second", LONG);
        succession.replace("third", SHORT);
        assert!(succession.died(None));
        assert_eq!(*succession.current(), "proven");
    }
}
