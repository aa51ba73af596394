//! Requests that wait for their turn.
//!
//! The kernel's queue of requests has one order for all containers, so a container delays every
//! reader of the machine if it makes thousands of pid namespaces, of which each first visit takes
//! long, or reads with a thousand threads. Such an owner has one request handled at a time: while it
//! is under way, the next ones wait for a thread that serves the owners in turns, and the threads of
//! the session read on. A request of an owner that has no other costs no switch of threads.
//!
//! Requests of known containers take turns only while the threads of the session are all busy, at
//! many requests in succession. Otherwise no owner is looked up.
//!
//! The thread must never be the only one that can go on: while it hangs, requests are handled at
//! once, and the watchdog starts another one for those that wait. Start reading at [`Turns::take`].

use std::collections::VecDeque;
use std::fmt;
use std::sync::atomic::{AtomicU32, AtomicUsize, Ordering};
use std::sync::{Arc, Condvar, Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant};

use ambit_kernel::lock;

/// A request that takes longer hangs.
const HUNG: Duration = Duration::from_secs(1);

/// The threads are crowded if so many requests in succession find all others busy. A few readers of
/// one container keep two threads busy too, and lose a third of their speed by turns.
const CROWDED_AFTER: usize = 16;

/// There are so many threads at most: each one but the last hangs.
const MOST_THREADS: usize = 16;

type Work = Box<dyn FnOnce() + Send>;

/// The requests that take turns, and those that wait.
#[derive(Default)]
pub(crate) struct Turns {
    inner: Arc<Inner>,
    /// How many threads serve from the start.
    threads: AtomicUsize,
    /// How many requests in succession found all other threads busy.
    streak: AtomicUsize,
    /// The thread that sent the last request.
    last: AtomicU32,
}

#[derive(Default)]
struct Inner {
    /// Requests that threads handle now.
    busy: AtomicUsize,
    state: Mutex<State>,
    /// Notified if a request waits while the thread has none, and when no owner is left.
    changed: Condvar,
}

#[derive(Default)]
struct State {
    /// In the order of their turns: the first one with a request that waits is served next.
    owners: VecDeque<Owner>,
    /// How many threads there are. The last one that was started serves, the others hang.
    threads: usize,
    /// How many were ever started, which is the number of the last one.
    last_thread: u64,
    /// When the thread began the request that it handles.
    began: Option<Instant>,
    is_draining: bool,
    has_ended: bool,
}

struct Owner {
    number: u64,
    under_way: usize,
    waiting: VecDeque<Work>,
}

/// Counts a request as handled now, until it is dropped.
pub(crate) struct Busy<'a>(&'a AtomicUsize);

impl Drop for Busy<'_> {
    fn drop(&mut self) {
        self.0.fetch_sub(1, Ordering::Relaxed);
    }
}

impl Turns {
    pub(crate) fn set_threads(&self, threads: usize) {
        self.threads.store(threads, Ordering::Relaxed);
    }

    /// Begins a request that this thread has sent. True if requests of all containers take turns.
    ///
    /// A thread that sends one request after the other finds that the one before has just been
    /// answered, by a thread that has not gone on yet: such requests do not count.
    pub(crate) fn begin(&self, sender: u32) -> (Busy<'_>, bool) {
        let others = self.inner.busy.fetch_add(1, Ordering::Relaxed);
        let all_others = self.threads.load(Ordering::Relaxed).saturating_sub(1).max(1);
        let is_another = self.last.swap(sender, Ordering::Relaxed) != sender;
        let before = if others >= all_others && is_another {
            self.streak.fetch_add(1, Ordering::Relaxed)
        } else {
            self.streak.store(0, Ordering::Relaxed);
            0
        };
        (Busy(&self.inner.busy), before >= CROWDED_AFTER)
    }

