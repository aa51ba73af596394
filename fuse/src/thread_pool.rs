//! Looks after the threads that serve a connection: for each that hangs, another one is started.
//!
//! Who samples a container reads files of the kernel, and no deadline ends a read that hangs: the
//! thread is lost until the file answers. Without others in their place, as many containers with
//! hung files as there are threads would stop the files for everybody. Whoever waits for what another
//! thread samples is bounded elsewhere, and is relieved like one that hangs.
//!
//! Who waits for a thread that hangs is answered in its place at last (`request_slot.rs`).
//!
//! What is started so is bounded. When all of them hang, one more serves that must not wait: it shows
//! the last good numbers of everybody, and rests as soon as others are free again.
//!
//! A thread that was started stays when the hang is over: a session cannot be told to end, and one
//! that sleeps costs some pages. The warden sleeps while nobody asks.

use std::cell::{Cell, OnceCell};
use std::io;
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};
use std::sync::{Arc, Condvar, Mutex, MutexGuard, OnceLock, PoisonError};
use std::thread::{JoinHandle, Thread};
use std::time::Duration;

use crate::error::Error;
use crate::recorder::{FileRequest, Refuse, RequestRecorder};
use crate::request_slot::RequestSlot;

/// How often is looked while there are requests.
const INTERVAL: Duration = Duration::from_millis(200);
/// A thread that so many looks find asleep at the same request hangs. Looks and not a clock, because
/// this process may have been stopped meanwhile; asleep, because where processors are short a
/// request may take long.
const HUNG_AFTER: u32 = 5;
/// So many looks without a request, and it sleeps.
const IDLE_AFTER: u32 = 10;
/// Asleep, it looks nevertheless this often.
const IDLE_INTERVAL: Duration = Duration::from_secs(30);
/// So many threads are started for others at most.
pub(crate) const MAX_SUBSTITUTES: usize = 16;
/// And so many of last resort: one is enough, unless a file of the machine hangs too.
const MAX_LAST_RESORT: usize = 4;

/// A thread that runs a session.
pub(crate) type SessionThread = JoinHandle<io::Result<()>>;

/// Who serves a connection, and who of them is at a request.
#[derive(Debug, Default)]
pub(crate) struct ThreadPool {
    slots: Mutex<Vec<Arc<RequestSlot>>>,
    substitutes: Mutex<Vec<SessionThread>>,
    last_resort: Mutex<Vec<SessionThread>>,
    /// All threads hang but those of last resort.
    is_full: Mutex<bool>,
    changed: Condvar,
    /// Threads that hung at the last look.
    hung: AtomicUsize,
    is_idle: AtomicBool,
    ended: AtomicBool,
    watchdog: OnceLock<Thread>,
    recorder: Option<Arc<dyn RequestRecorder>>,
}

thread_local! {
    /// This thread's. A thread serves one connection in its life.
    static SLOT: OnceCell<(Arc<RequestSlot>, usize)> = const { OnceCell::new() };
    static MUST_NOT_WAIT: Cell<bool> = const { Cell::new(false) };
}

/// What a thread is for.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum ThreadKind {
    /// To serve like any other.
    Regular,
    /// To serve when all others hang, and never to wait for a container's file.
    LastResort,
}

/// Is the calling thread the last one that does not hang?
pub(crate) fn must_not_wait() -> bool {
    MUST_NOT_WAIT.get()
}

impl ThreadPool {
    /// One of which somebody notes what it is at.
    pub(crate) fn with_recorder(recorder: Option<Arc<dyn RequestRecorder>>) -> Self {
        Self { recorder, ..Self::default() }
    }

    /// Does the work of one request, unless that has killed others.
    pub(crate) fn handle<R: Refuse>(
        &self,
        kind: ThreadKind,
        request: FileRequest,
        reply: R,
        work: impl FnOnce(&RequestSlot, R),
    ) {
        SLOT.with(|slot| {
            let (slot, recorder_slot) = slot.get_or_init(|| self.register_thread(kind));
            slot.begin_request();
            if slot.is_last_resort {
                MUST_NOT_WAIT.set(*lock(&self.is_full));
            }
            if self.is_idle.load(Ordering::Relaxed) {
                self.wake();
            }
            match &self.recorder {
                None => work(slot, reply),
                Some(recorder) => {
                    if recorder.begin(*recorder_slot, request) {
                        work(slot, reply);
                    } else {
                        reply.refuse();
                    }
                    recorder.end(*recorder_slot);
                }
            }
            slot.end_request();
            if slot.is_last_resort {
                self.wait_until_full();
            }
        });
    }

