//! Relays signals to the command and bytes between the two terminals, until the command ends.
//!
//! One thread with one poll(2), which never blocks elsewhere: bytes that a terminal does not take yet
//! wait in a small buffer, and until they are written no more are read from the other terminal. So
//! signals are relayed while the caller's terminal is stopped.

use std::io;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};

use anyhow::{Context, Result};
use nix::sys::signal::{Signal, kill, raise};
use nix::unistd::Pid;
use rustix::event::{PollFd, PollFlags, Timespec, poll};
use rustix::fs::OFlags;
use rustix::io::Errno;

use super::channel::{Channel, Message};
use super::signals::{Signals, is_for_end};
use super::terminal::{self, Raw};

/// How long the last output of a command may wait for the caller's terminal, if the command was
/// told to end.
const LAST_OUTPUT: Timespec = Timespec { tv_sec: 1, tv_nsec: 0 };

/// Relays until init has ended. The caller must reap it.
pub(super) fn until_end(
    init: Pid,
    ended: &OwnedFd,
    channel: &Channel,
    signals: &Signals,
    master: Option<OwnedFd>,
) -> Result<()> {
    let mut window = master.map(Window::open).transpose()?;
    let (mut listening, mut told_to_end) = (true, false);
    loop {
        let mut fds = vec![PollFd::new(ended, PollFlags::IN), PollFd::new(signals, PollFlags::IN)];
        let said = if listening { PollFlags::IN } else { PollFlags::empty() };
        fds.push(PollFd::new(channel, said));
        let wanted = window.as_ref().map_or_else(Vec::new, Window::wanted);
        if let Some(window) = &window {
            let of = |&(end, flags)| PollFd::from_borrowed_fd(window.fd(end), flags);
            fds.extend(wanted.iter().map(of));
        }
        wait(&mut fds, None)?;
        let ready: Vec<bool> = fds.iter().map(|fd| !fd.revents().is_empty()).collect();
        drop(fds);

        while let Some(signal) = signals.next() {
            told_to_end |= is_for_end(signal);
            pass_on(init, signal, window.as_ref());
        }
        if ready[2] && listening {
            listening = stopped_or_said(channel, window.is_some());
        }
        if let Some(window) = &mut window {
            let ends = wanted.iter().zip(&ready[3..]).filter(|(_, ready)| **ready);
            ends.for_each(|((end, _), _)| window.relay(*end));
        }
        if ready[0] {
            return window.map_or(Ok(()), |window| window.finish(signals, told_to_end));
        }
    }
}

