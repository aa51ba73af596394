//! The replay cache: one effect for a call that a signal interrupts and the kernel restarts.
//!
//! Without `SECCOMP_FILTER_FLAG_WAIT_KILLABLE_RECV` any handled signal takes the caller out of its
//! wait. The call is then reported again, by the same thread with the same arguments, while the
//! first operation runs or after it has ended. The restarted call gets the result of the first one.
//! A program that is interrupted all the time would otherwise pile up mounts, or be told that its
//! own node exists already. An operation is never performed twice while its result is kept. A
//! result that the kernel accepted counts as delivered and is not kept.
//!
//! Start reading at [`Once::act`].

use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::{Condvar, Mutex, MutexGuard, PoisonError};
use std::thread::{self, ThreadId};
use std::time::{Duration, Instant};

use nix::errno::Errno;

use crate::syscalls::context::Context;
use crate::verdict::{Refusal, Verdict};

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
    Untried,
}

/// Operations that run, and results that were not delivered. `A` describes an operation: attempts
/// of one thread with equal descriptions are the same call.
#[derive(Debug)]
pub(super) struct Once<A> {
    acts: Mutex<Vec<Act<A>>>,
    ended: Condvar,
    /// How many threads wait for `ended`, so that it is not notified without need. Changed and read
    /// under the lock.
    waiting: AtomicUsize,
}

#[derive(Debug)]
struct Act<A> {
    container: String,
    tid: u32,
    what: A,
    outcome: Option<(Outcome, Instant)>,
    /// Set while this thread sends the outcome, and its delivery is not known yet.
    answering: Option<ThreadId>,
}

impl<A: Clone + PartialEq> Act<A> {
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

impl<A: Clone + PartialEq> Once<A> {
    pub(super) const fn new() -> Self {
        Self { acts: Mutex::new(Vec::new()), ended: Condvar::new(), waiting: AtomicUsize::new(0) }
    }

    /// Performs an operation, or returns the result that it already has for this call. The
    /// operation takes no longer than `patience`.
    pub(super) fn act(
        &self,
        who: Who<'_>,
        what: &A,
        patience: Duration,
        cx: &Context<'_>,
        act: impl FnOnce() -> Result<Verdict, Refusal>,
    ) -> Result<Verdict, Refusal> {
        let (mut refusal, mut made) = (None, None);
        let act = || {
            let outcome = match act() {
                Ok(Verdict::Return(value)) => Outcome::Return(value),
                Ok(Verdict::Fail(errno)) | Err(Refusal::Fail(errno)) => Outcome::Fail(errno),
                Ok(_) => Outcome::Continue,
                Err(other) => {
                    refusal = Some(other);
                    Outcome::Untried
                }
            };
            *made.insert(outcome)
        };
        let outcome = self.outcome(who, what, patience, act, || cx.still_pending().is_ok());
        if made != Some(outcome) {
            cx.notes.no_act();
        }
        if let Some(refusal) = refusal {
            return Err(refusal);
        }
        Ok(match outcome {
            Outcome::Return(value) => Verdict::Return(value),
            Outcome::Fail(errno) => Verdict::Fail(errno),
            Outcome::Continue | Outcome::Untried => Verdict::Continue,
        })
    }

