//! The replay cache: one effect for a call that a signal interrupts and the kernel restarts.
//!
//! Without `SECCOMP_FILTER_FLAG_WAIT_KILLABLE_RECV` any handled signal takes the caller out of its
//! wait. The call is then reported again, by the same thread with the same arguments, while the
//! first operation runs or after it has ended. The restarted call gets the result of the first one.
//! A program that is interrupted all the time would otherwise pile up mounts, or be told that its
//! own node exists already. An operation is never performed twice while its result is kept. A
//! result that the kernel accepted counts as delivered and is not kept.
//!
//! Start reading at [`ReplayCache::perform`].

use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::{Condvar, Mutex, MutexGuard, PoisonError};
use std::thread::{self, ThreadId};
use std::time::{Duration, Instant};

use rustix::io::Errno;

use crate::syscalls::context::Context;
use crate::verdict::{CallError, Verdict};

/// How long a result is kept after an attempt that did not get it.
const FRESH: Duration = Duration::from_secs(2);

/// How many undelivered results of one container are kept.
const KEPT: usize = 64;

/// The interval at which a thread checks whether its caller still waits.
const LOOK: Duration = Duration::from_millis(2);

/// A caller: its container and its thread id.
pub(super) type Who<'a> = (&'a str, u32);

/// The result of an operation.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Outcome {
    Return(i64),
    Fail(Errno),
    Continue,
    /// Nothing was done, because the caller no longer waited or the operation could not be
    /// attempted. The next attempt performs the operation.
    NotAttempted,
}

/// Operations that run, and results that were not delivered. `A` describes an operation: attempts
/// of one thread with equal descriptions are the same call.
#[derive(Debug)]
pub(super) struct ReplayCache<A> {
    entries: Mutex<Vec<Entry<A>>>,
    ended: Condvar,
    /// How many threads wait for `ended`, so that it is not notified without need. Changed and read
    /// under the lock.
    waiting: AtomicUsize,
}

#[derive(Debug)]
struct Entry<A> {
    container: String,
    tid: u32,
    what: A,
    outcome: Option<(Outcome, Instant)>,
    /// Set while this thread sends the outcome, and its delivery is not known yet.
    answering: Option<ThreadId>,
}

impl<A: Clone + PartialEq> Entry<A> {
    fn is(&self, who: Who<'_>, what: &A) -> bool {
        (&*self.container, self.tid) == who && self.what == *what
    }

    fn is_under_way(&self) -> bool {
        self.outcome.is_none() || self.answering.is_some()
    }

    /// True if there is an outcome that is older than this.
    fn is_older(&self, age: Duration) -> bool {
        self.outcome.is_some_and(|(_, at)| at.elapsed() > age)
    }
}

impl<A: Clone + PartialEq> ReplayCache<A> {
    pub(super) const fn new() -> Self {
        Self {
            entries: Mutex::new(Vec::new()),
            ended: Condvar::new(),
            waiting: AtomicUsize::new(0),
        }
    }

    /// Performs an operation, or returns the result that it already has for this call. The
    /// operation takes no longer than `patience`.
    pub(super) fn perform(
        &self,
        who: Who<'_>,
        what: &A,
        patience: Duration,
        cx: &Context<'_>,
        operation: impl FnOnce() -> Result<Verdict, CallError>,
    ) -> Result<Verdict, CallError> {
        let (mut refusal, mut made) = (None, None);
        let perform = || {
            let outcome = match operation() {
                Ok(Verdict::Return(value)) => Outcome::Return(value),
                Ok(Verdict::Fail(errno)) | Err(CallError::Fail(errno)) => Outcome::Fail(errno),
                Ok(_) => Outcome::Continue,
                Err(other) => {
                    refusal = Some(other);
                    Outcome::NotAttempted
                }
            };
            *made.insert(outcome)
        };
        let outcome = self.outcome(who, what, patience, perform, || cx.still_pending().is_ok());
        if made != Some(outcome) {
            cx.notes.no_operation();
        }
        if let Some(refusal) = refusal {
            return Err(refusal);
        }
        Ok(match outcome {
            Outcome::Return(value) => Verdict::Return(value),
            Outcome::Fail(errno) => Verdict::Fail(errno),
            Outcome::Continue | Outcome::NotAttempted => Verdict::Continue,
        })
    }

