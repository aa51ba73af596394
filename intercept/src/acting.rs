//! Threads for calls that take long, so that the listener threads never block.
//!
//! Containers take turns: however many calls one of them makes, another one's next call waits for
//! those under way at most. What one container may have under way and waiting is bounded; over the
//! limit the kernel answers instead. Threads end when there is nothing to do.

use std::collections::VecDeque;
use std::sync::{Arc, Condvar, Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant};

/// Acts at a time.
const THREADS: usize = 64;

/// Acts of one container at a time: its filesystems may hang, and threads with them.
const EACH: usize = 8;

/// Threads at most, with those that hang: an act for so long is lost to its container alone, which
/// has no more than its own eight.
const MOST: usize = 1024;
const LOST: Duration = Duration::from_secs(10);

/// How long a thread waits for something to do.
const IDLE: Duration = Duration::from_secs(10);

/// With `true` it acts, with `false` it is told that it may not.
type Act = Box<dyn FnOnce(bool) + Send>;

/// The acts that are under way and those that wait.
#[derive(Clone, Default)]
pub(super) struct Acting(Arc<Shared>);

#[derive(Default)]
struct Shared {
    state: Mutex<State>,
    work: Condvar,
}

#[derive(Default)]
struct State {
    /// In the order of their turns.
    containers: VecDeque<Container>,
    threads: usize,
    idle: usize,
}

struct Container {
    id: Arc<str>,
    waiting: VecDeque<Act>,
    under_way: Vec<Instant>,
}

impl Acting {
    /// Runs this with `true` in another thread, when it is the container's turn. With `false` it runs at
    /// once in this one: when `limit` acts of the container are under way or wait already, or no thread
    /// can be started.
    pub(super) fn hand_over(
        &self,
        container: &str,
        limit: usize,
        act: impl FnOnce(bool) + Send + 'static,
    ) {
        let mut state = self.0.lock();
        let at = state.containers.iter().position(|one| *one.id == *container);
        let at = at.unwrap_or_else(|| {
            let (waiting, under_way) = (VecDeque::new(), Vec::new());
            state.containers.push_back(Container { id: container.into(), waiting, under_way });
            state.containers.len() - 1
        });
        let one = &mut state.containers[at];
        if one.waiting.len() + one.under_way.len() >= limit {
            drop(state);
            return act(false);
        }
        one.waiting.push_back(Box::new(act));
        if state.idle > 0 {
            // First, or the thread that is woken waits for the lock.
            drop(state);
            self.0.work.notify_one();
        } else if state.threads < THREADS || state.may_replace_lost() {
            let shared = Arc::clone(&self.0);
            let thread = std::thread::Builder::new().name("act".into());
            match thread.spawn(move || shared.run()) {
                Ok(_) => state.threads += 1,
                // Whoever is at work takes it later.
                Err(_) if state.threads > 0 => {}
                Err(_) => {
                    let act = state.containers[at].waiting.pop_back();
                    drop(state);
                    if let Some(act) = act {
                        act(false);
                    }
                }
            }
        }
    }
}

impl Shared {
    fn lock(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// What a thread does.
    fn run(&self) {
        let mut state = self.lock();
        loop {
            if let Some((id, began, act)) = state.take() {
                drop(state);
                // A handler's panic is caught where it runs; this thread must go on in any case.
                let _ = std::panic::catch_unwind(std::panic::AssertUnwindSafe(|| act(true)));
                state = self.lock();
                state.ended(&id, began);
                continue;
            }
            state.idle += 1;
            let waited = self.work.wait_timeout(state, IDLE);
            let (again, timeout) = waited.unwrap_or_else(PoisonError::into_inner);
            state = again;
            state.idle -= 1;
            if timeout.timed_out() && !state.containers.iter().any(Container::ready) {
                state.threads -= 1;
                return;
            }
        }
    }
}

impl State {
    /// Do enough threads hang for another one?
    fn may_replace_lost(&self) -> bool {
        let under_way = self.containers.iter().flat_map(|one| &one.under_way);
        let lost = under_way.filter(|began| began.elapsed() > LOST).count();
        self.threads < (THREADS + lost).min(MOST)
    }

    /// The next act: that of the container that has waited longest for its turn.
    fn take(&mut self) -> Option<(Arc<str>, Instant, Act)> {
        let at = self.containers.iter().position(Container::ready)?;
        let mut one = self.containers.remove(at)?;
        let act = one.waiting.pop_front()?;
        let began = Instant::now();
        one.under_way.push(began);
        let id = Arc::clone(&one.id);
        self.containers.push_back(one);
        Some((id, began, act))
    }

    fn ended(&mut self, id: &Arc<str>, began: Instant) {
        let Some(at) = self.containers.iter().position(|one| Arc::ptr_eq(&one.id, id)) else {
            return;
        };
        let one = &mut self.containers[at];
        if let Some(at) = one.under_way.iter().position(|start| *start == began) {
            one.under_way.swap_remove(at);
        }
        if one.under_way.is_empty() && one.waiting.is_empty() {
            self.containers.remove(at);
        }
    }
}

impl Container {
    fn ready(&self) -> bool {
        !self.waiting.is_empty() && self.under_way.len() < EACH
    }
}

#[cfg(test)]
mod tests {
    use std::sync::mpsc::{Receiver, channel};

    use super::*;

    /// Hands over so many acts that wait for the receiver's sender to be dropped.
    fn blocked(acting: &Acting, container: &str, count: usize) -> std::sync::mpsc::Sender<()> {
        let (sender, receiver) = channel::<()>();
        let receiver: Arc<Mutex<Receiver<()>>> = Arc::new(Mutex::new(receiver));
        for _ in 0..count {
            let receiver = Arc::clone(&receiver);
            acting.hand_over(container, count, move |granted| {
                assert!(granted);
                let _ = receiver.lock().unwrap().recv();
            });
        }
        sender
    }

    #[test]
    fn one_container_does_not_hold_up_another() {
        let acting = Acting::default();
        let hung = blocked(&acting, "hung", 200);
        let (sender, receiver) = channel();
        let refused = sender.clone();
        acting.hand_over("hung", 200, move |granted| refused.send(i32::from(granted)).unwrap());
        assert_eq!(receiver.try_recv(), Ok(0), "its limit");
        for index in 0..50 {
            let sender = sender.clone();
            acting.hand_over("other", 64, move |_| sender.send(index).unwrap());
        }
        let mut all: Vec<i32> =
            (0..50).map(|_| receiver.recv_timeout(Duration::from_secs(20)).unwrap()).collect();
        all.sort_unstable();
        assert_eq!(all, (0..50).collect::<Vec<_>>());
        drop(hung);
        while !acting.0.lock().containers.is_empty() {
            std::thread::yield_now();
        }
    }

    #[test]
    fn a_panic_is_the_end_of_one_act() {
        let acting = Acting::default();
        let (sender, receiver) = channel();
        acting.hand_over("a", 9, |_| panic!("on purpose"));
        acting.hand_over("a", 9, move |_| sender.send(()).unwrap());
        receiver.recv_timeout(Duration::from_secs(20)).unwrap();
    }
}