    /// Handles a request of an owner at once, if the owner has no other one under way. Otherwise it
    /// waits for its turn in another thread.
    pub(crate) fn take(&self, owner: u64, work: impl FnOnce() + Send + 'static) {
        let inner = &self.inner;
        let mut state = lock(&inner.state);
        let at_once = state.is_draining || state.hangs();
        match state.owners.iter_mut().find(|known| known.number == owner) {
            Some(known) if !at_once => known.waiting.push_back(Box::new(work)),
            Some(known) => {
                known.under_way += 1;
                return inner.handle(state, owner, work);
            }
            None => {
                let waiting = VecDeque::new();
                state.owners.push_back(Owner { number: owner, under_way: 1, waiting });
                return inner.handle(state, owner, work);
            }
        }
        if state.threads == 0 && !inner.start_thread(&mut state) {
            // The thread of this session handles what waits.
            while let Some((owner, work)) = state.next() {
                inner.handle(state, owner, work);
                state = lock(&inner.state);
            }
            return;
        }
        let sleeps = state.began.is_none();
        drop(state);
        if sleeps {
            inner.changed.notify_all();
        }
    }

    /// Starts another thread if the one that serves hangs, and requests wait for it.
    pub(crate) fn look(&self) {
        let mut state = lock(&self.inner.state);
        let waits = state.owners.iter().any(|owner| !owner.waiting.is_empty());
        if waits && state.hangs() && state.threads < MOST_THREADS {
            self.inner.start_thread(&mut state);
        }
    }

    /// Waits until no request waits, for so long at most, and lets no further one wait meanwhile.
    pub(crate) fn drain(&self, patience: Duration) {
        let mut state = lock(&self.inner.state);
        state.is_draining = true;
        let some = |state: &mut State| !state.owners.is_empty();
        let waited = self.inner.changed.wait_timeout_while(state, patience, some);
        waited.unwrap_or_else(PoisonError::into_inner).0.is_draining = false;
    }
}

impl Inner {
    /// Handles a request that is counted as under way.
    fn handle(&self, state: MutexGuard<'_, State>, owner: u64, work: impl FnOnce()) {
        drop(state);
        work();
        let mut state = lock(&self.state);
        state.ended(owner);
        let none = state.owners.is_empty();
        drop(state);
        if none {
            self.changed.notify_all();
        }
    }

    /// Starts a thread that serves from now on. False if it cannot be started.
    fn start_thread(self: &Arc<Self>, state: &mut State) -> bool {
        let (its, number) = (Arc::clone(self), state.last_thread + 1);
        let thread = std::thread::Builder::new().name("fuse-turns".into());
        let is_started = thread.spawn(move || its.run(number)).is_ok();
        if is_started {
            state.threads += 1;
            state.last_thread = number;
            state.began = None;
        }
        is_started
    }

    fn run(&self, number: u64) {
        let mut state = lock(&self.state);
        while !state.has_ended && state.last_thread == number {
            if let Some((owner, work)) = state.next() {
                state.began = Some(Instant::now());
                self.busy.fetch_add(1, Ordering::Relaxed);
                let busy = Busy(&self.busy);
                self.handle(state, owner, work);
                drop(busy);
                state = lock(&self.state);
                if state.last_thread == number {
                    state.began = None;
                }
            } else {
                state = self.changed.wait(state).unwrap_or_else(PoisonError::into_inner);
            }
        }
        state.threads -= 1;
    }
}

impl State {
    /// True if the thread that serves hangs.
    fn hangs(&self) -> bool {
        self.began.is_some_and(|began| began.elapsed() > HUNG)
    }

    /// Takes the next request, of the owner that has waited longest for its turn.
    fn next(&mut self) -> Option<(u64, Work)> {
        let at = self.owners.iter().position(|owner| !owner.waiting.is_empty())?;
        let mut owner = self.owners.remove(at)?;
        let work = owner.waiting.pop_front();
        owner.under_way += 1;
        let number = owner.number;
        self.owners.push_back(owner);
        Some((number, work?))
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

impl fmt::Debug for Turns {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Turns").finish_non_exhaustive()
    }
}

impl Drop for Turns {
    fn drop(&mut self) {
        lock(&self.inner.state).has_ended = true;
        self.inner.changed.notify_all();
    }
}

#[cfg(test)]
mod tests {
    use std::sync::mpsc::channel;

    use super::*;

