//! The processes that the keeper starts: servers, each with a broker.
//!
//! The broker is a child of the keeper and not of the server: seccomp filters and dropped
//! capabilities pass to descendants, and those of a server must not apply to helpers.
//!
//! Nothing here blocks: messages that a server does not read are sent later, and killed processes
//! are reaped when they have ended.

use std::os::fd::{AsFd, OwnedFd};
use std::os::unix::process::ExitStatusExt;
use std::process::{Child, ExitStatus, Stdio};
use std::rc::Rc;
use std::time::{Duration, Instant};

use ambit_kernel::output::{one_line, stderr};
use ambit_kernel::text::{scan, stat};
use anyhow::Context;
use rustix::io::Errno;
use rustix::net::RecvFlags;
use rustix::process::{PidfdFlags, pidfd_open};

use super::edition::Edition;
use super::program::Program;
use super::wire::{self, Outbox};

/// A server that sends nothing for this long is killed.
const SILENCE_TIMEOUT: Duration = Duration::from_secs(10);
/// How long a server may take from its start until it serves.
const START_TIMEOUT: Duration = Duration::from_secs(20);
/// How long a new program may take to check itself.
pub(super) const CHECK: Duration = Duration::from_secs(10);
/// The longest pause before another broker is started.
const BROKER_PAUSE: Duration = Duration::from_secs(1);

/// A child process.
#[derive(Debug)]
pub(super) struct Process {
    child: Child,
    pub(super) pidfd: OwnedFd,
}

impl Process {
    pub(super) fn start(
        program: &Program,
        arguments: &[&std::ffi::OsStr],
        stdin: OwnedFd,
    ) -> anyhow::Result<Self> {
        let mut command = program.command();
        command.args(arguments).stdin(Stdio::from(stdin));
        let cannot = || format!("cannot start {}", program.path().display());
        let mut child = command.spawn().with_context(cannot)?;
        match pidfd_open(rustix::process::Pid::from_child(&child), PidfdFlags::empty()) {
            Ok(pidfd) => Ok(Self { child, pidfd }),
            Err(errno) => {
                // If kill(2) fails, it still ends: its connection is closed.
                let _ = child.kill();
                Err(errno).context("pidfd_open (Linux 5.3)")
            }
        }
    }

    /// Returns `None` while it runs, then its exit status, if that is known.
    pub(super) fn ended(&mut self) -> Option<Option<ExitStatus>> {
        match self.child.try_wait() {
            Ok(None) => None,
            Ok(status) => Some(status),
            Err(_) => Some(None),
        }
    }

    /// Returns the status with which it exits, while the kernel closes its files: no thread of it runs
    /// any more (`do_exit` in the kernel sets the status before it gives up the memory, and closes
    /// files after that).
    fn exiting(&self) -> Option<ExitStatus> {
        // The kernel reads the status before the rest of the line: the first one may be too old.
        self.exit_code()?;
        self.exit_code().map(ExitStatus::from_raw)
    }

    /// The status in `/proc/PID/stat`, if the process exits and has no memory any more.
    fn exit_code(&self) -> Option<i32> {
        /// PF_EXITING of `include/linux/sched.h`.
        const EXITING: u64 = 4;
        // It was not waited for, so the number is still its own.
        let text = std::fs::read(format!("/proc/{}/stat", self.child.id())).ok()?;
        let fields: Vec<_> = stat::fields(&text)?.collect();
        // `flags`, `vsize` and `exit_code` of proc_pid_stat(5).
        let [flags, size, code] =
            [9 - 3, 23 - 3, 52 - 3].map(|at| fields.get(at).and_then(|it| scan::decimal(it)));
        (flags? & EXITING != 0 && size? == 0).then_some(i32::try_from(code?).ok()?)
    }

    /// True if it exits, or has ended.
    pub(super) fn is_ending(&mut self) -> bool {
        self.exiting().is_some() || self.ended().is_some()
    }

    pub(super) fn kill(&mut self) {
        // An error means that it has ended.
        let _ = self.child.kill();
    }
}

/// Processes that were killed and have not been reaped yet.
#[derive(Debug, Default)]
pub(super) struct Dying(pub(super) Vec<Process>);

impl Dying {
    /// Kills a process, to reap it later.
    pub(super) fn dismiss(&mut self, mut process: Process) {
        process.kill();
        self.0.push(process);
    }

    /// Reaps the processes that have ended.
    pub(super) fn reap(&mut self) {
        self.0.retain_mut(|process| process.ended().is_none());
    }
}

/// The broker of a server.
#[derive(Debug)]
pub(super) struct Broker {
    pub(super) process: Option<Process>,
    started: Instant,
    /// When the next broker is started, if there is none.
    pub(super) due: Instant,
    pause: Duration,
    /// The last logged reason why there is none.
    last_error: String,
}

