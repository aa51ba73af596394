//! Looks after the listener threads: one that hangs is replaced.
//!
//! What a listener thread does should never block, but it touches memory of its target, which may
//! be a file of a filesystem that hangs (the container's own FUSE server, that does not answer), and
//! then no signal and no deadline ends the access. The thread is lost until the target dies. Others
//! must not wait for it: another thread takes its place, and `account.rs` keeps the container's
//! next calls off the listener threads.
//!
//! It sleeps while nobody calls.

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::thread::Thread;
use std::time::Duration;

/// A thread that is at one call for so long hangs.
pub(super) const HUNG: u64 = 50_000_000;
/// How often is looked while there are calls.
const LOOK: Duration = Duration::from_millis(20);
/// So many looks without a call, and it sleeps.
const QUIET: u32 = 50;
/// Asleep, it looks nevertheless this often.
const ASLEEP: Duration = Duration::from_secs(30);

/// The warden's thread.
#[derive(Debug)]
pub(super) struct Warden {
    thread: Thread,
    state: Arc<State>,
}

#[derive(Debug, Default)]
struct State {
    asleep: AtomicBool,
    ended: AtomicBool,
}

impl Warden {
    /// `look` replaces threads that hang. It returns how many calls there have been and whether one
    /// is being answered, or `None` when there are no threads any more.
    pub(super) fn start(
        look: impl Fn() -> Option<(u64, bool)> + Send + 'static,
    ) -> std::io::Result<Self> {
        let state = Arc::new(State::default());
        let own = Arc::clone(&state);
        let thread = std::thread::Builder::new().name("warden".into()).spawn(move || {
            let (mut seen, mut quiet) = (0, 0);
            while !own.ended.load(Ordering::Acquire) {
                let Some((turns, busy)) = look() else { return };
                quiet = if turns == seen && !busy { quiet + 1 } else { 0 };
                seen = turns;
                if quiet < QUIET {
                    std::thread::park_timeout(LOOK);
                    continue;
                }
                own.asleep.store(true, Ordering::SeqCst);
                std::thread::park_timeout(ASLEEP);
                own.asleep.store(false, Ordering::SeqCst);
                quiet = 0;
            }
        })?;
        Ok(Self { thread: thread.thread().clone(), state })
    }

    /// A listener thread is about to answer.
    pub(super) fn wake(&self) {
        if self.state.asleep.load(Ordering::SeqCst) {
            self.thread.unpark();
        }
    }

    pub(super) fn end(&self) {
        self.state.ended.store(true, Ordering::Release);
        self.thread.unpark();
    }
}
