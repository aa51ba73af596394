//! The watchdog of the listener threads: replaces a thread that hangs.
//!
//! A listener thread does nothing that should block, but it accesses memory of its caller, which
//! may be a mapped file of a filesystem that hangs (such as a FUSE server of the container that
//! does not answer). No signal and no deadline ends such an access: the thread hangs until the
//! caller dies. Other containers must not wait for it, so another thread takes its place
//! (`epoll.rs`), and `account.rs` keeps further calls of that container off the listener threads.
//!
//! The watchdog must not wake an idle machine: it sleeps while there are no calls.

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::thread::Thread;
use std::time::Duration;

/// A thread that handles one event for so many nanoseconds hangs.
pub(super) const HUNG: u64 = 50_000_000;
/// The interval of checks while there are calls.
const LOOK: Duration = Duration::from_millis(20);
/// After so many checks without a call it sleeps.
const QUIET: u32 = 50;
/// The interval of checks while it sleeps.
const ASLEEP: Duration = Duration::from_secs(30);

/// The thread of the watchdog.
#[derive(Debug)]
pub(super) struct Watchdog {
    thread: Thread,
    state: Arc<State>,
}

#[derive(Debug, Default)]
struct State {
    asleep: AtomicBool,
    ended: AtomicBool,
}

impl Watchdog {
    /// Starts the thread. `look` replaces threads that hang. It returns how many events were
    /// handled and whether one is being handled now, or `None` if there are no listener threads any
    /// more.
    pub(super) fn start(
        look: impl Fn() -> Option<(u64, bool)> + Send + 'static,
    ) -> std::io::Result<Self> {
        let state = Arc::new(State::default());
        let own = Arc::clone(&state);
        let thread = std::thread::Builder::new().name("watchdog".into()).spawn(move || {
            let (mut seen, mut quiet) = (0, 0);
            while !own.ended.load(Ordering::Acquire) {
                let Some((handled, busy)) = look() else { return };
                quiet = if handled == seen && !busy { quiet + 1 } else { 0 };
                seen = handled;
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

    /// Wakes the thread if it sleeps. Called before an event is handled.
    pub(super) fn wake(&self) {
        if self.state.asleep.load(Ordering::SeqCst) {
            self.thread.unpark();
        }
    }

    pub(super) fn stop(&self) {
        self.state.ended.store(true, Ordering::Release);
        self.thread.unpark();
    }
}
