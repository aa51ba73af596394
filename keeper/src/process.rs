//! The keeper's process: starts the server, holds its descriptors, and restarts it.
//!
//! It tracks three facts about a server: whether it is prepared (it has read its configuration and
//! opened what it needs), whether it serves, and when its last message came. A server that dies is
//! replaced at once, and after growing pauses if its successors die too. A server that is silent is
//! killed. A new program, the candidate, is started beside the server. When the candidate is
//! prepared, the server is asked to leave; if the candidate fails, the server goes on.
//!
//! While a server serves, a standby waits: it is prepared, and lacks only the descriptors of the
//! server. Its messages are left unread until it becomes the server.

use std::os::fd::OwnedFd;
use std::panic::AssertUnwindSafe;
use std::path::Path;
use std::process::ExitCode;
use std::rc::Rc;
use std::time::{Duration, Instant};

use ambit_kernel::output::{one_line, stderr};
use anyhow::Context;
use nix::sys::signal::{SigSet, Signal};
use nix::sys::signalfd::{SfdFlags, SignalFd};

use super::child::{Dying, Process, Server, is_out_of_resources};
use super::edition::{self, Edition};
use super::program::Program;
use super::store::Store;
use super::succession::Succession;
use super::wire;

/// How long a server may take to end after it was asked to.
const LEAVE: Duration = Duration::from_secs(5);
/// How long the keeper, when it ends, waits for killed processes and for the service manager.
pub(super) const SHUTDOWN_TIMEOUT: Duration = Duration::from_secs(2);
/// The longest pause between two starts.
pub(super) const LONGEST_PAUSE: Duration = Duration::from_secs(5);
/// The longest pause after the kernel was out of processes, memory or descriptors.
const OUT_OF_RESOURCES_PAUSE: Duration = Duration::from_millis(500);
/// The name of the last good configuration in the store. Servers get it as an early message.
const CONFIGURATION: &str = "configuration";

/// What the keeper must know about the program that it starts.
#[derive(Debug)]
pub struct Contract {
    /// The arguments of a server; `--kept` follows them, and `--broker` those of a broker.
    pub arguments: Vec<std::ffi::OsString>,
    /// The exit status of a server that has no configuration to use.
    pub misconfigured: u8,
    /// The name of the socket that commands connect to. It is closed as soon as the service stops,
    /// so that a command that connects then is refused at once and does not wait.
    pub control_socket: &'static str,
}

pub(super) struct Keeper {
    pub(super) contract: Contract,
    pub(super) editions: Succession<Edition>,
    pub(super) store: Store,
    pub(super) server: Option<Server>,
    /// The server that takes over when the server dies. If the standby itself dies, it is replaced
    /// when the next server serves, so that a program that cannot start is not started in a loop.
    pub(super) standby: Option<Server>,
    /// The server of a new program, until it takes over.
    pub(super) candidate: Option<(Server, Edition)>,
    pub(super) dying: Dying,
    /// True if containers depend on the descriptors: the keeper may not end by itself any more.
    pub(super) is_needed: bool,
    pub(super) restarts: u64,
    broker_restarts: u64,
    /// The message for the next server about how the last one ended, if it crashed or was silent.
    pub(super) ended: Option<&'static str>,
    pub(super) pause: Duration,
    pub(super) start_at: Option<Instant>,
    /// The last logged reason why no server can be started.
    last_error: String,
    /// True if a connection was aborted: when the next server serves, the containers with dead
    /// files are logged.
    pub(super) has_dead_files: bool,
    pub(super) search: Option<(Process, Instant)>,
    /// Set while the server is asked to end: what follows its end.
    pub(super) stopping: Option<Stop>,
    pub(super) stop_by: Option<Instant>,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Stop {
    /// The keeper ends, and systemd holds the descriptors.
    Keep,
    /// The keeper ends and removes all descriptors.
    Release,
    /// The candidate takes over.
    Replace,
}

/// Runs the keeper, until it is told to stop. Returns its exit status.
///
/// # Errors
/// The first server cannot be started, or signals cannot be received.
pub fn keep(contract: Contract) -> anyhow::Result<ExitCode> {
    let mut limit = rustix::process::getrlimit(rustix::process::Resource::Nofile);
    limit.current = limit.maximum;
    let _ = rustix::process::setrlimit(rustix::process::Resource::Nofile, limit);
    let store = Store::open();
    let mut signals = SigSet::empty();
    for signal in [Signal::SIGTERM, Signal::SIGINT, Signal::SIGHUP] {
        signals.add(signal);
    }
    signals.thread_block().context("cannot block signals")?;
    let flags = SfdFlags::SFD_CLOEXEC | SfdFlags::SFD_NONBLOCK;
    let signals = SignalFd::with_flags(&signals, flags).context("signalfd")?;
    let _ = rustix::thread::set_name(c"ambit");
    // The default hook may block on standard error.
    std::panic::set_hook(Box::new(|panic| stderr::line(&format!("the keeper: {panic}"))));
    let program = Rc::new(Program::own()?);
    let configuration = store.get(CONFIGURATION).map(Rc::clone);
    let mut keeper = Keeper {
        contract,
        editions: Succession::new(Edition { program, configuration, instead: false }),
        is_needed: store.has_left(),
        store,
        server: None,
        standby: None,
        candidate: None,
        dying: Dying::default(),
        restarts: 0,
        broker_restarts: 0,
        ended: None,
        pause: Duration::ZERO,
        start_at: Some(Instant::now()),
        last_error: String::new(),
        has_dead_files: false,
        search: None,
        stopping: None,
        stop_by: None,
    };
    keeper.run(&signals)
}

impl Keeper {
    fn run(&mut self, signals: &SignalFd) -> anyhow::Result<ExitCode> {
        loop {
            // The descriptors are lost if the keeper ends, so it survives a panic of its own.
            match std::panic::catch_unwind(AssertUnwindSafe(|| self.run_once(signals))) {
                Ok(Ok(None)) => {}
                Ok(ended) => return ended.map(|code| code.unwrap_or(ExitCode::FAILURE)),
                Err(_) => std::thread::sleep(Duration::from_millis(100)),
            }
        }
    }