    /// Returns the outcome. `taken` is true while the caller waits for it.
    fn outcome(
        &self,
        who: Who<'_>,
        what: &A,
        patience: Duration,
        act: impl FnOnce() -> Outcome,
        taken: impl Fn() -> bool,
    ) -> Outcome {
        let interrupted = Outcome::Fail(Errno::EINTR);
        let mut acts = self.acts.lock().unwrap_or_else(PoisonError::into_inner);
        acts.retain(|act| act.answering.is_some() || !act.is_older(FRESH));
        let under_way =
            |acts: &mut Vec<Act<A>>| acts.iter().any(|act| act.is(who, what) && act.is_under_way());
        let until = Instant::now() + patience * 2;
        while under_way(&mut acts) {
            // Interrupted again: only the newest attempt waits.
            if !taken() || Instant::now() > until {
                return interrupted;
            }
            self.waiting.fetch_add(1, Ordering::Relaxed);
            let waited = self.ended.wait_timeout_while(acts, LOOK, under_way);
            self.waiting.fetch_sub(1, Ordering::Relaxed);
            acts = waited.unwrap_or_else(PoisonError::into_inner).0;
        }
        if let Some(done) = acts.iter_mut().find(|act| act.is(who, what)) {
            done.answering = Some(thread::current().id());
            return done.outcome.map_or(interrupted, |(outcome, _)| outcome);
        }
        // This attempt may be an old one, whose caller got the result through a later attempt.
        if !taken() {
            return interrupted;
        }
        let (container, tid) = (who.0.to_owned(), who.1);
        let (outcome, answering) = (None, None);
        acts.push(Act { container, tid, what: what.clone(), outcome, answering });
        drop(acts);
        let unwinding = Unwinding { once: self, who, what };
        let outcome = act();
        std::mem::forget(unwinding);
        let mut acts = self.acts.lock().unwrap_or_else(PoisonError::into_inner);
        if outcome == Outcome::Untried {
            acts.retain(|act| !act.is(who, what));
        } else if let Some(act) = acts.iter_mut().find(|act| act.is(who, what)) {
            act.outcome = Some((outcome, Instant::now()));
            act.answering = Some(thread::current().id());
        }
        self.wake(acts);
        outcome
    }

    fn wake(&self, acts: MutexGuard<'_, Vec<Act<A>>>) {
        let waiting = self.waiting.load(Ordering::Relaxed);
        drop(acts);
        if waiting > 0 {
            self.ended.notify_all();
        }
    }

    /// Called by the thread that sent a result, after the kernel accepted it or refused it. If it
    /// was not delivered, because a signal came first, it is kept for the restarted call. If this
    /// thread had no result for this caller, nothing changes.
    pub(super) fn settled(&self, who: Who<'_>, delivered: bool) {
        let this = Some(thread::current().id());
        let mut acts = self.acts.lock().unwrap_or_else(PoisonError::into_inner);
        let answered = |act: &Act<A>| (&*act.container, act.tid) == who && act.answering == this;
        if delivered {
            acts.retain(|act| !answered(act));
        }
        for act in acts.iter_mut().filter(|act| answered(act)) {
            act.answering = None;
            // A program that gets signals all the time may need many attempts.
            if let Some((_, at)) = &mut act.outcome {
                *at = Instant::now();
            }
        }
        let of_it = |act: &Act<A>| act.container == who.0 && !act.is_under_way();
        if acts.iter().filter(|act| of_it(act)).count() > KEPT
            && let Some(oldest) = acts.iter().position(of_it)
        {
            acts.remove(oldest);
        }
        self.wake(acts);
    }
}

/// Removes the entry of an operation that panics.
struct Unwinding<'a, A: Clone + PartialEq> {
    once: &'a Once<A>,
    who: Who<'a>,
    what: &'a A,
}

