//! The threads that serve a connection, and the watchdog that starts a substitute for each one that
//! hangs.
//!
//! No deadline ends a read(2) of a kernel file that hangs: the thread that samples the container is
//! lost until the file answers. Without substitutes, a few containers with hanging files would stop
//! the overlay for all.
//!
//! The request of a thread that hangs is answered by the watchdog after `patience`
//! (`request_slot.rs`).
//!
//! The number of substitutes is bounded. If all hang, a thread of last resort serves, which must
//! not wait for a file of a container: it shows the last good numbers. A substitute stays when the
//! hang is over, because a session cannot be told to end.
//!
//! Start reading at [`ThreadPool::handle`].

use std::cell::{Cell, OnceCell};
use std::io;
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};
use std::sync::{Arc, Condvar, Mutex, MutexGuard, OnceLock};
use std::thread::JoinHandle;
use std::time::Duration;

use ambit_kernel::lock;
use ambit_kernel::recorder::{Recorder, Request, RequestRecord};
use ambit_kernel::watchdog::Watchdog;

use crate::error::Error;
use crate::recorder::Refuse;
use crate::request_slot::RequestSlot;
use crate::turns::Turns;

/// Interval of the watchdog while there are requests.
const INTERVAL: Duration = Duration::from_millis(200);
/// Number of checks without a request after which the watchdog sleeps.
const IDLE_AFTER: u32 = 10;
/// Number of checks that find a thread asleep at the same request after which it counts as hung.
/// Checks are counted instead of time, because this process may be stopped meanwhile. Only a
/// sleeping thread hangs, because a request may take long when processors are short.
const HUNG_AFTER: u32 = 5;
pub(crate) const MAX_SUBSTITUTES: usize = 16;
/// Most threads of last resort: one is enough, unless a file of the machine hangs too.
const MAX_LAST_RESORT: usize = 4;

/// A thread that runs a session.
pub(crate) type SessionThread = JoinHandle<io::Result<()>>;

/// The threads of a connection and their requests.
#[derive(Debug, Default)]
pub(crate) struct ThreadPool {
    slots: Mutex<Vec<Arc<RequestSlot>>>,
    substitutes: Mutex<Vec<SessionThread>>,
    last_resort: Mutex<Vec<SessionThread>>,
    /// Set while all threads but those of last resort hang.
    is_full: Mutex<bool>,
    changed: Condvar,
    /// Number of threads that hung at the last check.
    hung: AtomicUsize,
    ended: AtomicBool,
    watchdog: OnceLock<Watchdog>,
    recorder: Option<Arc<dyn Recorder>>,
    pub(crate) turns: Turns,
}

thread_local! {
    /// The slot of this thread, which serves one connection in its life.
    static SLOT: OnceCell<Arc<RequestSlot>> = const { OnceCell::new() };
    static MUST_NOT_WAIT: Cell<bool> = const { Cell::new(false) };
}

/// The purpose of a thread.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum ThreadKind {
    /// Serves requests.
    Regular,
    /// Serves while all others hang, and never waits for a file of a container.
    LastResort,
}

/// True if the calling thread is one of last resort and all others hang.
pub(crate) fn must_not_wait() -> bool {
    MUST_NOT_WAIT.get()
}

impl ThreadPool {
    /// Creates a pool whose requests are recorded.
    pub(crate) fn with_recorder(recorder: Option<Arc<dyn Recorder>>) -> Self {
        Self { recorder, ..Self::default() }
    }

    /// Handles one request, unless the recorder refuses it.
    pub(crate) fn handle<R: Refuse>(
        &self,
        kind: ThreadKind,
        request: Request,
        reply: R,
        work: impl FnOnce(&RequestSlot, R),
    ) {
        SLOT.with(|slot| {
            let slot = slot.get_or_init(|| self.register_thread(kind));
            slot.advance();
            if slot.is_last_resort {
                MUST_NOT_WAIT.set(*lock(&self.is_full));
            }
            if let Some(watchdog) = self.watchdog.get() {
                watchdog.wake();
            }
            match RequestRecord::begin(self.recorder.as_deref(), request) {
                Some(_record) => work(slot, reply),
                None => reply.refuse(),
            }
            slot.advance();
            if slot.is_last_resort {
                self.wait_until_full();
            }
        });
    }

    /// Blocks a thread of last resort until all others hang.
    fn wait_until_full(&self) {
        let unneeded = |is_full: &mut bool| !*is_full && !self.ended.load(Ordering::Acquire);
        drop(self.changed.wait_while(lock(&self.is_full), unneeded));
    }

    fn register_thread(&self, kind: ThreadKind) -> Arc<RequestSlot> {
        let slot = Arc::new(RequestSlot::for_this_thread(kind == ThreadKind::LastResort));
        lock(&self.slots).push(slot.clone());
        slot
    }

    /// Returns how many threads hang.
    pub(crate) fn hung(&self) -> usize {
        self.hung.load(Ordering::Relaxed)
    }

    /// True if a substitute has ended, which it does only when the connection has ended.
    pub(crate) fn has_ended(&self) -> bool {
        self.substitutes().any(|threads| threads.iter().any(JoinHandle::is_finished))
    }

