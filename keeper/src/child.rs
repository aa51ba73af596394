//! The processes that the keeper starts: servers, each with its broker, which is no child of it. Filters
//! and lost capabilities pass to descendants, and those of a server must not bind a helper.
//!
//! Nothing here waits: messages that a server does not take are sent later, and what was killed is
//! collected when it has ended.

use std::os::fd::{AsFd, OwnedFd};
use std::process::{Child, ExitStatus, Stdio};
use std::rc::Rc;
use std::time::{Duration, Instant};

use ambit_kernel::output::{one_line, stderr};
use anyhow::Context;
use rustix::net::RecvFlags;
use rustix::process::{PidfdFlags, pidfd_open};

use super::edition::Edition;
use super::program::Program;
use super::wire::{self, Outbox};

/// A server that says nothing for so long has stopped working.
const SILENCE: Duration = Duration::from_secs(10);
/// How long a server may take until it serves.
const START: Duration = Duration::from_secs(20);
/// How long a new program may take for its check.
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
                // Its connection is closed: it ends by itself, if it is not killed.
                let _ = child.kill();
                Err(errno).context("pidfd_open (Linux 5.3)")
            }
        }
    }

    /// How it ended, if it has.
    pub(super) fn ended(&mut self) -> Option<Option<ExitStatus>> {
        match self.child.try_wait() {
            Ok(None) => None,
            Ok(status) => Some(status),
            Err(_) => Some(None),
        }
    }

    pub(super) fn kill(&mut self) {
        // It may have ended.
        let _ = self.child.kill();
    }
}

/// Processes that are not needed any more and have not ended yet.
#[derive(Debug, Default)]
pub(super) struct Graveyard(pub(super) Vec<Process>);

impl Graveyard {
    /// Kills a process, and collects it later.
    pub(super) fn bury(&mut self, mut process: Process) {
        process.kill();
        self.0.push(process);
    }

    /// Collects those that have ended.
    pub(super) fn collect(&mut self) {
        self.0.retain_mut(|process| process.ended().is_none());
    }
}

/// The broker of a server.
#[derive(Debug)]
pub(super) struct Broker {
    pub(super) process: Option<Process>,
    started: Instant,
    /// When another one is started, if there is none.
    pub(super) due: Instant,
    pause: Duration,
    /// What was said last of why there is none.
    complaint: String,
}

/// A process that serves, or is about to.
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
    /// Since when it serves.
    pub(super) serving: Option<Instant>,
    /// It will say nothing more, but has not ended yet.
    pub(super) is_mute: bool,
    /// When it was killed.
    pub(super) killed: Option<Instant>,
    /// Why it cannot serve, in its own words.
    pub(super) failure: Option<String>,
    /// The configuration that it has read from disk.
    pub(super) configuration: Option<OwnedFd>,
}