    /// Returns the outcome. `is_waiting` is true while the caller waits for it.
    fn outcome(
        &self,
        who: Who<'_>,
        what: &A,
        patience: Duration,
        perform: impl FnOnce() -> Outcome,
        is_waiting: impl Fn() -> bool,
    ) -> Outcome {
        let interrupted = Outcome::Fail(Errno::INTR);
        let mut entries = self.entries.lock().unwrap_or_else(PoisonError::into_inner);
        entries.retain(|entry| entry.answering.is_some() || !entry.is_older(FRESH));
        let under_way = |entries: &mut Vec<Entry<A>>| {
            entries.iter().any(|entry| entry.is(who, what) && entry.is_under_way())
        };
        let until = Instant::now() + patience * 2;
        while under_way(&mut entries) {
            // Interrupted again: only the newest attempt waits.
            if !is_waiting() || Instant::now() > until {
                return interrupted;
            }
            self.waiting.fetch_add(1, Ordering::Relaxed);
            let waited = self.ended.wait_timeout_while(entries, LOOK, under_way);
            self.waiting.fetch_sub(1, Ordering::Relaxed);
            entries = waited.unwrap_or_else(PoisonError::into_inner).0;
        }
        if let Some(done) = entries.iter_mut().find(|entry| entry.is(who, what)) {
            done.answering = Some(thread::current().id());
            return done.outcome.map_or(interrupted, |(outcome, _)| outcome);
        }
        // This attempt may be an old one, whose caller got the result through a later attempt.
        if !is_waiting() {
            return interrupted;
        }
        let (container, tid) = (who.0.to_owned(), who.1);
        let (outcome, answering) = (None, None);
        entries.push(Entry { container, tid, what: what.clone(), outcome, answering });
        drop(entries);
        let unwinding = Unwinding { cache: self, who, what };
        let outcome = perform();
        std::mem::forget(unwinding);
        let mut entries = self.entries.lock().unwrap_or_else(PoisonError::into_inner);
        if outcome == Outcome::NotAttempted {
            entries.retain(|entry| !entry.is(who, what));
        } else if let Some(entry) = entries.iter_mut().find(|entry| entry.is(who, what)) {
            entry.outcome = Some((outcome, Instant::now()));
            entry.answering = Some(thread::current().id());
        }
        self.wake(entries);
        outcome
    }

    fn wake(&self, entries: MutexGuard<'_, Vec<Entry<A>>>) {
        let waiting = self.waiting.load(Ordering::Relaxed);
        drop(entries);
        if waiting > 0 {
            self.ended.notify_all();
        }
    }

    /// Called by the thread that sent a result, after the kernel accepted it or refused it. If it
    /// was not delivered, because a signal came first, it is kept for the restarted call. If this
    /// thread had no result for this caller, nothing changes.
    pub(super) fn on_delivered(&self, who: Who<'_>, delivered: bool) {
        let this = Some(thread::current().id());
        let mut entries = self.entries.lock().unwrap_or_else(PoisonError::into_inner);
        let answered =
            |entry: &Entry<A>| (&*entry.container, entry.tid) == who && entry.answering == this;
        if delivered {
            entries.retain(|entry| !answered(entry));
        }
        for entry in entries.iter_mut().filter(|entry| answered(entry)) {
            entry.answering = None;
            // A program that gets signals all the time may need many attempts.
            if let Some((_, at)) = &mut entry.outcome {
                *at = Instant::now();
            }
        }
        let of_it = |entry: &Entry<A>| entry.container == who.0 && !entry.is_under_way();
        if entries.iter().filter(|entry| of_it(entry)).count() > KEPT
            && let Some(oldest) = entries.iter().position(of_it)
        {
            entries.remove(oldest);
        }
        self.wake(entries);
    }
}

/// Removes the entry of an operation that panics.
struct Unwinding<'a, A: Clone + PartialEq> {
    cache: &'a ReplayCache<A>,
    who: Who<'a>,
    what: &'a A,
}