    /// Waits for events and handles them. Returns the exit status when the keeper is to end.
    fn run_once(&mut self, signals: &SignalFd) -> anyhow::Result<Option<ExitCode>> {
        if self.start_at.is_some_and(|at| at <= Instant::now()) {
            self.start_server()?;
        }
        let now = self.wait(signals);
        while let Ok(Some(signal)) = signals.read_signal() {
            match i32::try_from(signal.ssi_signo).map(Signal::try_from) {
                Ok(Ok(Signal::SIGHUP)) => self.send("reload"),
                _ if self.store.outlives_us() => self.stop(Stop::Keep),
                _ => self.stop(Stop::Release),
            }
        }
        self.store.flush();
        self.dying.reap();
        self.listen();
        self.check_candidate(now);
        self.check_standby();
        self.check_search(now);
        if self.stopping.is_none() {
            for server in self.server.iter_mut().chain(&mut self.standby) {
                server.check_broker(&self.contract.arguments, &mut self.broker_restarts);
            }
        }
        Ok(self.check_server(now))
    }

    /// Makes the standby the server, or starts a server.
    fn start_server(&mut self) -> anyhow::Result<()> {
        self.start_at = None;
        self.check_standby();
        if let Some(standby) = self.standby.take() {
            self.server = Some(standby.promote());
            return Ok(());
        }
        match self.start(self.editions.current(), false) {
            Ok(server) => {
                self.last_error.clear();
                self.server = Some(server);
            }
            Err(error) if !self.is_needed => return Err(error),
            Err(error) => {
                let reason = one_line(&error);
                if reason != self.last_error {
                    stderr::line(&format!("no server can be started: {reason}"));
                    self.last_error = reason;
                }
                let longest = if is_out_of_resources(&error) {
                    OUT_OF_RESOURCES_PAUSE
                } else {
                    self.count_death(None);
                    LONGEST_PAUSE
                };
                self.pause = (self.pause * 2).clamp(Duration::from_millis(10), longest);
                self.start_at = Some(Instant::now() + self.pause);
            }
        }
        Ok(())
    }

    pub(super) fn start(&self, edition: &Edition, is_candidate: bool) -> anyhow::Result<Server> {
        Server::start(edition, &self.contract.arguments, is_candidate, self.broker_restarts)
    }

    /// Handles the server's messages.
    pub(super) fn listen(&mut self) {
        loop {
            let Some(server) = &mut self.server else { return };
            server.flush();
            let Some((text, fd)) = server.receive() else { return };
            server.heard = Instant::now();
            let (verb, rest) = text.split_once(' ').unwrap_or((&text, ""));
            match (verb, fd) {
                ("store", Some(fd)) => self.store.put(rest, fd),
                ("remove", _) => self.store.remove(rest),
                (wire::CONFIGURED, Some(text)) => self.configure(text, None),
                ("prepared", _) => self.hand_over(),
                ("serving", _) => self.served(),
                ("reloaded", text) => {
                    let served = server.served();
                    // The time that it served before does not prove the new configuration.
                    server.serving = Some(Instant::now());
                    if let Some(text) = text {
                        self.configure(text, served);
                        self.store_configuration();
                    }
                    self.dismiss_standby();
                    self.start_standby();
                }
                ("stop", _) if self.store.outlives_us() => self.stop(Stop::Keep),
                ("stop" | "release", _) => self.stop(Stop::Release),
                ("exec", _) => self.try_program(Path::new(rest)),
                _ => {}
            }
        }
    }

