//! While the command runs: signals go in, terminal bytes go both ways, its end is waited for.
//!
//! One thread, one poll. Nothing here blocks on the sandbox: bytes that its terminal does not
//! take yet wait in a small buffer, and meanwhile no more are read from the caller.

use std::io::{self, Write};
use std::os::fd::OwnedFd;

use anyhow::{Context, Result};
use nix::sys::signal::{Signal, kill, raise};
use nix::unistd::Pid;
use rustix::event::{PollFd, PollFlags, poll};

use super::channel::{Channel, Word};
use super::signals::Signals;
use super::terminal::{self, Raw};

/// Relays until init has ended. It is left to be waited for.
pub(super) fn until_end(
    init: Pid,
    ended: &OwnedFd,
    channel: &Channel,
    signals: &Signals,
    master: Option<OwnedFd>,
) -> Result<()> {
    let mut window = master.map(Window::open).transpose()?;
    let mut listening = true;
    loop {
        let mut fds = vec![PollFd::new(ended, PollFlags::IN), PollFd::new(signals, PollFlags::IN)];
        let stdin = io::stdin();
        // Descriptors that are not asked for are replaced by one that is in the list anyway.
        let (read, write, typed) = window.as_ref().map_or((false, false, false), Window::wants);
        let pick = |wanted: bool, flag: PollFlags| if wanted { flag } else { PollFlags::empty() };
        fds.push(PollFd::new(channel, pick(listening, PollFlags::IN)));
        if let Some(window) = &window {
            let flags = pick(read, PollFlags::IN) | pick(write, PollFlags::OUT);
            if read || write {
                fds.push(PollFd::new(&window.master, flags));
            }
            if typed {
                fds.push(PollFd::new(&stdin, PollFlags::IN));
            }
        }
        match poll(&mut fds, None) {
            Ok(_) | Err(rustix::io::Errno::INTR) => {}
            Err(error) => return Err(error).context("cannot wait for the sandbox: poll"),
        }
        let ready: Vec<PollFlags> = fds.iter().map(PollFd::revents).collect();
        drop(fds);

        while let Some(signal) = signals.next() {
            pass_on(init, signal, window.as_ref());
        }
        if !ready[2].is_empty() && listening {
            listening = stopped_or_said(channel, window.is_some());
        }
        if let Some(window) = &mut window {
            let mut rest = ready[3..].iter();
            if (read || write) && rest.next().is_some_and(|flags| !flags.is_empty()) {
                window.show_output();
                window.write_typed();
            }
            if typed && rest.next().is_some_and(|flags| !flags.is_empty()) {
                window.read_typed();
                window.write_typed();
            }
        }
        if !ready[0].is_empty() {
            if let Some(window) = &mut window {
                while window.show_output() {}
            }
            return Ok(());
        }
    }
}

fn pass_on(init: Pid, signal: Signal, window: Option<&Window>) {
    match (signal, window) {
        (Signal::SIGCHLD, _) => {}
        (Signal::SIGWINCH, Some(window)) => terminal::copy_size(&window.master),
        // It may have ended just now.
        _ => drop(kill(init, signal)),
    }
}

/// Init has said something: that the command was stopped, or why it ended. False when nothing
/// more will come.
fn stopped_or_said(channel: &Channel, has_window: bool) -> bool {
    match channel.receive() {
        // What the caller's shell sees is this process: it stops like the command. In a terminal
        // of its own the command has its own shell, or nobody, to wake it.
        Ok(message) if message.word == Word::Stopped && !has_window => {
            let _ = raise(Signal::SIGSTOP);
            true
        }
        Ok(_) => true,
        Err(_) => false,
    }
}

/// The caller's terminal and the sandbox's.
struct Window {
    master: OwnedFd,
    /// Typed, and not taken yet.
    pending: Vec<u8>,
    caller_open: bool,
    sandbox_open: bool,
    _raw: Raw,
}

impl Window {
    fn open(master: OwnedFd) -> Result<Self> {
        let raw = Raw::enter()?;
        terminal::copy_size(&master);
        rustix::io::ioctl_fionbio(&master, true).context("cannot change the terminal: FIONBIO")?;
        Ok(Self { master, pending: Vec::new(), caller_open: true, sandbox_open: true, _raw: raw })
    }

    /// Is there to be read from the sandbox, written to it, read from the caller?
    fn wants(&self) -> (bool, bool, bool) {
        let waiting = !self.pending.is_empty();
        let open = self.sandbox_open;
        (open, open && waiting, open && self.caller_open && !waiting)
    }

    /// True when there may be more.
    fn show_output(&mut self) -> bool {
        let mut bytes = [0; 4096];
        match rustix::io::read(&self.master, &mut bytes) {
            Ok(0) => self.sandbox_open = false,
            Ok(count) => {
                let mut out = io::stdout().lock();
                // A caller that has hung up gets nothing more; the command goes on.
                let _ = out.write_all(&bytes[..count]).and_then(|()| out.flush());
                return true;
            }
            Err(rustix::io::Errno::AGAIN | rustix::io::Errno::INTR) => {}
            // EIO: nobody has the other side open.
            Err(_) => self.sandbox_open = false,
        }
        false
    }

    fn read_typed(&mut self) {
        let mut bytes = [0; 4096];
        match rustix::io::read(io::stdin(), &mut bytes) {
            Ok(0) => self.caller_open = false,
            Ok(count) => self.pending.extend_from_slice(&bytes[..count]),
            Err(rustix::io::Errno::AGAIN | rustix::io::Errno::INTR) => {}
            Err(_) => self.caller_open = false,
        }
    }

    fn write_typed(&mut self) {
        while !self.pending.is_empty() {
            match rustix::io::write(&self.master, &self.pending) {
                Ok(count) => drop(self.pending.drain(..count)),
                Err(rustix::io::Errno::AGAIN | rustix::io::Errno::INTR) => return,
                Err(_) => self.pending.clear(),
            }
        }
    }
}
