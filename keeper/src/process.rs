//! The keeper's process: starts the server, holds its descriptors, and starts it again.
//!
//! It knows three things of a server: that it is prepared (it has read its configuration and
//! opened what it needs), that it serves, and when it was last heard of. A server that dies is
//! replaced at once, later and later while its successors die too; one that is silent is killed.
//! A new program is started beside the old server, which is asked to leave when the new one is
//! prepared, and goes on when that fails.
//!
//! While a server serves, another one stands by: it has come so far that it only needs what the
//! server has, and waits for that. What it said is left unread until it is its turn.

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
use rustix::event::{PollFd, PollFlags, Timespec, poll};

use super::child::{CHECK, Graveyard, Process, Server, is_want_of_room};
use super::edition::{self, Edition};
use super::program::Program;
use super::store::Store;
use super::succession::Succession;
use super::wire;

/// How long a server may take to leave.
const LEAVE: Duration = Duration::from_secs(5);
/// How long the keeper waits for what it has killed, and for the service manager, when it ends.
pub(super) const LAST_MOMENT: Duration = Duration::from_secs(2);
/// A keeper that wakes so much later than it wanted was frozen or stopped, and the server probably
/// with it: no silence is counted then.
const OVERSLEPT: Duration = Duration::from_secs(2);
/// The longest pause between two starts.
pub(super) const LONGEST_PAUSE: Duration = Duration::from_secs(5);
/// The longest pause after the kernel had no room for a process.
const NO_ROOM_PAUSE: Duration = Duration::from_millis(500);
/// How long the service manager is left alone that has not taken something.
const MANAGER_PAUSE: Duration = Duration::from_millis(10);

/// The name of the last good configuration in the store. Servers get it in another way.
const CONFIGURATION: &str = "configuration";

/// What the keeper has to know of the program that it starts.
#[derive(Debug)]
pub struct Contract {
    /// The arguments of a server; `--kept` follows them, and `--broker` those of a broker.
    pub arguments: Vec<std::ffi::OsString>,
    /// The exit status of a server that has no configuration to use.
    pub misconfigured: u8,
    /// The name of the socket that commands connect to. It is closed as soon as the service stops:
    /// a command that asks then is refused at once, and does not wait.
    pub entrance: &'static str,
}

