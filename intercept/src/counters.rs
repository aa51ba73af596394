//! Counters of the outcomes of each handler, for the whole daemon and for one container.
//!
//! `ambit status` and the metrics show them. Counting must never take a lock.

use std::sync::atomic::{AtomicU64, Ordering};

use super::syscalls::HANDLERS;

/// The counters of one handler.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct CallCount {
    /// The handler's name.
    pub name: &'static str,
    /// Calls that returned a result of a handler.
    pub granted: u64,
    /// Calls that returned an errno of a handler.
    pub refused: u64,
    /// Calls that the kernel ran, because they are switched off or not granted.
    pub continued: u64,
    /// Calls that the kernel ran because the daemon failed to answer them.
    pub failed: u64,
    /// Answers that were not delivered, because the caller got a signal or died. These calls are
    /// also counted above.
    pub late: u64,
}

impl CallCount {
    /// Returns the number of calls that a handler answered.
    pub fn served(&self) -> u64 {
        self.granted + self.refused
    }
}

/// All counters of a notifier.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Counts {
    /// One entry per handler, in the order of their list.
    pub calls: Vec<CallCount>,
    /// Calls that a filter trapped although no handler answers them.
    pub unknown: u64,
}

/// The outcome of a call.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Outcome {
    Granted,
    Refused,
    Continued,
    Failed,
    Late,
}

#[derive(Debug)]
pub(super) struct Counters {
    calls: Vec<[AtomicU64; 5]>,
    unknown: AtomicU64,
}

impl Counters {
    pub(super) fn new() -> Self {
        let calls = HANDLERS.iter().map(|_| Default::default()).collect();
        Self { calls, unknown: AtomicU64::new(0) }
    }

    /// Counts a call of the handler with this index.
    pub(super) fn count(&self, handler: usize, outcome: Outcome) {
        if let Some(counters) = self.calls.get(handler) {
            counters[outcome as usize].fetch_add(1, Ordering::Relaxed);
        }
    }

    pub(super) fn count_unknown(&self) {
        self.unknown.fetch_add(1, Ordering::Relaxed);
    }

    pub(super) fn read(&self) -> Counts {
        let calls = HANDLERS.iter().zip(&self.calls).map(|(handler, counters)| {
            let [granted, refused, continued, failed, late] =
                [0, 1, 2, 3, 4].map(|index: usize| counters[index].load(Ordering::Relaxed));
            let name = handler.describe().name;
            CallCount { name, granted, refused, continued, failed, late }
        });
        Counts { calls: calls.collect(), unknown: self.unknown.load(Ordering::Relaxed) }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn each_outcome_has_its_counter() {
        let counters = Counters::new();
        counters.count(0, Outcome::Granted);
        counters.count(0, Outcome::Granted);
        counters.count(0, Outcome::Refused);
        counters.count(0, Outcome::Continued);
        counters.count(0, Outcome::Failed);
        counters.count(0, Outcome::Late);
        counters.count_unknown();
        let counts = counters.read();
        let first = counts.calls[0];
        assert_eq!((first.granted, first.refused, first.served()), (2, 1, 3));
        assert_eq!((first.continued, first.failed, first.late), (1, 1, 1));
        assert_eq!(counts.unknown, 1);
    }
}