    /// Handles the message that the server has begun to serve.
    fn served(&mut self) {
        if let Some(server) = &mut self.server {
            server.serving = Some(Instant::now());
        }
        self.is_needed = true;
        self.store_configuration();
        self.store.notify("READY=1");
        self.start_standby();
        if std::mem::take(&mut self.has_dead_files) {
            self.search_dead_files();
        }
    }

    /// Makes this the configuration that servers use if the file on disk is invalid. `served` is
    /// how long the server has served with the one before.
    fn configure(&mut self, text: OwnedFd, served: Option<Duration>) {
        let current = self.editions.current();
        let Some(before) = &current.configuration else {
            self.editions.current_mut().configuration = Some(Rc::new(text));
            return;
        };
        if !edition::has_same_bytes(before, &text) {
            let next =
                Edition { configuration: Some(Rc::new(text)), instead: false, ..current.clone() };
            self.editions.replace(next, served);
        } else if current.instead {
            // The file on disk has this configuration again.
            self.editions.current_mut().instead = false;
        }
    }

    /// Stores the configuration with which a server serves, so that it outlives the keeper.
    fn store_configuration(&mut self) {
        let Some(current) = &self.editions.current().configuration else { return };
        if self.store.get(CONFIGURATION).is_none_or(|held| !Rc::ptr_eq(held, current)) {
            self.store.put_shared(CONFIGURATION, Rc::clone(current));
        }
    }

    /// Sends all descriptors to the server, then the command to serve.
    pub(super) fn hand_over(&mut self) {
        let Some(server) = &mut self.server else { return };
        server.prepared = true;
        for (name, fd) in self.store.iter().filter(|(name, _)| *name != CONFIGURATION) {
            server.send(format!("held {name}"), Some(Rc::clone(fd)));
        }
        if let Some(how) = self.ended {
            server.send(how, None);
        }
        server.send(format!("go {}", self.restarts), None);
    }

    /// Sends a message to the server.
    pub(super) fn send(&mut self, text: &str) {
        if let Some(server) = &mut self.server {
            server.send(text, None);
        }
    }

    pub(super) fn stop(&mut self, how: Stop) {
        if matches!(self.stopping, Some(Stop::Keep | Stop::Release)) {
            return;
        }
        if how != Stop::Replace {
            self.store.notify("STOPPING=1");
            self.store.remove(self.contract.control_socket);
        }
        self.stopping = Some(how);
        self.stop_by = Some(Instant::now() + LEAVE);
        self.start_at = None;
        self.dismiss_standby();
        self.send(if how == Stop::Release { "release" } else { "leave" });
    }

    /// Starts a standby, unless there is one or the keeper is stopping.
    fn start_standby(&mut self) {
        if self.standby.is_some() || self.stopping.is_some() {
            return;
        }
        match self.start(self.editions.current(), false) {
            Ok(standby) => self.standby = Some(standby),
            Err(error) => stderr::line(&format!("no standby: {}", one_line(&error))),
        }
    }

    /// Kills the standby, because its program or configuration is outdated or the keeper stops.
    pub(super) fn dismiss_standby(&mut self) {
        if let Some(standby) = self.standby.take() {
            standby.dismiss(&mut self.dying);
        }
    }

    /// Removes the standby if it has ended.
    fn check_standby(&mut self) {
        if self.standby.as_mut().is_some_and(|standby| standby.process.is_ending()) {
            stderr::line("the standby has ended; a server that dies takes longer to replace");
            self.dismiss_standby();
        }
    }

    /// Ends the remaining processes, and waits for them for up to [`SHUTDOWN_TIMEOUT`].
    pub(super) fn end(&mut self, code: ExitCode) -> ExitCode {
        if let Some((candidate, _)) = self.candidate.take() {
            candidate.dismiss(&mut self.dying);
        }
        if let Some((search, _)) = self.search.take() {
            self.dying.dismiss(search);
        }
        self.dismiss_standby();
        // Not removed yet if the keeper ends because no server could be started.
        self.store.remove(self.contract.control_socket);
        if self.stopping == Some(Stop::Release) {
            self.store.clear();
        }
        let until = Instant::now() + SHUTDOWN_TIMEOUT;
        loop {
            self.dying.reap();
            if (self.store.flush() && self.dying.0.is_empty()) || Instant::now() >= until {
                return code;
            }
            std::thread::sleep(Duration::from_millis(1));
        }
    }
}
