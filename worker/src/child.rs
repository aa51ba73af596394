//! Processes that make a mount together, and the end of all of them when it does not work out.
//!
//! Helpers put themselves into the background, so an ancestor collects them
//! (`PR_SET_CHILD_SUBREAPER`) until the mount is made. Only a process that still sees the host's
//! `/proc` may look for descendants: in the container's, numbers mean other processes.

use std::panic::AssertUnwindSafe;
use std::time::{Duration, Instant};

use ambit_kernel::sys::fork::{Fork, fork};
use ambit_kernel::text;
use nix::sys::signal::{Signal, kill};
use nix::sys::wait::{WaitPidFlag, WaitStatus, waitpid};
use nix::unistd::Pid;

use super::failure::{Failure, OnOurSide, OrFail};

/// How long a killed process may take to end: it may be held up in a filesystem that hangs.
const GRACE: Duration = Duration::from_millis(500);

/// A child process.
#[derive(Debug)]
pub(super) struct Child {
    pid: Pid,
    running: bool,
    end: End,
}

/// What happens to a child that nobody waits for any more.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum End {
    /// It is killed.
    Alone,
    /// It is killed with everything that it started.
    Family,
    /// Somebody above kills it.
    Left,
}

impl Child {
    /// Starts one that does this and ends. It dies with the process that started it.
    pub(super) fn start(end: End, main: impl FnOnce()) -> Result<Self, Failure> {
        match fork().or_fail("fork").on_our_side()? {
            Fork::Parent(pid) => Ok(Self { pid, running: true, end }),
            Fork::Child => {
                die_with_parent();
                let done = std::panic::catch_unwind(AssertUnwindSafe(main)).is_ok();
                leave(i32::from(!done))
            }
        }
    }

    /// Waits for its end; it has said all it had to say.
    pub(super) fn finish(mut self) {
        self.reap(Instant::now() + GRACE);
    }

    /// Lets go of it and of what it started: it works for nobody any more.
    pub(super) fn let_go(mut self) {
        // Its children are in the background already, and become those of their init.
        let _ = kill(self.pid, Signal::SIGKILL);
        self.reap(Instant::now() + GRACE);
        self.running = false;
    }

    fn reap(&mut self, until: Instant) {
        while self.running && Instant::now() < until {
            match waitpid(self.pid, Some(WaitPidFlag::WNOHANG)) {
                Ok(WaitStatus::StillAlive) => std::thread::sleep(Duration::from_millis(1)),
                _ => self.running = false,
            }
        }
    }
}

impl Drop for Child {
    fn drop(&mut self) {
        if !self.running || self.end == End::Left {
            return;
        }
        if self.end == End::Family {
            end_descendants(self.pid);
        }
        let _ = kill(self.pid, Signal::SIGKILL);
        self.reap(Instant::now() + GRACE);
    }
}

/// For a process that acts for another one: it ends when that one does. Must be called again after
/// every change of credentials.
pub(super) fn die_with_parent() {
    let signal = Some(rustix::process::Signal::KILL);
    let _ = rustix::process::set_parent_process_death_signal(signal);
}

/// Ends this process.
pub(super) fn leave(status: i32) -> ! {
    std::process::exit(status)
}

/// Kills everything below a process. What starts meanwhile is found in the next round: a stopped
/// process starts nothing.
fn end_descendants(pid: Pid) {
    for _ in 0..8 {
        let all = descendants(pid);
        for &one in &all {
            let _ = kill(one, Signal::SIGSTOP);
        }
        if descendants(pid).len() == all.len() {
            break;
        }
    }
    for one in descendants(pid) {
        let _ = kill(one, Signal::SIGKILL);
    }
}

fn descendants(pid: Pid) -> Vec<Pid> {
    let mut found = vec![pid];
    let mut next = 0;
    while let Some(&pid) = found.get(next) {
        let file = format!("/proc/{pid}/task/{pid}/children");
        let children = std::fs::read(file).unwrap_or_default();
        found.extend(text::numbers(&children).map(Pid::from_raw));
        next += 1;
    }
    found.split_off(1)
}
