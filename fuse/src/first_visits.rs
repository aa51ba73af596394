//! The first visits of containers, in turns.
//!
//! The numbers of a container that was not asked for before, or that is being set up, take much
//! longer than those of another. The kernel's queue of requests has one order for all containers, so
//! a container that makes thousands of pid namespaces would delay every reader of the machine. While
//! a first visit of an owner is under way, the next ones of that owner wait for a thread that serves
//! the owners in turns, and the threads of the session read on. So the first visit of an owner that
//! has no other costs no switch of threads.
//!
//! The thread must never be the only one that can go on: while it hangs, visits are made at once.
//! Start reading at [`FirstVisits::visit`].

use std::collections::VecDeque;
use std::sync::{Arc, Condvar, Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant};

use ambit_kernel::lock;

/// A visit that takes longer hangs.
const HUNG: Duration = Duration::from_secs(1);

type Visit = Box<dyn FnOnce() + Send>;

/// The first visits that are under way and those that wait.
#[derive(Default)]
pub(crate) struct FirstVisits(Arc<Inner>);

#[derive(Default)]
struct Inner {
    state: Mutex<State>,
    changed: Condvar,
}

#[derive(Default)]
struct State {
    /// In the order of their turns: the first one with a visit that waits is served next.
    owners: VecDeque<Owner>,
    has_thread: bool,
    /// When the thread began the visit that it makes.
    began: Option<Instant>,
    has_ended: bool,
}

struct Owner {
    number: u64,
    under_way: usize,
    waiting: VecDeque<Visit>,
}

impl FirstVisits {
    /// Makes a visit of an owner at once, if the owner has no other one. Otherwise the visit waits
    /// for its turn in another thread.
    pub(crate) fn visit(&self, owner: u64, visit: impl FnOnce() + Send + 'static) {
        let mut state = lock(&self.0.state);
        let hangs = state.began.is_some_and(|began| began.elapsed() > HUNG);
        match state.owners.iter_mut().find(|known| known.number == owner) {
            Some(known) if !hangs => known.waiting.push_back(Box::new(visit)),
            Some(known) => {
                known.under_way += 1;
                return self.0.make(state, owner, visit);
            }
            None => {
                let waiting = VecDeque::new();
                state.owners.push_back(Owner { number: owner, under_way: 1, waiting });
                return self.0.make(state, owner, visit);
            }
        }
        if !state.has_thread {
            let inner = Arc::clone(&self.0);
            let thread = std::thread::Builder::new().name("first-visits".into());
            state.has_thread = thread.spawn(move || inner.run()).is_ok();
            if !state.has_thread {
                // The thread of this session makes what waits.
                while let Some((owner, visit)) = state.take() {
                    self.0.make(state, owner, visit);
                    state = lock(&self.0.state);
                }
                return;
            }
        }
        drop(state);
        self.0.changed.notify_all();
    }

    /// Waits until no visit waits, for so long at most.
    pub(crate) fn drain(&self, patience: Duration) {
        let some = |state: &mut State| !state.owners.is_empty();
        drop(self.0.changed.wait_timeout_while(lock(&self.0.state), patience, some));
    }
}

impl Inner {
    /// Makes a visit that is counted as under way.
    fn make(&self, state: MutexGuard<'_, State>, owner: u64, visit: impl FnOnce()) {
        drop(state);
        visit();
        lock(&self.state).ended(owner);
        self.changed.notify_all();
    }

    fn run(&self) {
        let mut state = lock(&self.state);
        while !state.has_ended {
            if let Some((owner, visit)) = state.take() {
                state.began = Some(Instant::now());
                self.make(state, owner, visit);
                state = lock(&self.state);
                state.began = None;
            } else {
                state = self.changed.wait(state).unwrap_or_else(PoisonError::into_inner);
            }
        }
    }
}

impl State {
    /// Takes the next visit, of the owner that has waited longest for its turn.
    fn take(&mut self) -> Option<(u64, Visit)> {
        let at = self.owners.iter().position(|owner| !owner.waiting.is_empty())?;
        let mut owner = self.owners.remove(at)?;
        let visit = owner.waiting.pop_front();
        owner.under_way += 1;
        let number = owner.number;
        self.owners.push_back(owner);
        Some((number, visit?))
    }

    fn ended(&mut self, number: u64) {
        let Some(at) = self.owners.iter().position(|owner| owner.number == number) else { return };
        let owner = &mut self.owners[at];
        owner.under_way -= 1;
        if owner.under_way == 0 && owner.waiting.is_empty() {
            self.owners.remove(at);
        }
        if self.owners.is_empty() {
            // A burst of owners is not kept in memory.
            self.owners = VecDeque::new();
        }
    }
}

impl Drop for FirstVisits {
    fn drop(&mut self) {
        lock(&self.0.state).has_ended = true;
        self.0.changed.notify_all();
    }
}

#[cfg(test)]
mod tests {
    use std::sync::mpsc::channel;

    use super::*;

    #[test]
    fn an_owner_with_many_visits_does_not_delay_another() {
        let visits = Arc::new(FirstVisits::default());
        let (sender, receiver) = channel();
        let (begun, open) = (channel::<()>(), channel::<()>());
        let first = {
            let (visits, sender) = (Arc::clone(&visits), sender.clone());
            let (begin, wait) = (begun.0, open.1);
            std::thread::spawn(move || {
                visits.visit(1, move || {
                    begin.send(()).unwrap();
                    wait.recv().unwrap();
                    sender.send((1, 0)).unwrap();
                });
            })
        };
        begun.1.recv().unwrap();
        // The thread is held up by owner 2 until all of them wait.
        let (hold, held) = channel::<()>();
        visits.visit(2, || ());
        let (busy, is_busy) = channel::<()>();
        visits.visit(1, move || {
            busy.send(()).unwrap();
            held.recv().unwrap();
        });
        is_busy.recv().unwrap();
        for number in 1..=50 {
            let sender = sender.clone();
            visits.visit(1, move || sender.send((1, number)).unwrap());
        }
        let this = std::thread::current().id();
        let other = sender.clone();
        visits.visit(3, move || {
            assert_eq!(std::thread::current().id(), this, "at once");
            other.send((3, 0)).unwrap();
        });
        assert_eq!(receiver.try_recv(), Ok((3, 0)));
        hold.send(()).unwrap();
        open.0.send(()).unwrap();
        first.join().unwrap();
        drop(sender);
        visits.drain(Duration::from_secs(20));
        assert!(lock(&visits.0.state).owners.is_empty());
        let all: Vec<_> = receiver.iter().collect();
        assert_eq!(all.len(), 51);
    }

    #[test]
    fn owners_whose_visits_wait_are_served_in_turns() {
        let mut state = State::default();
        for (number, count) in [(1, 3), (2, 1), (3, 2)] {
            let waiting = (0..count).map(|_| Box::new(|| ()) as Visit).collect();
            state.owners.push_back(Owner { number, under_way: 0, waiting });
        }
        let order: Vec<_> = std::iter::from_fn(|| state.take().map(|(owner, _)| owner)).collect();
        assert_eq!(order, [1, 2, 3, 1, 3, 1]);
    }
}
