//! A thread that checks other threads while they work, and sleeps while they do not.
//!
//! No signal and no deadline ends a read of a kernel file that hangs, nor an access to memory that
//! a hanging filesystem backs. So a pool of threads has a watchdog that starts another thread in
//! place of one that hangs. It must not wake an idle machine. Start reading at [`Watchdog::start`].

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::thread::Thread;
use std::time::Duration;

/// The interval of checks while it sleeps.
const IDLE_INTERVAL: Duration = Duration::from_secs(30);

/// The thread of the watchdog.
#[derive(Debug)]
pub struct Watchdog {
    thread: Thread,
    state: Arc<State>,
}

#[derive(Debug, Default)]
struct State {
    is_idle: AtomicBool,
    ended: AtomicBool,
}

impl Watchdog {
    /// Starts the thread. `check` is called once an `interval` while there is work, and returns
    /// whether there was any since the last check, or `None` to end the watchdog. After `idle_after`
    /// checks without work the watchdog sleeps.
    pub fn start(
        name: &str,
        interval: Duration,
        idle_after: u32,
        mut check: impl FnMut() -> Option<bool> + Send + 'static,
    ) -> std::io::Result<Self> {
        let state = Arc::new(State::default());
        let own = Arc::clone(&state);
        let thread = std::thread::Builder::new().name(name.into()).spawn(move || {
            let mut idle = 0;
            while !own.ended.load(Ordering::Acquire) {
                let Some(is_active) = check() else { return };
                idle = if is_active { 0 } else { idle + 1 };
                // One more check follows before the watchdog sleeps: work that began before the
                // flag was set has not woken it.
                own.is_idle.store(idle >= idle_after, Ordering::SeqCst);
                let sleeps = idle > idle_after;
                std::thread::park_timeout(if sleeps { IDLE_INTERVAL } else { interval });
            }
        })?;
        Ok(Self { thread: thread.thread().clone(), state })
    }

    /// Wakes the watchdog if it sleeps. Called when a thread begins its work.
    pub fn wake(&self) {
        if self.state.is_idle.load(Ordering::SeqCst) {
            self.thread.unpark();
        }
    }

    /// Ends the watchdog after the check that it is making.
    pub fn stop(&self) {
        self.state.ended.store(true, Ordering::Release);
        self.thread.unpark();
    }
}

#[cfg(test)]
mod tests {
    use std::sync::mpsc;

    use super::*;

    #[test]
    fn an_idle_watchdog_checks_again_when_it_is_woken() {
        let (checked, checks) = mpsc::channel();
        let check = move || checked.send(()).ok().map(|()| false);
        let watchdog = Watchdog::start("watchdog", Duration::from_nanos(1), 5, check).unwrap();
        // The last check before it sleeps, and its sleep.
        (0..=5).for_each(|_| checks.recv().unwrap());
        assert!(checks.recv_timeout(Duration::from_millis(100)).is_err(), "it sleeps");
        watchdog.wake();
        checks.recv_timeout(IDLE_INTERVAL / 2).unwrap();
        watchdog.stop();
        assert!(checks.iter().count() <= 1, "it ends");
    }
}