/// Waits for events. False if there is none in time.
fn wait(fds: &mut [PollFd<'_>], timeout: Option<&Timespec>) -> Result<bool> {
    match poll(fds, timeout) {
        Ok(count) => Ok(count > 0),
        Err(Errno::INTR) => Ok(true),
        Err(error) => Err(error).context("cannot wait for the sandbox: poll"),
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

/// Handles a message of init: the command was stopped, or failed. False if init has closed its end.
fn stopped_or_said(channel: &Channel, has_window: bool) -> bool {
    match channel.receive() {
        // The caller's shell waits for this process, so it stops like the command. With a terminal of
        // its own, the command is continued by a shell in the sandbox or not at all.
        Ok((Message::Stopped, _)) if !has_window => {
            let _ = raise(Signal::SIGSTOP);
            true
        }
        Ok(_) => true,
        Err(_) => false,
    }
}

/// The files of a window.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum End {
    /// The sandbox's terminal.
    Sandbox,
    /// The caller's terminal, for what is typed.
    Input,
    /// The caller's terminal, for what is shown.
    Output,
}

/// The caller's terminal and the sandbox's.
struct Window {
    master: OwnedFd,
    input: OwnedFd,
    output: OwnedFd,
    /// Typed, and not taken by the sandbox yet.
    typed: Vec<u8>,
    /// Printed, and not taken by the caller's terminal yet.
    printed: Vec<u8>,
    input_open: bool,
    output_open: bool,
    sandbox_open: bool,
    _raw: Raw,
}

impl Window {
    fn open(master: OwnedFd) -> Result<Self> {
        let input = terminal::reopen(io::stdin().as_fd(), OFlags::RDONLY)?;
        let output = terminal::reopen(io::stdout().as_fd(), OFlags::WRONLY)?;
        let raw = Raw::enter()?;
        terminal::copy_size(&master);
        rustix::io::ioctl_fionbio(&master, true).context("cannot change the terminal: FIONBIO")?;
        Ok(Self {
            master,
            input,
            output,
            typed: Vec::new(),
            printed: Vec::new(),
            input_open: true,
            output_open: true,
            sandbox_open: true,
            _raw: raw,
        })
    }

    fn fd(&self, end: End) -> BorrowedFd<'_> {
        match end {
            End::Sandbox => self.master.as_fd(),
            End::Input => self.input.as_fd(),
            End::Output => self.output.as_fd(),
        }
    }

    /// Returns the files to poll. A file without requested events is left out, because poll(2)
    /// reports POLLHUP for it again and again.
    fn wanted(&self) -> Vec<(End, PollFlags)> {
        let (typed, printed) = (!self.typed.is_empty(), !self.printed.is_empty());
        let pick = |wanted: bool, flag: PollFlags| if wanted { flag } else { PollFlags::empty() };
        let open = self.sandbox_open;
        let sandbox = pick(open && !printed, PollFlags::IN) | pick(open && typed, PollFlags::OUT);
        let input = pick(open && self.input_open && !typed, PollFlags::IN);
        let output = pick(printed, PollFlags::OUT);
        let all = [(End::Sandbox, sandbox), (End::Input, input), (End::Output, output)];
        all.into_iter().filter(|(_, flags)| !flags.is_empty()).collect()
    }

    /// Reads from or writes to a terminal that is ready.
    fn relay(&mut self, end: End) {
        match end {
            End::Sandbox => {
                self.read_printed();
                self.write_typed();
            }
            End::Input => {
                self.read_typed();
                self.write_typed();
            }
            End::Output => self.write_printed(),
        }
    }

    /// Writes the command's last output. Waits for a stopped terminal until a signal tells this
    /// process to end.
    fn finish(mut self, signals: &Signals, mut told_to_end: bool) -> Result<()> {
        loop {
            while self.read_printed() {}
            if self.printed.is_empty() {
                return Ok(());
            }
            let mut fds =
                [PollFd::new(&self.output, PollFlags::OUT), PollFd::new(signals, PollFlags::IN)];
            if !wait(&mut fds, told_to_end.then_some(&LAST_OUTPUT))? {
                return Ok(());
            }
            while let Some(signal) = signals.next() {
                told_to_end |= is_for_end(signal);
            }
            self.write_printed();
        }
    }

    /// Reads the sandbox's output, unless earlier output is pending. True if there may be more.
    fn read_printed(&mut self) -> bool {
        if !self.printed.is_empty() {
            return false;
        }
        let mut bytes = [0; 4096];
        match rustix::io::read(&self.master, &mut bytes) {
            Ok(0) => self.sandbox_open = false,
            Ok(count) => {
                self.printed.extend_from_slice(&bytes[..count]);
                self.write_printed();
                return true;
            }
            Err(Errno::AGAIN | Errno::INTR) => {}
            // EIO: no process has the other side open.
            Err(_) => self.sandbox_open = false,
        }
        false
    }

    fn write_printed(&mut self) {
        // A caller that has hung up gets nothing more; the command goes on.
        self.output_open = self.output_open && write_some(&self.output, &mut self.printed);
        if !self.output_open {
            self.printed.clear();
        }
    }

    fn read_typed(&mut self) {
        let mut bytes = [0; 4096];
        match rustix::io::read(&self.input, &mut bytes) {
            Ok(0) => self.input_open = false,
            Ok(count) => self.typed.extend_from_slice(&bytes[..count]),
            Err(Errno::AGAIN | Errno::INTR) => {}
            Err(_) => self.input_open = false,
        }
    }

    fn write_typed(&mut self) {
        if !write_some(&self.master, &mut self.typed) {
            self.typed.clear();
        }
    }
}

/// Writes as much as is possible without blocking, and keeps the rest. False if the other side is
/// closed.
fn write_some(to: &OwnedFd, bytes: &mut Vec<u8>) -> bool {
    while !bytes.is_empty() {
        match rustix::io::write(to, bytes) {
            Ok(count) => drop(bytes.drain(..count)),
            Err(Errno::AGAIN | Errno::INTR) => return true,
            Err(_) => return false,
        }
    }
    true
}
