//! Child processes that make a mount, and how all of them are ended when the mount fails.
//!
//! Helpers daemonize, so an ancestor is their subreaper (`PR_SET_CHILD_SUBREAPER`) until the mount
//! is made. Only a process that still sees the host's `/proc` may search for descendants: in the
//! container's `/proc` the same pids name other processes. Start reading at [`Child`].

use std::ffi::CStr;
use std::os::fd::{AsFd, AsRawFd};
use std::panic::AssertUnwindSafe;
use std::time::{Duration, Instant};

use ambit_kernel::sys::errno::to_errno;
use ambit_kernel::sys::fork::{Fork, fork};
use ambit_kernel::text;
use nix::sys::signal::{Signal, kill};
use nix::sys::wait::{WaitPidFlag, WaitStatus, waitpid};
use nix::unistd::Pid;
use rustix::io::Errno;

use super::error::{Context, Error, MarkUntried};

/// How long to wait for a killed process. One that is blocked in a hung filesystem does not end.
const GRACE: Duration = Duration::from_millis(500);

/// A child process.
#[derive(Debug)]
pub(super) struct Child {
    pid: Pid,
    running: bool,
    on_drop: OnDrop,
}

/// What happens to a running child when its [`Child`] is dropped.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum OnDrop {
    /// The child is killed.
    Kill,
    /// The child and all its descendants are killed.
    KillTree,
    /// The child keeps running; an ancestor with [`OnDrop::KillTree`] kills it if need be.
    Leave,
}

/// Executes an open program, and returns the error if that fails.
pub(super) fn execute_open(
    program: impl AsFd,
    words: &[impl AsRef<CStr>],
    environment: &[impl AsRef<CStr>],
) -> Errno {
    let Err(errno) = nix::unistd::fexecve(&program, words, environment).map_err(to_errno);
    if errno != Errno::NOENT {
        return errno;
    }
    // TOMOYO looks up `/dev/fd`, which a container may lack.
    let name = format!("/proc/self/fd/{}\0", program.as_fd().as_raw_fd());
    let Ok(name) = CStr::from_bytes_with_nul(name.as_bytes()) else { return errno };
    let Err(errno) = nix::unistd::execve(name, words, environment);
    to_errno(errno)
}

impl Child {
    /// Forks a child that runs `main` and exits. The child is killed when its parent ends.
    pub(super) fn start(on_drop: OnDrop, main: impl FnOnce()) -> Result<Self, Error> {
        match fork().context("fork").mark_untried()? {
            Fork::Parent(pid) => Ok(Self { pid, running: true, on_drop }),
            Fork::Child => {
                die_with_parent();
                let done = std::panic::catch_unwind(AssertUnwindSafe(main)).is_ok();
                exit(i32::from(!done))
            }
        }
    }

    /// Reaps a child that has reported its result and is about to exit.
    pub(super) fn finish(mut self) {
        self.reap(Instant::now() + GRACE);
    }

    /// Waits until the child has ended, and kills it if it takes longer.
    pub(super) fn wait(mut self, until: Instant) {
        self.reap(until);
    }

    /// Kills the child alone and leaves its descendants running.
    pub(super) fn detach(mut self) {
        // The descendants have daemonized already; the init of their pid namespace adopts them.
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
        if !self.running || self.on_drop == OnDrop::Leave {
            return;
        }
        if self.on_drop == OnDrop::KillTree {
            end_descendants(self.pid);
        }
        let _ = kill(self.pid, Signal::SIGKILL);
        self.reap(Instant::now() + GRACE);
    }
}

/// Has the kernel kill this process when its parent ends. Must be called again after every change
/// of credentials, which clears the setting (prctl(2)).
pub(super) fn die_with_parent() {
    let signal = Some(rustix::process::Signal::KILL);
    let _ = rustix::process::set_parent_process_death_signal(signal);
}

pub(super) fn exit(status: i32) -> ! {
    std::process::exit(status)
}

/// Kills all descendants of a process. They are stopped first, because a stopped process forks no
/// more. Processes that were forked meanwhile are found in the next round.
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