impl Server {
    /// Starts one and its broker; one that is a candidate checks itself first.
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
        // The socket is empty, and all of it must be there when the server begins.
        anyhow::ensure!(outbox.flush(socket.as_fd()).context("sendmsg")?, "sendmsg: no room");
        let own = arguments.iter().map(AsRef::as_ref).chain(["--kept".as_ref()]);
        let process = Process::start(&edition.program, &own.collect::<Vec<_>>(), theirs)?;
        // If that fails, the connection is that of a broker that has died.
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
            is_mute: false,
            killed: None,
            failure: None,
            configuration: None,
        })
    }

    /// The same, whose turn it is from now on.
    pub(super) fn begin(self) -> Self {
        let now = Instant::now();
        Self { started: now, heard: now, ..self }
    }

    /// Says something to it, now or when it reads.
    pub(super) fn say(&mut self, text: impl Into<String>, fd: Option<Rc<OwnedFd>>) {
        self.outbox.push(text.into(), fd);
        self.flush();
    }

    /// Sends what waits. When it is gone, that is seen elsewhere.
    pub(super) fn flush(&mut self) {
        let _ = self.outbox.flush(self.socket.as_fd());
    }

    pub(super) fn has_more_to_hear(&self) -> bool {
        !self.outbox.is_empty()
    }

    /// What it says, if it has said something.
    pub(super) fn receive(&mut self) -> Option<(String, Option<OwnedFd>)> {
        match wire::receive(&self.socket, RecvFlags::DONTWAIT) {
            Ok(Some(message)) => Some(message),
            // A process that dies takes a while to lay down what it has, and needs processors for it.
            Ok(None) => {
                self.is_mute = true;
                None
            }
            Err(_) => None,
        }
    }

    /// How long it has served, as far as it was heard of.
    pub(super) fn served(&self) -> Option<Duration> {
        self.serving.map(|since| self.heard.saturating_duration_since(since))
    }

    /// When it has been silent for too long.
    pub(super) fn silent_at(&self) -> Instant {
        self.heard
            + if !self.prepared && self.is_candidate {
                CHECK
            } else if self.serving.is_some() {
                SILENCE
            } else {
                START
            }
    }

    /// Replaces its broker if that has ended; `restarts` counts those.
    pub(super) fn look_at_broker(&mut self, arguments: &[std::ffi::OsString], restarts: &mut u64) {
        if let Some(process) = &mut self.broker.process {
            let Some(end) = process.ended() else { return };
            // One that ends in order has lost its server, whose end is seen in a moment.
            if end.is_none_or(|end| !end.success()) {
                let how = end.map_or("for no known reason".to_owned(), |end| end.to_string());
                self.broker.complain(format!("the broker ended ({how}) and is started again"));
                *restarts += 1;
            }
            self.broker.process = None;
            self.broker.wait();
        }
        if self.broker.due > Instant::now() {
            return;
        }
        if let Some(connection) = self.broker.start(&self.edition.program, arguments) {
            self.say(format!("{} {restarts}", wire::BROKER), Some(connection));
        }
    }

    /// Lets go of it: it and its broker have nothing to do any more.
    pub(super) fn bury(self, graveyard: &mut Graveyard) {
        // Requests that the broker has not read yet are those of a server that is gone.
        for process in [Some(self.process), self.broker.process].into_iter().flatten() {
            graveyard.bury(process);
        }
    }
}

impl Broker {
    fn new() -> Self {
        let now = Instant::now();
        let (process, pause, complaint) = (None, Duration::ZERO, String::new());
        Self { process, started: now, due: now, pause, complaint }
    }

    /// Has the next one start later and later, unless this one has lived for long.
    fn wait(&mut self) {
        if self.started.elapsed() > BROKER_PAUSE * 10 {
            self.pause = Duration::ZERO;
            self.complaint.clear();
        }
        self.pause = (self.pause * 2).clamp(Duration::from_millis(10), BROKER_PAUSE);
        self.due = Instant::now() + self.pause;
    }

    /// Says why there is none, once for brokers that end one after the other.
    fn complain(&mut self, complaint: String) {
        if complaint != self.complaint {
            stderr::line(&complaint);
            self.complaint = complaint;
        }
    }

    /// Starts one, and returns the server's connection to it.
    fn start(
        &mut self,
        program: &Program,
        arguments: &[std::ffi::OsString],
    ) -> Option<Rc<OwnedFd>> {
        match wire::pair() {
            Ok((ours, theirs)) => self.start_at(program, arguments, theirs).then(|| Rc::new(ours)),
            Err(error) => {
                self.complain(format!("no broker: socketpair: {error}"));
                self.wait();
                None
            }
        }
    }

    /// Starts one at this end of a connection. If that fails, it is tried again after a pause.
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
                self.complain(format!("no broker: {}", one_line(&error)));
                self.wait();
                false
            }
        }
    }
}

/// True if the kernel had no room for a process or a descriptor: nothing is wrong with the program.
pub(super) fn is_want_of_room(error: &anyhow::Error) -> bool {
    let number = error.chain().find_map(|cause| {
        let of_std = cause.downcast_ref::<std::io::Error>().and_then(std::io::Error::raw_os_error);
        of_std.or_else(|| Some(cause.downcast_ref::<rustix::io::Errno>()?.raw_os_error()))
    });
    number.is_some_and(|number| {
        [libc::EAGAIN, libc::ENOMEM, libc::EMFILE, libc::ENFILE].contains(&number)
    })
}