impl<A: Clone + PartialEq> Drop for Unwinding<'_, A> {
    fn drop(&mut self) {
        let mut acts = self.once.acts.lock().unwrap_or_else(PoisonError::into_inner);
        acts.retain(|act| !act.is(self.who, self.what));
        self.once.wake(acts);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const LONG: Duration = Duration::from_secs(5);
    const DONE: Outcome = Outcome::Return(0);
    const WRONG: Outcome = Outcome::Fail(Errno::ENOENT);

    #[test]
    fn a_restarted_call_gets_the_result_of_the_first() {
        let once = Once::new();
        let who = ("c", 7);
        let again = || panic!("performed twice");
        assert_eq!(once.outcome(who, &"/a", LONG, || WRONG, || true), WRONG);
        for _ in 0..2 {
            once.settled(who, false);
            assert_eq!(once.outcome(who, &"/a", LONG, again, || true), WRONG);
        }
        once.settled(who, true);
        assert_eq!(once.outcome(who, &"/a", LONG, || DONE, || true), DONE, "another call");
        once.settled(who, true);
        assert!(once.acts.lock().unwrap().is_empty());
    }

    #[test]
    fn an_operation_that_was_not_attempted_is_performed_by_the_next_attempt() {
        let once = Once::new();
        let who = ("c", 7);
        let untried = || Outcome::Untried;
        assert_eq!(once.outcome(who, &"/a", LONG, untried, || true), Outcome::Untried);
        let panics =
            || once.outcome(who, &"/b", LONG, || panic!("an operation that fails"), || true);
        let caught = std::panic::catch_unwind(std::panic::AssertUnwindSafe(panics));
        assert!(caught.is_err());
        for what in ["/a", "/b"] {
            assert_eq!(once.outcome(who, &what, LONG, || DONE, || true), DONE, "{what}");
        }
    }

    #[test]
    fn a_late_attempt_leaves_no_result_for_the_next_call() {
        let once = Once::new();
        let who = ("c", 7);
        assert_eq!(once.outcome(who, &"/a", LONG, || DONE, || true), DONE);
        once.settled(who, false);
        let again = || panic!("performed twice");
        assert_eq!(once.outcome(who, &"/a", LONG, again, || true), DONE);
        // An attempt that was interrupted earlier ends only now.
        std::thread::scope(|scope| drop(scope.spawn(|| once.settled(who, false)).join()));
        assert!(once.acts.lock().unwrap().iter().all(|act| act.answering.is_some()));
        once.settled(who, true);
        assert_eq!(once.outcome(who, &"/a", LONG, || WRONG, || true), WRONG, "another call");
        let late = || panic!("the caller does not wait");
        let interrupted = Outcome::Fail(Errno::EINTR);
        assert_eq!(once.outcome(("c", 8), &"/a", LONG, late, || false), interrupted);
    }

    #[test]
    fn a_result_is_kept_while_the_call_is_restarted() {
        let once = Once::new();
        let who = ("c", 7);
        once.outcome(who, &"/a", LONG, || DONE, || true);
        for _ in 0..3 {
            once.settled(who, false);
            for act in once.acts.lock().unwrap().iter_mut() {
                let (_, at) = act.outcome.as_mut().unwrap();
                *at = at.checked_sub(FRESH * 2 / 3).unwrap();
            }
            assert_eq!(once.outcome(who, &"/a", LONG, || WRONG, || true), DONE);
        }
    }

    #[test]
    fn other_callers_and_other_operations_have_results_of_their_own() {
        let once = Once::new();
        once.outcome(("c", 7), &"/a", LONG, || DONE, || true);
        for (who, what) in [(("c", 8), "/a"), (("d", 7), "/a"), (("c", 7), "/b")] {
            assert_eq!(once.outcome(who, &what, LONG, || WRONG, || true), WRONG);
        }
    }

    #[test]
    fn a_thread_without_a_result_does_not_remove_that_of_another_thread() {
        let once = Once::new();
        let who = ("c", 7);
        once.outcome(who, &"/a", LONG, || DONE, || true);
        std::thread::scope(|scope| {
            // This thread was interrupted while it waited, or it answered another call.
            scope.spawn(|| once.settled(who, false));
        });
        once.settled(who, true);
        assert!(once.acts.lock().unwrap().is_empty());
    }

    #[test]
    fn a_restarted_call_waits_for_the_running_operation() {
        let once = Once::new();
        let (begun, begin) = std::sync::mpsc::channel();
        let slow = || {
            begun.send(()).unwrap();
            std::thread::sleep(Duration::from_millis(20));
            DONE
        };
        std::thread::scope(|scope| {
            let first = scope.spawn(|| {
                let outcome = once.outcome(("c", 7), &"/a", LONG, slow, || true);
                once.settled(("c", 7), false);
                outcome
            });
            begin.recv().unwrap();
            let again = once.outcome(("c", 7), &"/a", LONG, || WRONG, || true);
            assert_eq!((first.join().unwrap(), again), (DONE, DONE));
        });
    }
}