    #[test]
    fn an_owner_with_many_requests_does_not_delay_another() {
        let turns = Arc::new(Turns::default());
        let (sender, receiver) = channel();
        let (begun, open) = (channel::<()>(), channel::<()>());
        let first = {
            let (turns, sender) = (Arc::clone(&turns), sender.clone());
            let (begin, wait) = (begun.0, open.1);
            std::thread::spawn(move || {
                turns.take(1, move || {
                    begin.send(()).unwrap();
                    wait.recv().unwrap();
                    sender.send((1, 0)).unwrap();
                });
            })
        };
        begun.1.recv().unwrap();
        // The thread is held up by owner 2 until all of them wait.
        let (hold, held) = channel::<()>();
        turns.take(2, || ());
        let (busy, is_busy) = channel::<()>();
        turns.take(1, move || {
            busy.send(()).unwrap();
            held.recv().unwrap();
        });
        is_busy.recv().unwrap();
        for number in 1..=50 {
            let sender = sender.clone();
            turns.take(1, move || sender.send((1, number)).unwrap());
        }
        let this = std::thread::current().id();
        let other = sender.clone();
        turns.take(3, move || {
            assert_eq!(std::thread::current().id(), this, "at once");
            other.send((3, 0)).unwrap();
        });
        assert_eq!(receiver.try_recv(), Ok((3, 0)));
        hold.send(()).unwrap();
        open.0.send(()).unwrap();
        first.join().unwrap();
        drop(sender);
        turns.drain(Duration::from_secs(20));
        assert!(lock(&turns.inner.state).owners.is_empty());
        let all: Vec<_> = receiver.iter().collect();
        assert_eq!(all.len(), 51);
    }

    #[test]
    fn what_waits_for_a_thread_that_hangs_is_handled_by_another() {
        let turns = Arc::new(Turns::default());
        let (begun, is_begun) = channel::<()>();
        let (end, is_over) = channel::<()>();
        let (ended, has_ended) = channel::<()>();
        // Within a request of owners 1 and 2, whose next ones wait.
        let its = Arc::clone(&turns);
        turns.take(1, move || {
            its.take(1, move || {
                begun.send(()).unwrap();
                is_over.recv().unwrap();
            });
            is_begun.recv().unwrap();
            let again = Arc::clone(&its);
            its.take(2, move || again.take(2, move || ended.send(()).unwrap()));
        });
        assert!(has_ended.try_recv().is_err(), "it waits");
        turns.look();
        assert!(has_ended.try_recv().is_err(), "the thread may be slow");
        std::thread::sleep(HUNG + Duration::from_millis(50));
        turns.look();
        has_ended.recv_timeout(Duration::from_secs(20)).unwrap();
        end.send(()).unwrap();
        turns.drain(Duration::from_secs(20));
        assert!(lock(&turns.inner.state).owners.is_empty());
    }

    #[test]
    fn requests_take_turns_while_all_threads_are_busy() {
        let turns = Turns::default();
        turns.set_threads(3);
        let mut senders = 1..;
        let mut takes_turns = || turns.begin(senders.next().unwrap()).1;
        let first = turns.begin(0);
        assert!((0..50).all(|_| !takes_turns()), "a thread has no request");
        let second = turns.begin(0);
        let until: Vec<_> = (0..20).map(|_| takes_turns()).collect();
        let expected: Vec<_> = (0..20).map(|before| before >= CROWDED_AFTER).collect();
        assert_eq!(until, expected);
        drop(turns.begin(99));
        assert!((0..50).all(|_| !turns.begin(99).1), "all of one sender");
        drop((first, second));
        assert!((0..50).all(|_| !takes_turns()));
    }

    #[test]
    fn owners_whose_requests_wait_are_served_in_turns() {
        let mut state = State::default();
        for (number, count) in [(1, 3), (2, 1), (3, 2)] {
            let waiting = (0..count).map(|_| Box::new(|| ()) as Work).collect();
            state.owners.push_back(Owner { number, under_way: 0, waiting });
        }
        let order: Vec<_> = std::iter::from_fn(|| state.next().map(|(owner, _)| owner)).collect();
        assert_eq!(order, [1, 2, 3, 1, 3, 1]);
    }
}