/// A server: the one that serves, the standby or the candidate.
#[derive(Debug)]
pub(super) struct Server {
    pub(super) process: Process,
    pub(super) socket: OwnedFd,
    outbox: Outbox<Rc<OwnedFd>>,
    pub(super) broker: Broker,
    edition: Edition,
    pub(super) started: Instant,
    pub(super) heard: Instant,
    pub(super) is_candidate: bool,
    pub(super) prepared: bool,
    /// When it began to serve.
    pub(super) serving: Option<Instant>,
    /// True if it has closed its connection, which it does first when it ends.
    pub(super) is_disconnected: bool,
    /// When it was killed.
    pub(super) killed: Option<Instant>,
    /// Why it cannot serve: the error that it has sent.
    pub(super) failure: Option<String>,
    /// The configuration that it has read from disk.
    pub(super) configuration: Option<OwnedFd>,
}

impl Server {
    /// Starts a server and its broker. A candidate checks itself first.
    pub(super) fn start(
        edition: &Edition,
        arguments: &[std::ffi::OsString],
        is_candidate: bool,
        restarts: u64,
    ) -> anyhow::Result<Self> {
        let (socket, theirs) = wire::pair().context("socketpair")?;
        let mut outbox = Outbox::default();
        if is_candidate {
            outbox.push(wire::CHECK.to_owned(), None);
        }
        if let Some(configuration) = &edition.configuration {
            let text = if edition.instead { wire::INSTEAD } else { wire::CONFIGURATION };
            outbox.push(text.to_owned(), Some(Rc::clone(configuration)));
        }
        let (connection, brokers) = wire::pair().context("socketpair")?;
        outbox.push(format!("{} {restarts}", wire::BROKER), Some(Rc::new(connection)));
        // The socket's buffer is empty, and the server expects all of these when it starts.
        anyhow::ensure!(outbox.flush(socket.as_fd()).context("sendmsg")?, "sendmsg: no room");
        let own = arguments.iter().map(AsRef::as_ref).chain(["--kept".as_ref()]);
        let process = Process::start(&edition.program, &own.collect::<Vec<_>>(), theirs)?;
        // If that fails, the server sees a broker that has died.
        let mut broker = Broker::new();
        broker.start_at(&edition.program, arguments, brokers);
        let now = Instant::now();
        Ok(Self {
            process,
            socket,
            outbox,
            broker,
            edition: edition.clone(),
            started: now,
            heard: now,
            is_candidate,
            prepared: false,
            serving: None,
            is_disconnected: false,
            killed: None,
            failure: None,
            configuration: None,
        })
    }

    /// Returns the standby as the server, with its times counted from now.
    pub(super) fn promote(self) -> Self {
        let now = Instant::now();
        Self { started: now, heard: now, ..self }
    }

    /// Sends a message to it, now or when it reads.
    pub(super) fn send(&mut self, text: impl Into<String>, fd: Option<Rc<OwnedFd>>) {
        self.outbox.push(text.into(), fd);
        self.flush();
    }

    /// Sends the pending messages. Errors are ignored: the end of the process is reported by its
    /// pidfd.
    pub(super) fn flush(&mut self) {
        let _ = self.outbox.flush(self.socket.as_fd());
    }

    /// True if messages to it are pending.
    pub(super) fn has_unsent(&self) -> bool {
        !self.outbox.is_empty()
    }

    /// Returns the next message from it, if there is one.
    pub(super) fn receive(&mut self) -> Option<(String, Option<OwnedFd>)> {
        match wire::receive(&self.socket, RecvFlags::DONTWAIT) {
            Ok(Some(message)) => Some(message),
            Ok(None) => {
                self.is_disconnected = true;
                None
            }
            Err(_) => None,
        }
    }

    /// Returns `None` while it runs, then its exit status, if that is known. It has ended when its
    /// connection is closed and it exits: its other descriptors, of which it has thousands, are
    /// closed after that ([`KeeperClient::inherit`](crate::client::KeeperClient::inherit)).
    pub(super) fn ended(&mut self) -> Option<Option<ExitStatus>> {
        let exiting = self.is_disconnected.then(|| self.process.exiting()).flatten();
        exiting.map(Some).or_else(|| self.process.ended())
    }

    /// Returns how long it had served when its last message came.
    pub(super) fn served(&self) -> Option<Duration> {
        self.serving.map(|since| self.heard.saturating_duration_since(since))
    }

    /// Returns when it will have been silent for too long.
    pub(super) fn silent_at(&self) -> Instant {
        self.heard
            + if !self.prepared && self.is_candidate {
                CHECK
            } else if self.serving.is_some() {
                SILENCE_TIMEOUT
            } else {
                START_TIMEOUT
            }
    }

