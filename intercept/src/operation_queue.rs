//! The queue of privileged operations, and its threads.
//!
//! A call that needs a privileged operation may block, so a listener thread must never run it. The
//! containers take turns: the next call of a container waits for running operations at most,
//! however many calls another container has queued. The number of running and waiting operations of
//! one container is bounded; a call over the limit is left to the kernel. The processor time of the
//! operations is charged to the container's account, and the next one waits until there is some
//! left. Idle threads end.
//!
//! Start reading at [`OperationQueue::enqueue`].

use std::collections::VecDeque;
use std::sync::{Arc, Condvar, Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant};

use ambit_worker::Broker;
use rustix::time::{ClockId, clock_gettime};

use super::account::Account;
use super::bucket;

/// Operations that run at a time, not counting those that hang.
const THREADS: usize = 64;

/// Running operations of one container: its filesystems may hang, and threads with them.
const EACH: usize = 8;

/// The highest number of threads, including those that hang.
const MOST: usize = 1024;
/// An operation that runs for longer counts as hung, and another thread may be started for it. It
/// still counts towards the eight of its container.
const LOST: Duration = Duration::from_secs(10);

/// The processor time for a request to the broker, which forks a process for it. That process is
/// charged to the container by the kernel.
const REQUEST: Duration = Duration::from_millis(1);

/// How long an idle thread waits before it ends.
const IDLE: Duration = Duration::from_secs(10);

/// Called with `true` to perform the operation, with `false` if it is over the limit.
type Job = Box<dyn FnOnce(bool) + Send>;

/// The operations that run and those that wait.
#[derive(Clone, Default)]
pub(super) struct OperationQueue(Arc<Inner>);

#[derive(Default)]
struct Inner {
    state: Mutex<State>,
    work: Condvar,
}

#[derive(Default)]
struct State {
    /// In the order of their turns: the first one is served next.
    containers: VecDeque<Container>,
    threads: usize,
    idle: usize,
    /// True while an idle thread waits for the turn of a container that has used up its budget.
    is_timed: bool,
}

struct Container {
    account: Arc<Account>,
    waiting: VecDeque<Job>,
    under_way: Vec<Instant>,
}

impl OperationQueue {
    /// Calls `job(true)` in another thread, when it is the container's turn. Calls `job(false)` at
    /// once in this thread if `limit` operations of the container run or wait already, or if no
    /// thread can be started.
    pub(super) fn enqueue(
        &self,
        account: &Arc<Account>,
        limit: usize,
        job: impl FnOnce(bool) + Send + 'static,
    ) {
        let mut state = self.0.lock();
        let at = state.containers.iter().position(|one| Arc::ptr_eq(&one.account, account));
        let at = at.unwrap_or_else(|| {
            let (waiting, under_way) = (VecDeque::new(), Vec::new());
            let account = Arc::clone(account);
            state.containers.push_back(Container { account, waiting, under_way });
            state.containers.len() - 1
        });
        let one = &mut state.containers[at];
        if one.waiting.len() + one.under_way.len() >= limit {
            drop(state);
            return job(false);
        }
        one.waiting.push_back(Box::new(job));
        if state.idle > 0 {
            // Unlock first: otherwise the thread that is woken waits for the lock.
            drop(state);
            self.0.work.notify_one();
        } else if state.threads < THREADS || state.may_replace_lost() {
            let shared = Arc::clone(&self.0);
            let thread = std::thread::Builder::new().name("act".into());
            match thread.spawn(move || shared.run()) {
                Ok(_) => state.threads += 1,
                // A running thread takes it when it has finished its operation.
                Err(_) if state.threads > 0 => {}
                Err(_) => {
                    let job = state.containers[at].waiting.pop_back();
                    drop(state);
                    if let Some(job) = job {
                        job(false);
                    }
                }
            }
        }
    }
}

impl Inner {
    fn lock(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Performs operations until there has been none for [`IDLE`].
    fn run(&self) {
        let mut state = self.lock();
        loop {
            let now = bucket::now();
            if let Some((account, began, job)) = state.take(now) {
                let more = state.idle > 0 && state.next_turn(now).is_some();
                drop(state);
                if more {
                    self.work.notify_one();
                }
                let before = used_by_this_thread();
                // `pipeline.rs` catches a panic of a handler. This catches any other one.
                let _ = std::panic::catch_unwind(std::panic::AssertUnwindSafe(|| job(true)));
                let used = used_by_this_thread().saturating_sub(before);
                account.charge_processor(bucket::now(), used);
                state = self.lock();
                state.ended(&account, began);
                continue;
            }
            // One idle thread waits for the next turn; the others wait for work.
            let turn = if state.is_timed { None } else { state.next_turn(now) };
            state.is_timed |= turn.is_some();
            state.idle += 1;
            let waited = self.work.wait_timeout(state, turn.map_or(IDLE, |turn| turn.min(IDLE)));
            let (again, timeout) = waited.unwrap_or_else(PoisonError::into_inner);
            state = again;
            state.idle -= 1;
            if turn.is_some() {
                state.is_timed = false;
            } else if timeout.timed_out() && state.waits_for_none() {
                state.threads -= 1;
                return;
            }
        }
    }
}

impl State {
    /// True if another thread may be started in place of one that hangs.
    fn may_replace_lost(&self) -> bool {
        let under_way = self.containers.iter().flat_map(|one| &one.under_way);
        let lost = under_way.filter(|began| began.elapsed() > LOST).count();
        self.threads < (THREADS + lost).min(MOST)
    }

