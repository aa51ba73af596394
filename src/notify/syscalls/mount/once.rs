//! One effect for a call that a signal ends and the kernel makes again.
//!
//! Without `WAIT_KILLABLE_RECV` any handled signal takes the target out of its wait; the call is
//! then reported anew, from the same thread with the same arguments, while the first act is under
//! way or done. It gets the first one's result. A program that is interrupted all the time would
//! otherwise pile up mounts and never get an answer.

use std::sync::{Condvar, Mutex, PoisonError};
use std::time::{Duration, Instant};

use nix::errno::Errno;

use crate::worker::mount::Order;

/// How long a result is good for that nobody has taken.
const FRESH: Duration = Duration::from_secs(2);

/// How often is looked whether a caller still waits.
const LOOK: Duration = Duration::from_millis(2);

/// Who calls: its container and its thread.
pub(super) type Who<'a> = (&'a str, u32);
type Outcome = Result<(), Errno>;

/// Acts that are under way, and results that nobody took.
#[derive(Debug)]
pub(super) struct Once {
    acts: Mutex<Vec<Act>>,
    ended: Condvar,
}

#[derive(Debug)]
struct Act {
    container: String,
    tid: u32,
    order: Order,
    outcome: Option<(Outcome, Instant)>,
}

impl Act {
    fn is(&self, who: Who<'_>, order: &Order) -> bool {
        (&*self.container, self.tid) == who && self.order == *order
    }
}

impl Once {
    pub(super) const fn new() -> Self {
        Self { acts: Mutex::new(Vec::new()), ended: Condvar::new() }
    }

    /// Acts, unless that was done for this very call. `taken` tells whether the caller still waits
    /// for the result.
    pub(super) fn act(
        &self,
        who: Who<'_>,
        order: &Order,
        act: impl FnOnce() -> Outcome,
        taken: impl Fn() -> bool,
    ) -> Outcome {
        let mut acts = self.acts.lock().unwrap_or_else(PoisonError::into_inner);
        let stale = |act: &Act| matches!(act.outcome, Some((_, at)) if at.elapsed() > FRESH);
        acts.retain(|act| !stale(act));
        if acts.iter().any(|act| act.is(who, order)) {
            let under_way =
                |acts: &mut Vec<Act>| acts.iter().any(|a| a.is(who, order) && a.outcome.is_none());
            let until = Instant::now() + order.deadline * 2;
            while under_way(&mut acts) {
                // Interrupted again: whoever comes next waits, not all of them.
                if !taken() || Instant::now() > until {
                    return Err(Errno::EINTR);
                }
                let waited = self.ended.wait_timeout_while(acts, LOOK, under_way);
                acts = waited.unwrap_or_else(PoisonError::into_inner).0;
            }
            let found = acts.iter().position(|act| act.is(who, order));
            return match found.and_then(|at| acts[at].outcome.map(|(outcome, _)| (at, outcome))) {
                Some((at, outcome)) => {
                    // Taken, unless this one is interrupted too.
                    if taken() {
                        acts.swap_remove(at);
                    }
                    outcome
                }
                None => Err(Errno::EINTR),
            };
        }
        let (container, tid) = (who.0.to_owned(), who.1);
        acts.push(Act { container, tid, order: order.clone(), outcome: None });
        drop(acts);
        let outcome = act();
        let taken = taken();
        let mut acts = self.acts.lock().unwrap_or_else(PoisonError::into_inner);
        if taken {
            acts.retain(|act| !act.is(who, order));
        } else if let Some(act) = acts.iter_mut().find(|act| act.is(who, order)) {
            act.outcome = Some((outcome, Instant::now()));
        }
        drop(acts);
        self.ended.notify_all();
        outcome
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::worker::mount::{How, Superblock};

    fn order(target: &str) -> Order {
        let how = How::Kernel(Superblock { parameters: Vec::new(), on_device: true, shift: false });
        Order {
            source: None,
            target: target.into(),
            filesystem: "ext4".into(),
            attributes: 0,
            read_only: false,
            how,
            deadline: Duration::from_secs(5),
        }
    }

    #[test]
    fn a_call_that_is_made_again_gets_the_first_ones_result() {
        let once = Once::new();
        let who = ("c", 7);
        assert_eq!(
            once.act(who, &order("/a"), || Err(Errno::ENOENT), || false),
            Err(Errno::ENOENT)
        );
        let again = || panic!("acted twice");
        assert_eq!(once.act(who, &order("/a"), again, || false), Err(Errno::ENOENT));
        assert_eq!(once.act(who, &order("/a"), again, || true), Err(Errno::ENOENT));
        assert_eq!(once.act(who, &order("/a"), || Ok(()), || true), Ok(()), "another call");
        assert!(once.acts.lock().unwrap().is_empty());
    }

    #[test]
    fn others_act_for_themselves() {
        let once = Once::new();
        once.act(("c", 7), &order("/a"), || Ok(()), || false).unwrap();
        let other = || Err(Errno::EPERM);
        assert!(once.act(("c", 8), &order("/a"), other, || true).is_err());
        assert!(once.act(("d", 7), &order("/a"), other, || true).is_err());
        assert!(once.act(("c", 7), &order("/b"), other, || true).is_err());
    }

    #[test]
    fn it_waits_for_an_act_that_is_under_way() {
        let once = Once::new();
        let (begun, begin) = std::sync::mpsc::channel();
        let slow = || {
            begun.send(()).unwrap();
            std::thread::sleep(Duration::from_millis(20));
            Ok(())
        };
        std::thread::scope(|scope| {
            let first = scope.spawn(|| once.act(("c", 7), &order("/a"), slow, || false));
            begin.recv().unwrap();
            let again = once.act(("c", 7), &order("/a"), || Err(Errno::EBUSY), || true);
            assert_eq!((first.join().unwrap(), again), (Ok(()), Ok(())));
        });
    }
}
