//! Looks after the threads that serve a connection: for each that hangs, another one is started.
//!
//! Who samples a container reads files of the kernel, and no deadline ends a read that hangs: the
//! thread is lost until the file answers. Without others in their place, as many containers with
//! hung files as there are threads would stop the files for everybody. Whoever waits for what another
//! thread samples is bounded elsewhere, and is relieved like one that hangs.
//!
//! Who waits for a thread that hangs is answered in its place at last (`owed.rs`).
//!
//! A thread that was started stays when the hang is over: a session cannot be told to end, and one
//! that sleeps costs some pages. The warden sleeps while nobody asks.

use std::cell::OnceCell;
use std::io;
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, OnceLock, PoisonError};
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

/// A thread that runs a session.
pub(crate) type Served = JoinHandle<io::Result<()>>;

/// Who serves a connection, and who of them is at a request.
#[derive(Debug, Default)]
pub(crate) struct Crew {
    turns: Mutex<Vec<Arc<Turn>>>,
    relief: Mutex<Vec<Served>>,
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
}

impl Crew {
    /// One of which somebody notes what it is at.
    pub(crate) fn watched_by(witness: Option<Arc<dyn Witness>>) -> Self {
        Self { witness, ..Self::default() }
    }

    /// Does the work of one request, unless that has killed others.
    pub(crate) fn at_work<R: Refuse>(&self, asked: Asked, reply: R, work: impl FnOnce(&Turn, R)) {
        TURN.with(|turn| {
            let (turn, place) = turn.get_or_init(|| self.enlist());
            turn.begin();
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
        });
    }

    fn enlist(&self) -> (Arc<Turn>, usize) {
        let turn = Arc::new(Turn::own());
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
        lock(&self.relief).iter().any(JoinHandle::is_finished)
    }

    /// Have all of them?
    pub(crate) fn have_all_ended(&self) -> bool {
        lock(&self.relief).iter().all(JoinHandle::is_finished)
    }

    /// Nobody is started any more.
    pub(crate) fn end(&self) {
        self.ended.store(true, Ordering::Release);
        self.wake();
    }

    /// Starts the warden; it calls `start` for each thread that is to be started, and answers what
    /// is not answered for so long.
    pub(crate) fn look_after(
        self: &Arc<Self>,
        patience: Duration,
        start: impl Fn() -> Result<Served, Error> + Send + 'static,
    ) -> io::Result<()> {
        let crew = Arc::clone(self);
        let warden = std::thread::Builder::new().name("fuse-warden".into()).spawn(move || {
            let late = u32::try_from(patience.as_millis() / LOOK.as_millis()).unwrap_or(u32::MAX);
            Warden { crew, late, seen: Vec::with_capacity(64), is_full: false }.run(start);
        })?;
        // Asleep by then at the earliest after some looks, each of which is waited for.
        let _ = self.warden.set(warden.thread().clone());
        Ok(())
    }
}

struct Warden {
    crew: Arc<Crew>,
    /// So many looks find a thread at a request that is answered in its place.
    late: u32,
    /// What each thread's turn was, and for how many looks.
    seen: Vec<(u64, u32)>,
    is_full: bool,
}

impl Warden {
    fn run(mut self, start: impl Fn() -> Result<Served, Error>) {
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
        let (mut active, mut held) = (false, 0);
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
            held += usize::from(*looks >= HUNG);
            if *looks == self.late && turn.answer_late(now) {
                tracing::debug!("a request is answered in place of a thread that hangs");
            }
        }
        drop(turns);
        self.crew.held.store(held, Ordering::Relaxed);
        active
    }

    /// Has as many threads started as hang.
    fn relieve(&mut self, start: impl Fn() -> Result<Served, Error>) {
        let held = self.crew.held();
        let mut relief = lock(&self.crew.relief);
        while relief.len() < held.min(RELIEF_AT_MOST) {
            match start() {
                Ok(thread) => {
                    relief.push(thread);
                    tracing::warn!(
                        "a file hangs and holds a thread that serves files: another one is started \
                         ({} of at most {RELIEF_AT_MOST})",
                        relief.len()
                    );
                }
                Err(error) => {
                    tracing::error!("no thread can be started for one that hangs: {error}");
                    return;
                }
            }
        }
        let is_full = held > RELIEF_AT_MOST;
        if is_full && !self.is_full {
            tracing::error!("{held} threads that serve files are held by files that hang");
        }
        self.is_full = is_full;
    }
}

fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}
