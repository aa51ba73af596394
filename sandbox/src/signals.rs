//! Signals: `ambit run` takes them as data and passes them on to the command.
//!
//! They are blocked in every process and thread of ours and read from a descriptor, so nothing is
//! lost while the sandbox is being made, and no handler runs. The command gets the caller's own
//! mask back.

use anyhow::{Context, Result};
use nix::sys::signal::{SigSet, Signal};
use nix::sys::signalfd::{SfdFlags, SignalFd};

/// The signals that are relayed to the command. Others are not: SIGSEGV and the like are faults of
/// this process, and SIGTTIN and SIGTTOU are about its own access to the terminal.
const PASSED_ON: [Signal; 10] = [
    Signal::SIGHUP,
    Signal::SIGINT,
    Signal::SIGQUIT,
    Signal::SIGTERM,
    Signal::SIGUSR1,
    Signal::SIGUSR2,
    Signal::SIGALRM,
    Signal::SIGTSTP,
    Signal::SIGCONT,
    Signal::SIGWINCH,
];

/// Signals that a terminal sends to its foreground process group.
const FROM_TERMINAL: [Signal; 4] =
    [Signal::SIGINT, Signal::SIGQUIT, Signal::SIGTSTP, Signal::SIGCONT];

/// Blocked signals, readable, and the mask from before.
#[derive(Debug)]
pub(super) struct Signals {
    fd: SignalFd,
    before: SigSet,
}

impl Signals {
    /// Blocks them from now on, in this thread and those it starts.
    pub(super) fn take() -> Result<Self> {
        let mut set: SigSet = PASSED_ON.into_iter().collect();
        set.add(Signal::SIGCHLD);
        let before = set
            .thread_swap_mask(nix::sys::signal::SigmaskHow::SIG_BLOCK)
            .context("cannot block signals: sigprocmask")?;
        let flags = SfdFlags::SFD_CLOEXEC | SfdFlags::SFD_NONBLOCK;
        let fd = SignalFd::with_flags(&set, flags).context("cannot read signals: signalfd")?;
        Ok(Self { fd, before })
    }

    /// The next one that arrived, if any.
    pub(super) fn next(&self) -> Option<Signal> {
        let info = self.fd.read_signal().ok().flatten()?;
        i32::try_from(info.ssi_signo).ok().and_then(|number| Signal::try_from(number).ok())
    }

    /// Gives the process the mask it had before.
    pub(super) fn restore_mask(&self) -> Result<()> {
        self.before.thread_set_mask().context("cannot restore signals: sigprocmask")
    }
}

impl std::os::fd::AsFd for Signals {
    fn as_fd(&self) -> std::os::fd::BorrowedFd<'_> {
        self.fd.as_fd()
    }
}

/// True for signals that tell a process to end.
pub(super) fn is_for_end(signal: Signal) -> bool {
    [Signal::SIGHUP, Signal::SIGINT, Signal::SIGQUIT, Signal::SIGTERM].contains(&signal)
}

/// True for signals that are sent to the command's whole process group.
pub(super) fn is_for_group(signal: Signal) -> bool {
    FROM_TERMINAL.contains(&signal)
}
