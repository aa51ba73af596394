//! A listener that is lent to a thread that acts.
//!
//! A container that makes one device node makes more: while it does, the thread that made the first
//! one takes the next calls itself (`borrower.rs`), instead of having each handed over by the
//! listener's thread. The warden takes the listener back when an act takes long, so that other calls
//! of the container do not wait for it.
//!
//! Only one of both receives at a time: RECV sleeps when there is no call.

use std::sync::atomic::{AtomicU64, Ordering};

const WAITING: u64 = 0;
const RECEIVING: u64 = 1;
const BUSY: u64 = 2;
const ENDED: u64 = 3;
/// One more call: what is below tells what the borrower does with it.
const NEXT: u64 = 4;

/// Who has the listener, and what the borrower is at.
#[derive(Debug)]
pub(super) struct Lease(AtomicU64);

impl Lease {
    /// The borrower is at its first call.
    pub(super) fn new() -> Self {
        Self(AtomicU64::new(BUSY))
    }

    /// The borrower has answered. False: the listener was taken back.
    pub(super) fn wait(&self) -> bool {
        self.turn(BUSY, WAITING)
    }

    /// The borrower receives a call that is there. False: as above.
    pub(super) fn receive(&self) -> bool {
        self.turn(WAITING, RECEIVING)
    }

    /// It has received it, or found that it is gone.
    pub(super) fn received(&self) {
        self.0.fetch_add(NEXT + BUSY - RECEIVING, Ordering::AcqRel);
    }

    /// The borrower gives the listener back. False: it was taken back before.
    pub(super) fn give_back(&self) -> bool {
        self.turn(WAITING, ENDED)
    }

    /// Has the borrower no part in it any more?
    pub(super) fn has_ended(&self) -> bool {
        self.0.load(Ordering::Acquire) % NEXT == ENDED
    }

    /// At which call the borrower is, if it is at one.
    pub(super) fn at(&self) -> Option<u64> {
        let now = self.0.load(Ordering::Acquire);
        (now % NEXT == BUSY).then_some(now)
    }

    /// The owner takes the listener back from a borrower that is still at this call.
    pub(super) fn take_back(&self, at: u64) -> bool {
        self.0.compare_exchange(at, ENDED, Ordering::AcqRel, Ordering::Acquire).is_ok()
    }

    /// The owner takes it back whatever the borrower is at.
    pub(super) fn end(&self) {
        loop {
            let now = self.0.load(Ordering::Acquire);
            if now % NEXT == ENDED || now % NEXT != RECEIVING && self.take_back(now) {
                return;
            }
            // It is inside of RECV, which returns at once.
            std::thread::yield_now();
        }
    }

    fn turn(&self, from: u64, to: u64) -> bool {
        let now = self.0.load(Ordering::Acquire);
        let next = now / NEXT * NEXT + to;
        now % NEXT == from
            && self.0.compare_exchange(now, next, Ordering::AcqRel, Ordering::Acquire).is_ok()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_listener_is_taken_back_from_whoever_is_busy_for_long() {
        let lease = Lease::new();
        let first = lease.at().unwrap();
        assert!(lease.wait() && lease.at().is_none());
        assert!(lease.receive() && lease.at().is_none());
        lease.received();
        assert!(!lease.take_back(first), "it is at another one");
        let second = lease.at().unwrap();
        assert!(lease.take_back(second));
        assert!(!lease.wait() && !lease.receive() && !lease.give_back());
    }

    #[test]
    fn it_is_given_back_once() {
        let lease = Lease::new();
        assert!(!lease.give_back(), "while a call is decided");
        assert!(lease.wait() && lease.give_back() && !lease.give_back());
        let lease = Lease::new();
        lease.end();
        assert!(!lease.wait() && lease.at().is_none());
    }
}