    /// True if all substitutes have ended.
    pub(crate) fn have_all_ended(&self) -> bool {
        self.substitutes().all(|threads| threads.iter().all(JoinHandle::is_finished))
    }

    fn substitutes(&self) -> impl Iterator<Item = MutexGuard<'_, Vec<SessionThread>>> {
        [&self.substitutes, &self.last_resort].into_iter().map(lock)
    }

    /// Ends the watchdog; no thread is started any more.
    pub(crate) fn close(&self) {
        let is_full = lock(&self.is_full);
        self.ended.store(true, Ordering::Release);
        self.changed.notify_all();
        drop(is_full);
        if let Some(watchdog) = self.watchdog.get() {
            watchdog.stop();
        }
    }

    /// Starts the watchdog of a connection with this many threads. It calls `start` for each
    /// substitute, and answers a request that a thread has not answered within `patience`.
    pub(crate) fn start_watchdog(
        self: &Arc<Self>,
        threads: usize,
        patience: Duration,
        start: impl Fn(ThreadKind) -> Result<SessionThread, Error> + Send + 'static,
    ) -> io::Result<()> {
        self.turns.set_threads(threads);
        let late = u32::try_from(patience.as_millis() / INTERVAL.as_millis()).unwrap_or(u32::MAX);
        let (pool, seen) = (Arc::clone(self), Vec::with_capacity(64));
        let mut checks = Checks { pool, threads, late, seen, hung_last_resort: 0 };
        let watchdog = Watchdog::start("fuse-watchdog", INTERVAL, IDLE_AFTER, move || {
            if checks.pool.ended.load(Ordering::Acquire) {
                return None;
            }
            let is_active = checks.look();
            checks.pool.turns.look();
            checks.start_substitutes(&start);
            Some(is_active)
        })?;
        // Set before it is needed: the watchdog sleeps after ten checks at the earliest.
        let _ = self.watchdog.set(watchdog);
        Ok(())
    }
}

/// The state of the watchdog.
struct Checks {
    pool: Arc<ThreadPool>,
    /// Number of threads that serve from the start.
    threads: usize,
    /// Number of checks after which a request is answered in place of its thread.
    late: u32,
    /// The sequence number of each thread, and the checks that found it unchanged.
    seen: Vec<(u64, u32)>,
    /// Threads of last resort that hang.
    hung_last_resort: usize,
}

impl Checks {
    /// Checks all threads. True if a request was handled since the last check, or is being handled.
    fn look(&mut self) -> bool {
        let slots = lock(&self.pool.slots);
        self.seen.resize(slots.len(), (0, 0));
        let (mut active, mut hung, mut hung_last_resort) = (false, 0, 0);
        for (slot, (seen, looks)) in slots.iter().zip(&mut self.seen) {
            let now = slot.sequence();
            let is_busy = now % 2 == 1;
            active |= is_busy || now != *seen;
            if now != *seen || !is_busy {
                *looks = 0;
            } else if !slot.is_running() {
                *looks += 1;
            }
            *seen = now;
            let count = if slot.is_last_resort { &mut hung_last_resort } else { &mut hung };
            *count += usize::from(*looks >= HUNG_AFTER);
            if *looks == self.late && slot.answer_late(now) {
                tracing::debug!("a request is answered in place of a thread that hangs");
            }
        }
        drop(slots);
        self.pool.hung.store(hung, Ordering::Relaxed);
        self.hung_last_resort = hung_last_resort;
        active
    }

    /// Starts a substitute for each thread that hangs, and one of last resort if all hang.
    fn start_substitutes(&mut self, start: impl Fn(ThreadKind) -> Result<SessionThread, Error>) {
        let hung = self.pool.hung();
        let mut substitutes = lock(&self.pool.substitutes);
        while substitutes.len() < hung.min(MAX_SUBSTITUTES) {
            let Some(thread) = begin(&start, ThreadKind::Regular) else { return };
            substitutes.push(thread);
            tracing::warn!(
                "a thread that serves files is in a read of a kernel file that hangs: a substitute is \
                 started ({} of at most {MAX_SUBSTITUTES})",
                substitutes.len()
            );
        }
        drop(substitutes);
        let is_full = hung >= self.threads + MAX_SUBSTITUTES;
        let mut was_full = lock(&self.pool.is_full);
        if std::mem::replace(&mut *was_full, is_full) != is_full {
            self.pool.changed.notify_all();
            if is_full {
                tracing::error!(
                    "all {hung} threads that serve files are in reads of kernel files that hang: every \
                     container is shown its last good numbers"
                );
            }
        }
        drop(was_full);
        let mut last_resort = lock(&self.pool.last_resort);
        if is_full
            && last_resort.len() == self.hung_last_resort
            && last_resort.len() < MAX_LAST_RESORT
        {
            last_resort.extend(begin(&start, ThreadKind::LastResort));
        }
    }
}

fn begin(
    start: impl Fn(ThreadKind) -> Result<SessionThread, Error>,
    kind: ThreadKind,
) -> Option<SessionThread> {
    let failed = |error: &Error| {
        tracing::error!("cannot start a substitute for a thread that hangs: {error}");
    };
    start(kind).inspect_err(failed).ok()
}