impl<A: Clone + PartialEq> Drop for Unwinding<'_, A> {
    fn drop(&mut self) {
        let mut entries = self.cache.entries.lock().unwrap_or_else(PoisonError::into_inner);
        entries.retain(|entry| !entry.is(self.who, self.what));
        self.cache.wake(entries);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const LONG: Duration = Duration::from_secs(5);
    const DONE: Outcome = Outcome::Return(0);
    const WRONG: Outcome = Outcome::Fail(Errno::NOENT);

    #[test]
    fn a_restarted_call_gets_the_result_of_the_first() {
        let cache = ReplayCache::new();
        let who = ("c", 7);
        let again = || panic!("performed twice");
        assert_eq!(cache.outcome(who, &"/a", LONG, || WRONG, || true), WRONG);
        for _ in 0..2 {
            cache.on_delivered(who, false);
            assert_eq!(cache.outcome(who, &"/a", LONG, again, || true), WRONG);
        }
        cache.on_delivered(who, true);
        assert_eq!(cache.outcome(who, &"/a", LONG, || DONE, || true), DONE, "another call");
        cache.on_delivered(who, true);
        assert!(cache.entries.lock().unwrap().is_empty());
    }

    #[test]
    fn an_operation_that_was_not_attempted_is_performed_by_the_next_attempt() {
        let cache = ReplayCache::new();
        let who = ("c", 7);
        let not_attempted = || Outcome::NotAttempted;
        assert_eq!(cache.outcome(who, &"/a", LONG, not_attempted, || true), Outcome::NotAttempted);
        let panics =
            || cache.outcome(who, &"/b", LONG, || panic!("an operation that fails"), || true);
        let caught = std::panic::catch_unwind(std::panic::AssertUnwindSafe(panics));
        assert!(caught.is_err());
        for what in ["/a", "/b"] {
            assert_eq!(cache.outcome(who, &what, LONG, || DONE, || true), DONE, "{what}");
        }
    }

    #[test]
    fn a_late_attempt_leaves_no_result_for_the_next_call() {
        let cache = ReplayCache::new();
        let who = ("c", 7);
        assert_eq!(cache.outcome(who, &"/a", LONG, || DONE, || true), DONE);
        cache.on_delivered(who, false);
        let again = || panic!("performed twice");
        assert_eq!(cache.outcome(who, &"/a", LONG, again, || true), DONE);
        // An attempt that was interrupted earlier ends only now.
        std::thread::scope(|scope| drop(scope.spawn(|| cache.on_delivered(who, false)).join()));
        assert!(cache.entries.lock().unwrap().iter().all(|entry| entry.answering.is_some()));
        cache.on_delivered(who, true);
        assert_eq!(cache.outcome(who, &"/a", LONG, || WRONG, || true), WRONG, "another call");
        let late = || panic!("the caller does not wait");
        let interrupted = Outcome::Fail(Errno::INTR);
        assert_eq!(cache.outcome(("c", 8), &"/a", LONG, late, || false), interrupted);
    }

    #[test]
    fn a_result_is_kept_while_the_call_is_restarted() {
        let cache = ReplayCache::new();
        let who = ("c", 7);
        cache.outcome(who, &"/a", LONG, || DONE, || true);
        for _ in 0..3 {
            cache.on_delivered(who, false);
            for entry in cache.entries.lock().unwrap().iter_mut() {
                let (_, at) = entry.outcome.as_mut().unwrap();
                *at = at.checked_sub(FRESH * 2 / 3).unwrap();
            }
            assert_eq!(cache.outcome(who, &"/a", LONG, || WRONG, || true), DONE);
        }
    }

    #[test]
    fn other_callers_and_other_operations_have_results_of_their_own() {
        let cache = ReplayCache::new();
        cache.outcome(("c", 7), &"/a", LONG, || DONE, || true);
        for (who, what) in [(("c", 8), "/a"), (("d", 7), "/a"), (("c", 7), "/b")] {
            assert_eq!(cache.outcome(who, &what, LONG, || WRONG, || true), WRONG);
        }
    }

    #[test]
    fn a_thread_without_a_result_does_not_remove_that_of_another_thread() {
        let cache = ReplayCache::new();
        let who = ("c", 7);
        cache.outcome(who, &"/a", LONG, || DONE, || true);
        std::thread::scope(|scope| {
            // This thread was interrupted while it waited, or it answered another call.
            scope.spawn(|| cache.on_delivered(who, false));
        });
        cache.on_delivered(who, true);
        assert!(cache.entries.lock().unwrap().is_empty());
    }

    #[test]
    fn a_restarted_call_waits_for_the_running_operation() {
        let cache = ReplayCache::new();
        let (begun, begin) = std::sync::mpsc::channel();
        let slow = || {
            begun.send(()).unwrap();
            std::thread::sleep(Duration::from_millis(20));
            DONE
        };
        std::thread::scope(|scope| {
            let first = scope.spawn(|| {
                let outcome = cache.outcome(("c", 7), &"/a", LONG, slow, || true);
                cache.on_delivered(("c", 7), false);
                outcome
            });
            begin.recv().unwrap();
            let again = cache.outcome(("c", 7), &"/a", LONG, || WRONG, || true);
            assert_eq!((first.join().unwrap(), again), (DONE, DONE));
        });
    }
}
