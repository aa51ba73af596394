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

use std::os::fd::{AsFd, OwnedFd};
use std::os::unix::process::{CommandExt, ExitStatusExt};
use std::path::Path;
use std::process::{Child, Command, ExitCode, ExitStatus, Stdio};
use std::time::{Duration, Instant};

use anyhow::Context;
use nix::sys::signal::{SigSet, Signal};
use nix::sys::signalfd::{SfdFlags, SignalFd};
use rustix::event::{PollFd, PollFlags, Timespec, poll};
use rustix::net::RecvFlags;
use rustix::process::{PidfdFlags, pidfd_open};

use super::store::Store;
use super::wire;
use crate::control;

/// A server that says nothing for so long has stopped working.
const SILENCE: Duration = Duration::from_secs(10);
/// How long a server may take until it serves.
const START: Duration = Duration::from_secs(20);
/// How long a new program may take for its check.
const CHECK: Duration = Duration::from_secs(10);
/// How long a server may take to leave.
const LEAVE: Duration = Duration::from_secs(5);
/// A keeper that wakes so much later than it wanted was frozen or stopped, and the server probably
/// with it: nobody's silence is counted then.
const OVERSLEPT: Duration = Duration::from_secs(2);
/// Who lives longer than this did not fail at once.
const STABLE: Duration = Duration::from_secs(2);
/// The longest pause after one that has served for a moment.
const SHORT_PAUSE: Duration = Duration::from_millis(16);
/// The longest pause between two starts.
const LONGEST_PAUSE: Duration = Duration::from_secs(5);

/// A process that serves, or is about to.
struct Server {
    child: Child,
    pidfd: OwnedFd,
    socket: OwnedFd,
    started: Instant,
    heard: Instant,
    is_candidate: bool,
    prepared: bool,
    serving: bool,
    /// It will say nothing more, but has not ended yet.
    is_mute: bool,
    /// Why it cannot serve, in its own words.
    failure: Option<String>,
}

struct Keeper {
    arguments: Vec<std::ffi::OsString>,
    program: std::path::PathBuf,
    /// The program before, until this one serves.
    proven: Option<std::path::PathBuf>,
    store: Store,
    server: Option<Server>,
    /// Who follows when the server dies. One that dies itself is missed until the next server
    /// serves, so that a program that cannot start is not started in a loop.
    standby: Option<Server>,
    /// A new program that is to take over.
    candidate: Option<(Server, std::path::PathBuf)>,
    served_once: bool,
    restarts: u64,
    /// What the next server hears of how the last one ended, if there is something to tell.
    ended: Option<&'static str>,
    pause: Duration,
    start_at: Option<Instant>,
    /// The end: what is left of it when the server is gone.
    stopping: Option<Stop>,
    stop_by: Option<Instant>,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Stop {
    /// Everything stays with systemd.
    Keep,
    /// Nothing stays.
    Release,
    /// The candidate takes over.
    Replace,
}

/// Keeps a server that is started with these arguments, until it is told to stop.
///
/// # Errors
/// No process can be started, or signals cannot be received.
pub fn keep(arguments: Vec<std::ffi::OsString>) -> anyhow::Result<ExitCode> {
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
    let mut keeper = Keeper {
        arguments,
        program: "/proc/self/exe".into(),
        proven: None,
        store,
        server: None,
        standby: None,
        candidate: None,
        served_once: false,
        restarts: 0,
        ended: None,
        pause: Duration::ZERO,
        start_at: Some(Instant::now()),
        stopping: None,
        stop_by: None,
    };
    keeper.run(&signals)
}

impl Keeper {
    fn run(&mut self, signals: &SignalFd) -> anyhow::Result<ExitCode> {
        loop {
            if self.start_at.is_some_and(|at| at <= Instant::now()) {
                self.start_at = None;
                self.look_at_standby();
                self.server = Some(match self.standby.take() {
                    Some(standby) => standby.begin(),
                    None => start(&self.program, &self.arguments, false)?,
                });
            }
            self.wait(signals);
            while let Ok(Some(signal)) = signals.read_signal() {
                match i32::try_from(signal.ssi_signo).map(Signal::try_from) {
                    Ok(Ok(Signal::SIGHUP)) => self.say("reload"),
                    _ if self.store.outlives_us() => self.stop(Stop::Keep),
                    _ => self.stop(Stop::Release),
                }
            }
            self.listen();
            self.look_at_candidate();
            self.look_at_standby();
            if let Some(code) = self.look_at_server() {
                return Ok(code);
            }
        }
    }