    /// A thread of last resort waits until all others hang.
    fn wait_until_full(&self) {
        let unneeded = |is_full: &mut bool| !*is_full && !self.ended.load(Ordering::Acquire);
        drop(self.changed.wait_while(lock(&self.is_full), unneeded));
    }

    fn register_thread(&self, kind: ThreadKind) -> (Arc<RequestSlot>, usize) {
        let slot = Arc::new(RequestSlot::for_this_thread(kind == ThreadKind::LastResort));
        lock(&self.slots).push(slot.clone());
        (slot, self.recorder.as_ref().map_or(0, |recorder| recorder.register_thread()))
    }

    fn wake(&self) {
        if let Some(watchdog) = self.watchdog.get() {
            watchdog.unpark();
        }
    }

    /// How many threads hang.
    pub(crate) fn hung(&self) -> usize {
        self.hung.load(Ordering::Relaxed)
    }

    /// Has one of those that were started for others ended? Only the end of the connection ends it.
    pub(crate) fn has_ended(&self) -> bool {
        let any =
            |threads: &Mutex<Vec<SessionThread>>| lock(threads).iter().any(JoinHandle::is_finished);
        any(&self.substitutes) || any(&self.last_resort)
    }

    /// Have all of them?
    pub(crate) fn have_all_ended(&self) -> bool {
        let all =
            |threads: &Mutex<Vec<SessionThread>>| lock(threads).iter().all(JoinHandle::is_finished);
        all(&self.substitutes) && all(&self.last_resort)
    }

    /// Nobody is started any more.
    pub(crate) fn close(&self) {
        let is_full = lock(&self.is_full);
        self.ended.store(true, Ordering::Release);
        self.changed.notify_all();
        drop(is_full);
        self.wake();
    }

    /// Starts the warden of so many threads; it calls `start` for each one that is to be started,
    /// and answers what is not answered for so long.
    pub(crate) fn start_watchdog(
        self: &Arc<Self>,
        threads: usize,
        patience: Duration,
        start: impl Fn(ThreadKind) -> Result<SessionThread, Error> + Send + 'static,
    ) -> io::Result<()> {
        let pool = Arc::clone(self);
        let watchdog =
            std::thread::Builder::new().name("fuse-watchdog".into()).spawn(move || {
                let late =
                    u32::try_from(patience.as_millis() / INTERVAL.as_millis()).unwrap_or(u32::MAX);
                let seen = Vec::with_capacity(64);
                Watchdog { pool, threads, late, seen, hung_last_resort: 0 }.run(start);
            })?;
        // Asleep by then at the earliest after some looks, each of which is waited for.
        let _ = self.watchdog.set(watchdog.thread().clone());
        Ok(())
    }
}

struct Watchdog {
    pool: Arc<ThreadPool>,
    /// Those that serve from the start.
    threads: usize,
    /// So many looks find a thread at a request that is answered in its place.
    late: u32,
    /// What each thread's turn was, and for how many looks.
    seen: Vec<(u64, u32)>,
    /// Threads of last resort that hang.
    hung_last_resort: usize,
}

impl Watchdog {
    fn run(mut self, start: impl Fn(ThreadKind) -> Result<SessionThread, Error>) {
        let mut idle = 0;
        while !self.pool.ended.load(Ordering::Acquire) {
            idle = if self.look() { 0 } else { idle + 1 };
            self.start_substitutes(&start);
            // The look after the last one is taken when everybody knows that it sleeps.
            self.pool.is_idle.store(idle >= IDLE_AFTER, Ordering::Relaxed);
            std::thread::park_timeout(if idle > IDLE_AFTER { IDLE_INTERVAL } else { INTERVAL });
        }
    }

    /// Looks at everybody; has anything been done, or is somebody at a request?
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

    /// Has as many threads started as hang.
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
        tracing::error!("cannot start a substitute for a thread that hangs: {error}")
    };
    start(kind).inspect_err(failed).ok()
}

fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}
