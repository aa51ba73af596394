//! Looks after the threads that serve a connection: for each that hangs, another one is started.
//!
//! Who samples a container reads files of the kernel, and no deadline ends a read that hangs: the
//! thread is lost until the file answers. Without others in their place, as many containers with
//! hung files as there are threads would stop the files for everybody. Whoever waits for what another
//! thread samples is bounded elsewhere, and is relieved like one that hangs.
//!
//! Who waits for a thread that hangs is answered in its place at last (`owed.rs`).
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
use crate::owed::Turn;
use crate::witness::{Asked, Refuse, Witness};

/// How often is looked while there are requests.
const LOOK: Duration = Duration::from_millis(200);
/// A thread that so many looks find asleep at the same request hangs. Looks and not a clock, because
/// this process may have been stopped meanwhile; asleep, because where processors are short a
/// request may take long.
const HUNG: u32 = 5;
/// So many looks without a request, and it sleeps.
const QUIET: u32 = 10;
/// Asleep, it looks nevertheless this often.
const ASLEEP: Duration = Duration::from_secs(30);
/// So many threads are started for others at most.
pub(crate) const RELIEF_AT_MOST: usize = 16;
/// And so many of last resort: one is enough, unless a file of the machine hangs too.
const LAST_AT_MOST: usize = 4;

/// A thread that runs a session.
pub(crate) type Served = JoinHandle<io::Result<()>>;

/// Who serves a connection, and who of them is at a request.
#[derive(Debug, Default)]
pub(crate) struct Crew {
    turns: Mutex<Vec<Arc<Turn>>>,
    relief: Mutex<Vec<Served>>,
    last: Mutex<Vec<Served>>,
    /// All threads hang but those of last resort.
    is_full: Mutex<bool>,
    changed: Condvar,
    /// Threads that hung at the last look.
    held: AtomicUsize,
    asleep: AtomicBool,
    ended: AtomicBool,
    warden: OnceLock<Thread>,
    witness: Option<Arc<dyn Witness>>,
}

thread_local! {
    /// This thread's. A thread serves one connection in its life.
    static TURN: OnceCell<(Arc<Turn>, usize)> = const { OnceCell::new() };
    static MUST_NOT_WAIT: Cell<bool> = const { Cell::new(false) };
}

/// What a thread is for.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Relief {
    /// To serve like any other.
    Usual,
    /// To serve when all others hang, and never to wait for a container's file.
    Last,
}

/// Is the calling thread the last one that does not hang?
pub(crate) fn must_not_wait() -> bool {
    MUST_NOT_WAIT.get()
}

impl Crew {
    /// One of which somebody notes what it is at.
    pub(crate) fn watched_by(witness: Option<Arc<dyn Witness>>) -> Self {
        Self { witness, ..Self::default() }
    }

    /// Does the work of one request, unless that has killed others.
    pub(crate) fn at_work<R: Refuse>(
        &self,
        kind: Relief,
        asked: Asked,
        reply: R,
        work: impl FnOnce(&Turn, R),
    ) {
        TURN.with(|turn| {
            let (turn, place) = turn.get_or_init(|| self.enlist(kind));
            turn.begin();
            if turn.is_last {
                MUST_NOT_WAIT.set(*lock(&self.is_full));
            }
            if self.asleep.load(Ordering::Relaxed) {
                self.wake();
            }
            match &self.witness {
                None => work(turn, reply),
                Some(witness) => {
                    if witness.begin(*place, asked) {
                        work(turn, reply);
                    } else {
                        reply.refuse();
                    }
                    witness.end(*place);
                }
            }
            turn.end();
            if turn.is_last {
                self.rest();
            }
        });
    }

    /// A thread of last resort waits until all others hang.
    fn rest(&self) {
        let unneeded = |is_full: &mut bool| !*is_full && !self.ended.load(Ordering::Acquire);
        drop(self.changed.wait_while(lock(&self.is_full), unneeded));
    }

    fn enlist(&self, kind: Relief) -> (Arc<Turn>, usize) {
        let turn = Arc::new(Turn::own(kind == Relief::Last));
        lock(&self.turns).push(turn.clone());
        (turn, self.witness.as_ref().map_or(0, |witness| witness.enlist()))
    }

    fn wake(&self) {
        if let Some(warden) = self.warden.get() {
            warden.unpark();
        }
    }

    /// How many threads hang.
    pub(crate) fn held(&self) -> usize {
        self.held.load(Ordering::Relaxed)
    }

    /// Has one of those that were started for others ended? Only the end of the connection ends it.
    pub(crate) fn has_ended(&self) -> bool {
        let any = |threads: &Mutex<Vec<Served>>| lock(threads).iter().any(JoinHandle::is_finished);
        any(&self.relief) || any(&self.last)
    }