    /// Sleeps until something happens or is due.
    fn wait(&mut self, signals: &SignalFd) {
        let servers = || self.server.iter().chain(self.candidate.iter().map(|(one, _)| one));
        let mut fds = vec![PollFd::new(signals, PollFlags::IN)];
        for server in servers() {
            fds.push(PollFd::new(&server.pidfd, PollFlags::IN));
            if !server.is_mute {
                fds.push(PollFd::new(&server.socket, PollFlags::IN));
            }
        }
        if let Some(standby) = &self.standby {
            fds.push(PollFd::new(&standby.pidfd, PollFlags::IN));
        }
        let due = [self.start_at, self.stop_by].into_iter().flatten();
        let due = due.chain(servers().map(Server::silent_at)).min();
        let left = due.map(|due| due.saturating_duration_since(Instant::now()));
        let timeout = left.map(|left| Timespec {
            tv_sec: i64::try_from(left.as_secs()).unwrap_or(1),
            // One more millisecond, so that it is not too early.
            tv_nsec: i64::from(left.subsec_nanos()).saturating_add(1_000_000).min(999_999_999),
        });
        let asked = Instant::now();
        let _ = poll(&mut fds, timeout.as_ref());
        let now = Instant::now();
        if left.is_some_and(|left| now.duration_since(asked) > left + OVERSLEPT) {
            let candidate = self.candidate.as_mut().map(|(one, _)| one);
            self.server.iter_mut().chain(candidate).for_each(|one| one.heard = now);
        }
    }