pub(super) struct Keeper {
    pub(super) contract: Contract,
    pub(super) editions: Succession<Edition>,
    pub(super) store: Store,
    pub(super) server: Option<Server>,
    /// The server that follows when the server dies. One that dies itself is missed until the next
    /// server serves, so that a program that cannot start is not started in a loop.
    pub(super) standby: Option<Server>,
    /// A new program that is to take over.
    candidate: Option<(Server, Edition)>,
    pub(super) graveyard: Graveyard,
    /// Containers depend on what is held: the keeper may not end by itself any more.
    pub(super) is_needed: bool,
    pub(super) restarts: u64,
    broker_restarts: u64,
    /// What the next server hears of how the last one ended, if there is something to tell.
    pub(super) ended: Option<&'static str>,
    pub(super) pause: Duration,
    pub(super) start_at: Option<Instant>,
    /// What was said last of why no server can be started.
    complaint: String,
    /// A connection was aborted: when its successor serves, the log says which containers have
    /// dead files.
    pub(super) has_dead_files: bool,
    pub(super) search: Option<(Process, Instant)>,
    /// The end: what is left of it when the server is gone.
    pub(super) stopping: Option<Stop>,
    pub(super) stop_by: Option<Instant>,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Stop {
    /// Everything stays with systemd.
    Keep,
    /// Nothing stays.
    Release,
    /// The candidate takes over.
    Replace,
}

/// Keeps a server, until it is told to stop.
///
/// # Errors
/// No first server can be started, or signals cannot be received.
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
    // The usual one may wait for standard error.
    std::panic::set_hook(Box::new(|panic| stderr::line(&format!("the keeper: {panic}"))));
    let program = Rc::new(Program::own()?);
    let configuration = store.get(CONFIGURATION).map(Rc::clone);
    let mut keeper = Keeper {
        contract,
        editions: Succession::new(Edition { program, configuration, instead: false }),
        is_needed: !store.is_empty(),
        store,
        server: None,
        standby: None,
        candidate: None,
        graveyard: Graveyard::default(),
        restarts: 0,
        broker_restarts: 0,
        ended: None,
        pause: Duration::ZERO,
        start_at: Some(Instant::now()),
        complaint: String::new(),
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
            // What it holds is lost for ever if it ends: even a defect of its own must not end it.
            match std::panic::catch_unwind(AssertUnwindSafe(|| self.turn(signals))) {
                Ok(Ok(None)) => {}
                Ok(ended) => return ended.map(|code| code.unwrap_or(ExitCode::FAILURE)),
                Err(_) => std::thread::sleep(Duration::from_millis(100)),
            }
        }
    }

    /// Waits for something, and does what is to be done then. The result is that of the process.
    fn turn(&mut self, signals: &SignalFd) -> anyhow::Result<Option<ExitCode>> {
        if self.start_at.is_some_and(|at| at <= Instant::now()) {
            self.start_server()?;
        }
        let now = self.wait(signals);
        while let Ok(Some(signal)) = signals.read_signal() {
            match i32::try_from(signal.ssi_signo).map(Signal::try_from) {
                Ok(Ok(Signal::SIGHUP)) => self.say("reload"),
                _ if self.store.outlives_us() => self.stop(Stop::Keep),
                _ => self.stop(Stop::Release),
            }
        }
        self.store.flush();
        self.graveyard.collect();
        self.listen();
        self.look_at_candidate(now);
        self.look_at_standby();
        self.look_at_search(now);
        if self.stopping.is_none() {
            for server in self.server.iter_mut().chain(&mut self.standby) {
                server.look_at_broker(&self.contract.arguments, &mut self.broker_restarts);
            }
        }
        Ok(self.look_at_server(now))
    }

    /// Has the standby's turn begin, or starts a server.
    fn start_server(&mut self) -> anyhow::Result<()> {
        self.start_at = None;
        self.look_at_standby();
        if let Some(standby) = self.standby.take() {
            self.server = Some(standby.begin());
            return Ok(());
        }
        match self.start(self.editions.current(), false) {
            Ok(server) => {
                self.complaint.clear();
                self.server = Some(server);
            }
            Err(error) if !self.is_needed => return Err(error),
            Err(error) => {
                let complaint = one_line(&error);
                if complaint != self.complaint {
                    stderr::line(&format!("no server can be started: {complaint}"));
                    self.complaint = complaint;
                }
                let longest = if is_want_of_room(&error) {
                    NO_ROOM_PAUSE
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

    fn start(&self, edition: &Edition, is_candidate: bool) -> anyhow::Result<Server> {
        Server::start(edition, &self.contract.arguments, is_candidate, self.broker_restarts)
    }

    /// Sleeps until something happens or is due, and returns when that was.
    fn wait(&mut self, signals: &SignalFd) -> Instant {
        // One that is prepared waits for its turn.
        let candidate = || self.candidate.iter().map(|(one, _)| one).filter(|one| !one.prepared);
        let servers = || self.server.iter().chain(candidate());
        let mut fds = vec![PollFd::new(signals, PollFlags::IN)];
        for server in servers() {
            fds.push(PollFd::new(&server.process.pidfd, PollFlags::IN));
            let more = if server.has_more_to_hear() { PollFlags::OUT } else { PollFlags::empty() };
            if !server.is_mute {
                fds.push(PollFd::new(&server.socket, PollFlags::IN | more));
            }
        }
        let standby = self.standby.iter().map(|standby| &standby.process);
        let with_brokers = || self.server.iter().chain(&self.standby);
        let brokers = with_brokers().filter_map(|server| server.broker.process.as_ref());
        let search = self.search.iter().map(|(search, _)| search);
        for process in standby.chain(brokers).chain(search) {
            fds.push(PollFd::new(&process.pidfd, PollFlags::IN));
        }
        let now = Instant::now();
        let due = [self.start_at, self.search.as_ref().map(|(_, until)| *until)];
        let manager = (!self.store.has_told()).then(|| now + MANAGER_PAUSE);
        let server = self.server.as_ref().map(|server| self.due(server));
        let missing = with_brokers().filter(|one| one.broker.process.is_none());
        let missing = missing.filter(|_| self.stopping.is_none()).map(|one| one.broker.due);
        let due = due.into_iter().chain([manager, server]).flatten().chain(missing);
        let due = due.chain(candidate().map(Server::silent_at)).min();
        let left = due.map(|due| due.saturating_duration_since(now));
        let timeout = left.map(|left| Timespec {
            tv_sec: i64::try_from(left.as_secs()).unwrap_or(1),
            // One more millisecond, so that it is not too early.
            tv_nsec: i64::from(left.subsec_nanos()).saturating_add(1_000_000).min(999_999_999),
        });
        let _ = poll(&mut fds, timeout.as_ref());
        let woken = Instant::now();
        if left.is_some_and(|left| woken.duration_since(now) > left + OVERSLEPT) {
            let candidate = self.candidate.as_mut().map(|(one, _)| one);
            self.server.iter_mut().chain(candidate).for_each(|one| one.heard = woken);
        }
        woken
    }

    /// When the server has to be looked at, if it does not say or do anything.
    fn due(&self, server: &Server) -> Instant {
        match server.killed {
            Some(killed) => killed + self.patience(),
            None => self.stop_by.map_or(server.silent_at(), |by| by.min(server.silent_at())),
        }
    }

    /// Takes what the server says.
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
                    // What it has read is not proven by how long it served before.
                    server.serving = Some(Instant::now());
                    if let Some(text) = text {
                        self.configure(text, served);
                        self.store_configuration();
                    }
                    self.dismiss_standby();
                    self.have_standby();
                }
                ("stop", _) if self.store.outlives_us() => self.stop(Stop::Keep),
                ("stop" | "release", _) => self.stop(Stop::Release),
                ("exec", _) => self.try_program(Path::new(rest)),
                _ => {}
            }
        }
    }

    /// The server has begun to serve.
    fn served(&mut self) {
        if let Some(server) = &mut self.server {
            server.serving = Some(Instant::now());
        }
        self.is_needed = true;
        self.store_configuration();
        self.store.notify("READY=1");
        self.have_standby();
        if std::mem::take(&mut self.has_dead_files) {
            self.search_dead_files();
        }
    }

    /// Servers are started with this configuration from now on, if the file on disk is wrong. The
    /// last one has served for so long.
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
            // The file on disk has it again.
            self.editions.current_mut().instead = false;
        }
    }

    /// A server serves with this configuration: it outlives the keeper too.
    fn store_configuration(&mut self) {
        let Some(current) = &self.editions.current().configuration else { return };
        if self.store.get(CONFIGURATION).is_none_or(|held| !Rc::ptr_eq(held, current)) {
            self.store.put_shared(CONFIGURATION, Rc::clone(current));
        }
    }

    /// Gives the server everything, and the word to go.
    fn hand_over(&mut self) {
        let Some(server) = &mut self.server else { return };
        server.prepared = true;
        for (name, fd) in self.store.iter().filter(|(name, _)| *name != CONFIGURATION) {
            server.say(format!("held {name}"), Some(Rc::clone(fd)));
        }
        if let Some(how) = self.ended {
            server.say(how, None);
        }
        server.say(format!("go {}", self.restarts), None);
    }

    /// Says something to the server.
    fn say(&mut self, text: &str) {
        if let Some(server) = &mut self.server {
            server.say(text, None);
        }
    }

    fn stop(&mut self, how: Stop) {
        if matches!(self.stopping, Some(Stop::Keep | Stop::Release)) {
            return;
        }
        if how != Stop::Replace {
            self.store.notify("STOPPING=1");
            self.store.remove(self.contract.entrance);
        }
        self.stopping = Some(how);
        self.stop_by = Some(Instant::now() + LEAVE);
        self.start_at = None;
        self.dismiss_standby();
        self.say(if how == Stop::Release { "release" } else { "leave" });
    }

    /// Starts a standby, if there is none and there will be a use for it.
    fn have_standby(&mut self) {
        if self.standby.is_some() || self.stopping.is_some() {
            return;
        }
        match self.start(self.editions.current(), false) {
            Ok(standby) => self.standby = Some(standby),
            Err(error) => stderr::line(&format!("no standby: {}", one_line(&error))),
        }
    }

    /// Ends the standby: it is of another program or configuration, or not needed any more.
    pub(super) fn dismiss_standby(&mut self) {
        if let Some(standby) = self.standby.take() {
            standby.bury(&mut self.graveyard);
        }
    }

    /// Has the standby ended?
    fn look_at_standby(&mut self) {
        if self.standby.as_mut().is_some_and(|standby| standby.process.ended().is_some()) {
            stderr::line("the standby has ended; a server that dies takes longer to replace");
            self.dismiss_standby();
        }
    }

    /// Starts a new program beside the server.
    fn try_program(&mut self, program: &Path) {
        if self.candidate.is_some() || self.stopping.is_some() {
            return self.say("refused another change is under way");
        }
        let started = Program::open(program).and_then(|program| {
            let (program, current) = (Rc::new(program), self.editions.current().clone());
            let edition = Edition { program, instead: false, ..current };
            Ok((self.start(&edition, true)?, edition))
        });
        match started {
            Ok(candidate) => self.candidate = Some(candidate),
            Err(error) => self.say(&format!("refused {}", one_line(&error))),
        }
    }

    /// Is the new program prepared, or has it failed?
    fn look_at_candidate(&mut self, now: Instant) {
        let Some((candidate, _)) = &mut self.candidate else { return };
        if candidate.prepared {
            return;
        }
        // Seen before what it said last is heard.
        let ended = candidate.process.ended();
        candidate.flush();
        while let Some((text, fd)) = candidate.receive() {
            match (text.split_once(' '), fd) {
                (None, Some(fd)) if text == wire::CONFIGURED => candidate.configuration = Some(fd),
                (None, _) if text == "prepared" => {
                    candidate.prepared = true;
                    return self.stop(Stop::Replace);
                }
                (Some(("failed", why)), _) => candidate.failure = Some(why.to_owned()),
                _ => {}
            }
        }
        if ended.is_none() && candidate.silent_at() > now {
            return;
        }
        let said = candidate.failure.take();
        if let Some((candidate, _)) = self.candidate.take() {
            candidate.bury(&mut self.graveyard);
        }
        let how = match ended {
            None => format!("it was not ready after {} s", CHECK.as_secs()),
            Some(end) => end.map_or("it ended".to_owned(), |end| end.to_string()),
        };
        let why = said.unwrap_or(how);
        self.say(&format!("refused the new program failed before it served: {why}"));
    }

    /// The new program takes the place of the server, which has served for so long.
    pub(super) fn replace(&mut self, served: Option<Duration>) {
        self.stopping = None;
        self.stop_by = None;
        let Some((mut candidate, mut edition)) = self.candidate.take() else {
            self.start_at = Some(Instant::now());
            return;
        };
        candidate.heard = Instant::now();
        if let Some(configuration) = candidate.configuration.take() {
            edition.configuration = Some(Rc::new(configuration));
        }
        self.server = Some(candidate);
        self.ended = None;
        self.editions.replace(edition, served);
        self.hand_over();
    }

    /// Ends what is left, for a moment at most.
    pub(super) fn end(&mut self, code: ExitCode) -> ExitCode {
        if let Some((candidate, _)) = self.candidate.take() {
            candidate.bury(&mut self.graveyard);
        }
        if let Some((search, _)) = self.search.take() {
            self.graveyard.bury(search);
        }
        self.dismiss_standby();
        // The same if it ends because it cannot serve.
        self.store.remove(self.contract.entrance);
        if self.stopping == Some(Stop::Release) {
            self.store.clear();
        }
        let until = Instant::now() + LAST_MOMENT;
        loop {
            self.graveyard.collect();
            if (self.store.flush() && self.graveyard.0.is_empty()) || Instant::now() >= until {
                return code;
            }
            std::thread::sleep(Duration::from_millis(1));
        }
    }
}