    /// Takes the next operation, from the container that has waited longest for its turn.
    fn take(&mut self, now: u64) -> Option<(Arc<Account>, Instant, Job)> {
        let at = self.containers.iter().position(|one| one.turn(now) == Some(Duration::ZERO))?;
        let mut one = self.containers.remove(at)?;
        let job = one.waiting.pop_front()?;
        let began = Instant::now();
        one.under_way.push(began);
        let account = Arc::clone(&one.account);
        self.containers.push_back(one);
        Some((account, began, job))
    }

    /// Returns when the next operation may begin, if only budgets of processor time delay it.
    fn next_turn(&self, now: u64) -> Option<Duration> {
        self.containers.iter().filter_map(|one| one.turn(now)).min()
    }

    /// True if no operation waits, or another thread waits for its turn.
    fn waits_for_none(&self) -> bool {
        self.is_timed || self.next_turn(bucket::now()).is_none()
    }

    fn ended(&mut self, account: &Arc<Account>, began: Instant) {
        let is_it = |one: &Container| Arc::ptr_eq(&one.account, account);
        let Some(at) = self.containers.iter().position(is_it) else { return };
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
    /// Returns how long the next operation waits for the container's budget of processor time.
    /// `None` if there is no operation, or if one that runs must end first.
    fn turn(&self, now: u64) -> Option<Duration> {
        if self.waiting.is_empty() || self.under_way.len() >= EACH {
            return None;
        }
        match self.account.operations(now, EACH) {
            Ok(most) => (self.under_way.len() < most).then_some(Duration::ZERO),
            Err(wait) => Some(Duration::from_nanos(wait)),
        }
    }
}

/// Returns the processor time of this thread, and what its requests to the broker are charged.
fn used_by_this_thread() -> Duration {
    let used = clock_gettime(ClockId::ThreadCPUTime);
    Duration::try_from(used).unwrap_or_default() + REQUEST * Broker::requests_of_this_thread()
}

#[cfg(test)]
mod tests {
    use std::sync::mpsc::{Receiver, channel};

    use super::*;

    fn account(id: &str) -> Arc<Account> {
        Arc::new(Account::new(id))
    }

    #[test]
    fn a_container_without_processor_time_waits_and_another_does_not() {
        let queue = OperationQueue::default();
        let [poor, other] = ["poor", "other"].map(account);
        poor.charge_processor(bucket::now(), Duration::from_secs(60));
        let (sender, receiver) = channel();
        for (account, name) in [(&poor, "poor"), (&other, "other")] {
            let sender = sender.clone();
            queue.enqueue(account, 9, move |_| sender.send(name).unwrap());
        }
        assert_eq!(receiver.recv_timeout(Duration::from_secs(20)), Ok("other"));
        assert_eq!(receiver.recv_timeout(Duration::from_secs(20)), Ok("poor"));
    }

    #[test]
    fn an_operation_is_charged_the_processor_time_of_its_thread() {
        let (queue, account) = (OperationQueue::default(), account("a"));
        let (sender, receiver) = channel();
        queue.enqueue(&account, 9, move |_| {
            while clock_gettime(ClockId::ThreadCPUTime).tv_nsec < 300_000_000 {}
            sender.send(()).unwrap();
        });
        receiver.recv_timeout(Duration::from_secs(60)).unwrap();
        while !queue.0.lock().containers.is_empty() {
            std::thread::yield_now();
        }
        account.charge_processor(bucket::now(), Duration::from_millis(1750));
        assert!(account.operations(bucket::now(), 8).is_err(), "300 ms were charged before");
    }

    /// Queues `count` operations that block until the returned sender is dropped.
    fn blocked(
        queue: &OperationQueue,
        container: &Arc<Account>,
        count: usize,
    ) -> std::sync::mpsc::Sender<()> {
        let (sender, receiver) = channel::<()>();
        let receiver: Arc<Mutex<Receiver<()>>> = Arc::new(Mutex::new(receiver));
        for _ in 0..count {
            let receiver = Arc::clone(&receiver);
            queue.enqueue(container, count, move |granted| {
                assert!(granted);
                let _ = receiver.lock().unwrap().recv();
            });
        }
        sender
    }

    #[test]
    fn one_container_does_not_hold_up_another() {
        let queue = OperationQueue::default();
        let [hung_account, other] = ["hung", "other"].map(account);
        let hung = blocked(&queue, &hung_account, 200);
        let (sender, receiver) = channel();
        let refused = sender.clone();
        queue.enqueue(&hung_account, 200, move |granted| refused.send(i32::from(granted)).unwrap());
        assert_eq!(receiver.try_recv(), Ok(0), "its limit");
        for index in 0..50 {
            let sender = sender.clone();
            queue.enqueue(&other, 64, move |_| sender.send(index).unwrap());
        }
        let mut all: Vec<i32> =
            (0..50).map(|_| receiver.recv_timeout(Duration::from_secs(20)).unwrap()).collect();
        all.sort_unstable();
        assert_eq!(all, (0..50).collect::<Vec<_>>());
        drop(hung);
        while !queue.0.lock().containers.is_empty() {
            std::thread::yield_now();
        }
    }

    #[test]
    fn a_panic_ends_one_operation_and_no_other() {
        let queue = OperationQueue::default();
        let (sender, receiver) = channel();
        let account = account("a");
        queue.enqueue(&account, 9, |_| panic!("on purpose"));
        queue.enqueue(&account, 9, move |_| sender.send(()).unwrap());
        receiver.recv_timeout(Duration::from_secs(20)).unwrap();
    }
}