    /// Takes what the server says.
    fn listen(&mut self) {
        loop {
            let Some(server) = &mut self.server else { return };
            let (text, fd) = match wire::receive(&server.socket, RecvFlags::DONTWAIT) {
                Ok(Some(message)) => message,
                // A process that dies takes a while to lay down what it has, and needs processors for it.
                Ok(None) => {
                    server.is_mute = true;
                    return;
                }
                Err(_) => return,
            };
            server.heard = Instant::now();
            let (verb, rest) = text.split_once(' ').unwrap_or((&text, ""));
            match (verb, fd) {
                ("store", Some(fd)) => self.store.put(rest, fd),
                ("remove", _) => self.store.remove(rest),
                ("prepared", _) => self.hand_over(),
                ("serving", _) => {
                    server.serving = true;
                    self.served_once = true;
                    self.proven = None;
                    // Without systemd there is nobody to tell.
                    let _ = sd_notify::notify(&[sd_notify::NotifyState::Ready]);
                    self.have_standby();
                }
                ("reloaded", _) => {
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

    /// Gives the server everything, and the word to go.
    fn hand_over(&mut self) {
        let Some(server) = &mut self.server else { return };
        server.prepared = true;
        let to = server.socket.as_fd();
        let sent = self
            .store
            .iter()
            .try_for_each(|(name, fd)| wire::send(to, &format!("held {name}"), Some(fd)));
        let sent = sent.and_then(|()| self.ended.map_or(Ok(()), |how| wire::send(to, how, None)));
        if let Err(errno) =
            sent.and_then(|()| wire::send(to, &format!("go {}", self.restarts), None))
        {
            eprintln!("ambit: the server does not take what was kept: sendmsg: {errno}");
        }
    }

    /// Says something to the server.
    fn say(&self, text: &str) {
        if let Some(server) = &self.server {
            // When it is gone, that is seen elsewhere.
            let _ = wire::send(server.socket.as_fd(), text, None);
        }
    }

    fn stop(&mut self, how: Stop) {
        if matches!(self.stopping, Some(Stop::Keep | Stop::Release)) {
            return;
        }
        if how != Stop::Replace {
            let _ = sd_notify::notify(&[sd_notify::NotifyState::Stopping]);
            // A command that asks while the service is stopped is refused at once, and does not wait.
            self.store.remove(control::SOCKET);
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
        match start(&self.program, &self.arguments, false) {
            Ok(standby) => self.standby = Some(standby),
            Err(error) => eprintln!("ambit: no standby: {}", crate::logging::say(&error)),
        }
    }

    /// Ends the standby: it is of another program or configuration, or not needed any more.
    fn dismiss_standby(&mut self) {
        if let Some(mut standby) = self.standby.take() {
            let _ = standby.child.kill();
            let _ = standby.child.wait();
        }
    }

    /// Has the standby ended?
    fn look_at_standby(&mut self) {
        let Some(standby) = &mut self.standby else { return };
        if let Ok(None) = standby.child.try_wait() {
            return;
        }
        eprintln!("ambit: the standby has ended; a server that dies takes longer to replace");
        self.standby = None;
    }

    /// Starts a new program beside the server.
    fn try_program(&mut self, program: &Path) {
        if self.candidate.is_some() || self.stopping.is_some() {
            return self.say("refused another change is under way");
        }
        match start(program, &self.arguments, true) {
            Ok(server) => self.candidate = Some((server, program.to_owned())),
            Err(error) => self.say(&format!("refused {}", crate::logging::say(&error))),
        }
    }

    /// Is the new program prepared, or has it failed?
    fn look_at_candidate(&mut self) {
        let Some((candidate, _)) = &mut self.candidate else { return };
        if candidate.prepared {
            return;
        }
        // Seen before what it said last is heard.
        let ended = candidate.child.try_wait().ok().flatten();
        loop {
            let text = match wire::receive(&candidate.socket, RecvFlags::DONTWAIT) {
                Ok(Some((text, _))) => text,
                other => {
                    candidate.is_mute |= other.is_ok();
                    break;
                }
            };
            if text == "prepared" {
                candidate.prepared = true;
                self.stop(Stop::Replace);
                return;
            }
            candidate.failure = text.strip_prefix("failed ").map(str::to_owned);
        }
        if ended.is_none() && candidate.started.elapsed() <= CHECK {
            return;
        }
        let said = candidate.failure.take();
        let _ = candidate.child.kill();
        let _ = candidate.child.wait();
        self.candidate = None;
        let how = ended.map_or_else(
            || format!("it was not ready after {} s", CHECK.as_secs()),
            |end| end.to_string(),
        );
        let why = said.unwrap_or(how);
        self.say(&format!("refused the new program failed before it served: {why}"));
    }

    /// Has the server ended, or should it?
    fn look_at_server(&mut self) -> Option<ExitCode> {
        let now = Instant::now();
        let Some(server) = &mut self.server else {
            let over = self.stopping.is_some();
            return over.then(|| self.end(ExitCode::SUCCESS));
        };
        let late = server.silent_at() <= now || self.stop_by.is_some_and(|by| by <= now);
        let ended = match server.child.try_wait() {
            Ok(None) if !late => return None,
            Ok(None) => {
                eprintln!("ambit: the server does not answer and is killed");
                let _ = server.child.kill();
                server.child.wait().ok()
            }
            Ok(Some(status)) => Some(status),
            Err(_) => None,
        };
        // What it said last is heard first.
        self.listen();
        let (lived, served) = self
            .server
            .take()
            .map_or((Duration::ZERO, false), |one| (one.started.elapsed(), one.serving));
        match self.stopping {
            Some(Stop::Replace) => {
                self.replace();
                None
            }
            Some(_) => Some(self.end(code(ended))),
            // It never worked: whoever started us is told.
            None if !self.served_once => Some(self.end(code(ended))),
            None => {
                let how = ended.map_or("for no known reason".to_owned(), |end| end.to_string());
                eprintln!("ambit: the server ended ({how}) and is started again");
                if let Some(proven) = self.proven.take() {
                    eprintln!("ambit: the new program never served; the one before goes on");
                    self.program = proven;
                }
                self.restarts += 1;
                let crashed = ended.is_some_and(has_crashed).then_some(wire::CRASHED);
                self.ended = crashed.or(late.then_some(wire::SILENT));
                // One that has served is not broken: containers wait for the next one.
                let longest = if served { SHORT_PAUSE } else { LONGEST_PAUSE };
                self.pause = if lived > STABLE {
                    Duration::ZERO
                } else {
                    (self.pause * 2).clamp(Duration::from_millis(1), longest)
                };
                // One that stands by is there already, and took its time.
                let pause =
                    if served && self.standby.is_some() { Duration::ZERO } else { self.pause };
                self.start_at = Some(now + pause);
                None
            }
        }
    }

    /// The new program takes the place of the server.
    fn replace(&mut self) {
        self.stopping = None;
        self.stop_by = None;
        let Some((mut candidate, program)) = self.candidate.take() else {
            self.start_at = Some(Instant::now());
            return;
        };
        candidate.heard = Instant::now();
        self.server = Some(candidate);
        self.ended = None;
        self.proven = Some(std::mem::replace(&mut self.program, program));
        self.hand_over();
    }

    fn end(&mut self, code: ExitCode) -> ExitCode {
        if let Some((mut candidate, _)) = self.candidate.take() {
            let _ = candidate.child.kill();
            let _ = candidate.child.wait();
        }
        // The same if it ends because it cannot serve.
        self.store.remove(control::SOCKET);
        if self.stopping == Some(Stop::Release) {
            self.store.clear();
        }
        code
    }
}

impl Server {
    /// The same, whose turn it is from now on.
    fn begin(self) -> Self {
        let now = Instant::now();
        Self { started: now, heard: now, ..self }
    }

    /// When it has been silent for too long.
    fn silent_at(&self) -> Instant {
        let checking = !self.prepared && self.is_candidate;
        self.heard
            + if checking {
                CHECK
            } else if self.serving {
                SILENCE
            } else {
                START
            }
    }
}

/// Starts a server; one that is a candidate checks itself first.
fn start(
    program: &Path,
    arguments: &[std::ffi::OsString],
    is_candidate: bool,
) -> anyhow::Result<Server> {
    let (socket, theirs) = wire::pair().context("socketpair")?;
    if is_candidate {
        wire::send(socket.as_fd(), wire::CHECK, None).context("sendmsg")?;
    }
    let child = Command::new(program)
        // What it is called in lists of processes.
        .arg0("ambit")
        .args(arguments)
        .arg("--kept")
        .stdin(Stdio::from(theirs))
        .spawn()
        .with_context(|| format!("cannot start {}", program.display()))?;
    let pidfd = pidfd_open(rustix::process::Pid::from_child(&child), PidfdFlags::empty())
        .context("pidfd_open (Linux 5.3)")?;
    let now = Instant::now();
    Ok(Server {
        child,
        pidfd,
        socket,
        started: now,
        heard: now,
        is_candidate,
        prepared: false,
        serving: false,
        is_mute: false,
        failure: None,
    })
}

/// Did it end by itself, and not by what somebody else sent to it?
fn has_crashed(status: ExitStatus) -> bool {
    let from_outside = [Signal::SIGKILL, Signal::SIGTERM, Signal::SIGINT].map(|one| one as i32);
    status.signal().map_or(!status.success(), |signal| !from_outside.contains(&signal))
}

fn code(status: Option<ExitStatus>) -> ExitCode {
    let code = status.and_then(|status| status.code()).unwrap_or(1);
    ExitCode::from(u8::try_from(code).unwrap_or(1))
}