    /// Replaces its broker if that has ended. `restarts` counts the brokers that were replaced.
    pub(super) fn check_broker(&mut self, arguments: &[std::ffi::OsString], restarts: &mut u64) {
        if let Some(process) = &mut self.broker.process {
            let Some(end) = process.ended() else { return };
            // A broker exits with status 0 when its server has ended.
            if end.is_none_or(|end| !end.success()) {
                let how = end.map_or("for no known reason".to_owned(), |end| end.to_string());
                self.broker.log_error(format!("the broker ended ({how}) and is started again"));
                *restarts += 1;
            }
            self.broker.process = None;
            self.broker.schedule();
        }
        if self.broker.due > Instant::now() {
            return;
        }
        if let Some(connection) = self.broker.start(&self.edition.program, arguments) {
            self.send(format!("{} {restarts}", wire::BROKER), Some(connection));
        }
    }

    /// Kills it and its broker.
    pub(super) fn dismiss(self, dying: &mut Dying) {
        // The broker's unread requests are from this server, so they are not needed any more.
        for process in [Some(self.process), self.broker.process].into_iter().flatten() {
            dying.dismiss(process);
        }
    }
}

impl Broker {
    fn new() -> Self {
        let now = Instant::now();
        let (process, pause, last_error) = (None, Duration::ZERO, String::new());
        Self { process, started: now, due: now, pause, last_error }
    }

    /// Schedules the next start, after a pause that doubles unless the last broker has lived long.
    fn schedule(&mut self) {
        if self.started.elapsed() > BROKER_PAUSE * 10 {
            self.pause = Duration::ZERO;
            self.last_error.clear();
        }
        self.pause = (self.pause * 2).clamp(Duration::from_millis(10), BROKER_PAUSE);
        self.due = Instant::now() + self.pause;
    }

    /// Logs why there is no broker, once for the same reason.
    fn log_error(&mut self, error: String) {
        if error != self.last_error {
            stderr::line(&error);
            self.last_error = error;
        }
    }

    /// Starts a broker, and returns the server's connection to it.
    fn start(
        &mut self,
        program: &Program,
        arguments: &[std::ffi::OsString],
    ) -> Option<Rc<OwnedFd>> {
        match wire::pair() {
            Ok((ours, theirs)) => self.start_at(program, arguments, theirs).then(|| Rc::new(ours)),
            Err(error) => {
                self.log_error(format!("no broker: socketpair: {error}"));
                self.schedule();
                None
            }
        }
    }

    /// Starts a broker with this end of a connection. If that fails, schedules another attempt.
    fn start_at(
        &mut self,
        program: &Program,
        arguments: &[std::ffi::OsString],
        connection: OwnedFd,
    ) -> bool {
        self.started = Instant::now();
        let arguments = arguments.iter().map(AsRef::as_ref).chain(["--broker".as_ref()]);
        match Process::start(program, &arguments.collect::<Vec<_>>(), connection) {
            Ok(process) => {
                self.process = Some(process);
                true
            }
            Err(error) => {
                self.log_error(format!("no broker: {}", one_line(&error)));
                self.schedule();
                false
            }
        }
    }
}

/// True if the kernel was out of processes, memory or descriptors. The program is not at fault.
pub(super) fn is_out_of_resources(error: &anyhow::Error) -> bool {
    let errno = error.chain().find_map(|cause| {
        let of_std = cause.downcast_ref().and_then(Errno::from_io_error);
        of_std.or_else(|| cause.downcast_ref().copied())
    });
    matches!(errno, Some(Errno::AGAIN | Errno::NOMEM | Errno::MFILE | Errno::NFILE))
}

#[cfg(test)]
mod tests {
    use rustix::event::{PollFd, PollFlags, poll};

    use super::*;

    #[test]
    fn the_status_of_a_process_that_exits_is_known_before_it_is_waited_for() {
        let started = |script: &str| {
            let child = std::process::Command::new("sh").args(["-c", script]).spawn().unwrap();
            let pid = rustix::process::Pid::from_child(&child);
            Process { child, pidfd: pidfd_open(pid, PidfdFlags::empty()).unwrap() }
        };
        let mut running = started("exec sleep 1000");
        assert_eq!(running.exiting(), None);
        running.kill();
        for (mut process, status) in [(running, 9), (started("exit 3"), 3 << 8)] {
            poll(&mut [PollFd::new(&process.pidfd, PollFlags::IN)], None).unwrap();
            assert_eq!(process.exiting(), Some(ExitStatus::from_raw(status)));
            assert_eq!(process.ended(), Some(Some(ExitStatus::from_raw(status))));
        }
        // However early it is asked for.
        for _ in 0..300 {
            let mut process = started("exit 3");
            let exiting = std::iter::from_fn(|| Some(process.exiting()));
            assert_eq!(exiting.flatten().next(), Some(ExitStatus::from_raw(3 << 8)));
            process.child.wait().unwrap();
        }
    }
}