    /// Have all of them?
    pub(crate) fn have_all_ended(&self) -> bool {
        let all = |threads: &Mutex<Vec<Served>>| lock(threads).iter().all(JoinHandle::is_finished);
        all(&self.relief) && all(&self.last)
    }

    /// Nobody is started any more.
    pub(crate) fn end(&self) {
        let is_full = lock(&self.is_full);
        self.ended.store(true, Ordering::Release);
        self.changed.notify_all();
        drop(is_full);
        self.wake();
    }

    /// Starts the warden of so many threads; it calls `start` for each one that is to be started,
    /// and answers what is not answered for so long.
    pub(crate) fn look_after(
        self: &Arc<Self>,
        threads: usize,
        patience: Duration,
        start: impl Fn(Relief) -> Result<Served, Error> + Send + 'static,
    ) -> io::Result<()> {
        let crew = Arc::clone(self);
        let warden = std::thread::Builder::new().name("fuse-warden".into()).spawn(move || {
            let late = u32::try_from(patience.as_millis() / LOOK.as_millis()).unwrap_or(u32::MAX);
            let seen = Vec::with_capacity(64);
            Warden { crew, threads, late, seen, held_of_last: 0 }.run(start);
        })?;
        // Asleep by then at the earliest after some looks, each of which is waited for.
        let _ = self.warden.set(warden.thread().clone());
        Ok(())
    }
}

struct Warden {
    crew: Arc<Crew>,
    /// Those that serve from the start.
    threads: usize,
    /// So many looks find a thread at a request that is answered in its place.
    late: u32,
    /// What each thread's turn was, and for how many looks.
    seen: Vec<(u64, u32)>,
    /// Threads of last resort that hang.
    held_of_last: usize,
}

impl Warden {
    fn run(mut self, start: impl Fn(Relief) -> Result<Served, Error>) {
        let mut quiet = 0;
        while !self.crew.ended.load(Ordering::Acquire) {
            quiet = if self.look() { 0 } else { quiet + 1 };
            self.relieve(&start);
            // The look after the last one is taken when everybody knows that it sleeps.
            self.crew.asleep.store(quiet >= QUIET, Ordering::Relaxed);
            std::thread::park_timeout(if quiet > QUIET { ASLEEP } else { LOOK });
        }
    }

    /// Looks at everybody; has anything been done, or is somebody at a request?
    fn look(&mut self) -> bool {
        let turns = lock(&self.crew.turns);
        self.seen.resize(turns.len(), (0, 0));
        let (mut active, mut held, mut held_of_last) = (false, 0, 0);
        for (turn, (seen, looks)) in turns.iter().zip(&mut self.seen) {
            let now = turn.number();
            let is_at_work = now % 2 == 1;
            active |= is_at_work || now != *seen;
            if now != *seen || !is_at_work {
                *looks = 0;
            } else if !turn.is_running() {
                *looks += 1;
            }
            *seen = now;
            let count = if turn.is_last { &mut held_of_last } else { &mut held };
            *count += usize::from(*looks >= HUNG);
            if *looks == self.late && turn.answer_late(now) {
                tracing::debug!("a request is answered in place of a thread that hangs");
            }
        }
        drop(turns);
        self.crew.held.store(held, Ordering::Relaxed);
        self.held_of_last = held_of_last;
        active
    }

    /// Has as many threads started as hang.
    fn relieve(&mut self, start: impl Fn(Relief) -> Result<Served, Error>) {
        let held = self.crew.held();
        let mut relief = lock(&self.crew.relief);
        while relief.len() < held.min(RELIEF_AT_MOST) {
            let Some(thread) = begin(&start, Relief::Usual) else { return };
            relief.push(thread);
            tracing::warn!(
                "a file hangs and holds a thread that serves files: another one is started ({} of \
                 at most {RELIEF_AT_MOST})",
                relief.len()
            );
        }
        drop(relief);
        let is_full = held >= self.threads + RELIEF_AT_MOST;
        let mut was_full = lock(&self.crew.is_full);
        if std::mem::replace(&mut *was_full, is_full) != is_full {
            self.crew.changed.notify_all();
            if is_full {
                tracing::error!(
                    "all {held} threads that serve files are held by files that hang: everybody is \
                     shown the last good numbers"
                );
            }
        }
        drop(was_full);
        let mut last = lock(&self.crew.last);
        if is_full && last.len() == self.held_of_last && last.len() < LAST_AT_MOST {
            last.extend(begin(&start, Relief::Last));
        }
    }
}

fn begin(start: impl Fn(Relief) -> Result<Served, Error>, kind: Relief) -> Option<Served> {
    let failed =
        |error: &Error| tracing::error!("no thread can be started for one that hangs: {error}");
    start(kind).inspect_err(failed).ok()
}

fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}
