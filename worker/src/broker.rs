//! The process that starts others: single-threaded, with the host's rights. The keeper starts it
//! beside the server; without a keeper it is forked before there are threads.
//!
//! It forks one process for every errand and goes on listening, so one that hangs holds up
//! nobody. It keeps no descriptor but its own end of the connection, ends with the daemon, and
//! lets the mounts that are under way come to their end. If it dies, the keeper starts another one.

use std::os::fd::{AsFd, AsRawFd, BorrowedFd, OwnedFd};
use std::sync::{Arc, Condvar, Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant};

use ambit_kernel::channel::{self, Received};
use ambit_kernel::sys::close_range::close_all_but;
use ambit_kernel::sys::fork::{Fork, fork};
use nix::errno::Errno;
use nix::sys::signal::SigSet;
use nix::sys::wait::{WaitPidFlag, WaitStatus, waitpid};
use rustix::event::{PollFd, PollFlags, Timespec, poll};
use rustix::net::sockopt::{Timeout, set_socket_timeout};
use rustix::net::{RecvFlags, SendFlags};
use serde::{Deserialize, Serialize};

use ambit_kernel::output::complain;
use ambit_kernel::text;

use super::bind::Bind;
use super::caller::{Caller, Facts};
use super::child::leave;
use super::failure::Failure;
use super::find::Find;
use super::line::Line;
use super::mount::{Order, Turns};
use super::{act, mount};

/// The longest request: three strings of a page each, written as numbers.
const LONGEST: usize = 128 << 10;
/// How much longer than its deadline a mount may take to report.
const GRACE: Duration = Duration::from_secs(3);
/// How long a request waits for another broker when the keeper is to start one. The kernel answers
/// the call after that.
const ANOTHER: Duration = Duration::from_secs(2);
/// How long a broker may take to take a request.
const TAKEN: Duration = Duration::from_secs(5);

/// What is to be done, without the descriptors. Those are, in this order: where to report; for
/// a mount, the inotify instance that watches it; of a caller users, mounts, root, folder and other
/// namespaces; control groups.
#[derive(Debug, Serialize, Deserialize)]
enum Errand {
    /// A mount for a caller.
    Mount(Order, Told),
    /// A file that a caller may change, opened.
    Find(Find, Told),
    /// A device node where the filesystem forbids them.
    Bind(Bind, Told),
    /// A lasting worker in the control groups.
    Worker,
}

/// A caller, without its descriptors.
#[derive(Debug, Serialize, Deserialize)]
struct Told {
    facts: Facts,
    others: Vec<i32>,
}

/// The connection to the broker.
#[derive(Debug)]
pub struct Broker {
    connection: Mutex<Option<Arc<OwnedFd>>>,
    replaced: Condvar,
    /// How long another one may take to come after one has died.
    patience: Duration,
}

impl Broker {
    /// Starts it as a child of this process.
    ///
    /// # Errors
    /// This process has threads already, or there is no room for another one.
    pub fn start() -> std::io::Result<Self> {
        let (ours, theirs) = channel::pair()?;
        match fork()? {
            Fork::Parent(_) => Ok(Self::connected(Some(ours), Duration::ZERO)),
            Fork::Child => {
                work(&theirs);
                leave(0)
            }
        }
    }

    /// One that the keeper starts and replaces. `None`: it comes later.
    #[must_use]
    pub fn kept(connection: Option<OwnedFd>) -> Self {
        Self::connected(connection, ANOTHER)
    }

    /// Is the broker that a keeper has started with its connection as standard input.
    ///
    /// # Errors
    /// There is no connection.
    pub fn serve_keeper() -> std::io::Result<()> {
        let socket = rustix::io::fcntl_dupfd_cloexec(rustix::stdio::stdin(), 3)?;
        rustix::stdio::dup2_stdin(std::fs::File::open("/dev/null")?)?;
        // Helpers must not inherit the keeper's mask of signals. Signals of a terminal are for the
        // keeper alone.
        SigSet::empty().thread_set_mask()?;
        let _ = rustix::process::setsid();
        work(&socket);
        Ok(())
    }

    fn connected(connection: Option<OwnedFd>, patience: Duration) -> Self {
        let broker = Self { connection: Mutex::default(), replaced: Condvar::new(), patience };
        if let Some(connection) = connection {
            broker.replace(connection);
        }
        broker
    }

    /// Goes on with another broker.
    pub fn replace(&self, connection: OwnedFd) {
        // It may be stopped.
        let _ = set_socket_timeout(&connection, Timeout::Send, Some(TAKEN));
        *self.lock() = Some(Arc::new(connection));
        self.replaced.notify_all();
    }

    fn lock(&self) -> MutexGuard<'_, Option<Arc<OwnedFd>>> {
        self.connection.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// The connection, or another one than that of a broker that has died.
    fn connection(&self, dead: Option<&Arc<OwnedFd>>, until: Instant) -> Option<Arc<OwnedFd>> {
        let is_none = |now: &mut Option<Arc<OwnedFd>>| match (now, dead) {
            (Some(now), Some(dead)) => Arc::ptr_eq(now, dead),
            (now, _) => now.is_none(),
        };
        let left = until.saturating_duration_since(Instant::now());
        let waited = self.replaced.wait_timeout_while(self.lock(), left, is_none);
        let mut now = waited.unwrap_or_else(PoisonError::into_inner).0;
        if is_none(&mut now) { None } else { now.clone() }
    }

    /// Has something mounted, and waits for it. What the kernel mounts is watched by this inotify
    /// instance: the result is the watch's number. For a helper it is the number of its device.
    ///
    /// # Errors
    /// Nothing was mounted.
    pub fn mount(
        &self,
        order: &Order,
        caller: &Caller,
        watches: BorrowedFd<'_>,
    ) -> Result<Option<u64>, Failure> {
        let until = Instant::now() + order.deadline + GRACE;
        let errand = Errand::Mount(order.clone(), caller.into());
        self.for_caller(&errand, caller, Some(watches))?.receive_number(until)
    }

    /// Has a file opened (`O_PATH`) that the caller may change.
    ///
    /// # Errors
    /// It may not, or there is none.
    pub fn find(&self, find: &Find, caller: &Caller, until: Instant) -> Result<OwnedFd, Failure> {
        let line = self.for_caller(&Errand::Find(find.clone(), caller.into()), caller, None)?;
        let file = line.receive(until)?.pop();
        file.ok_or_else(|| wrong("no file was passed on"))
    }

    /// Has a device node appear below a caller's `/dev`.
    ///
    /// # Errors
    /// It may not, or there was no room.
    pub fn bind(&self, bind: &Bind, caller: &Caller, until: Instant) -> Result<(), Failure> {
        let errand = Errand::Bind(bind.clone(), caller.into());
        self.for_caller(&errand, caller, None)?.receive(until).map(drop)
    }

    /// Starts a worker in these control groups. Its first message has a descriptor of itself.
    pub(super) fn worker(&self, groups: &[OwnedFd]) -> Result<Line, Failure> {
        self.send(&Errand::Worker, groups.iter().map(AsFd::as_fd))
    }

    fn for_caller(
        &self,
        errand: &Errand,
        caller: &Caller,
        first: Option<BorrowedFd<'_>>,
    ) -> Result<Line, Failure> {
        let fixed = [&caller.users, &caller.mounts, &caller.root, &caller.folder];
        let others = caller.others.iter().map(|(_, namespace)| namespace);
        let callers = fixed.into_iter().chain(others).chain(&caller.groups).map(AsFd::as_fd);
        self.send(errand, first.into_iter().chain(callers))
    }

    /// Sends an errand; the answer comes by the line.
    fn send<'a>(
        &self,
        errand: &Errand,
        fds: impl Iterator<Item = BorrowedFd<'a>>,
    ) -> Result<Line, Failure> {
        let (line, theirs) = Line::pair()?;
        let bytes = serde_json::to_vec(errand)
            .map_err(|error| Failure::new(Errno::EINVAL, error.to_string()).on_our_side())?;
        let mut all = vec![theirs.as_fd()];
        for fd in fds {
            all.push(fd);
        }
        if bytes.len() > LONGEST {
            let message = "the request is too long for the broker";
            return Err(Failure::new(Errno::E2BIG, message).on_our_side());
        }
        let (until, mut dead) = (Instant::now() + self.patience, None);
        while let Some(socket) = self.connection(dead.as_ref(), until) {
            match channel::send(&socket, &bytes, &all, SendFlags::empty()) {
                Ok(()) => return Ok(line),
                Err(rustix::io::Errno::PIPE | rustix::io::Errno::CONNRESET) => dead = Some(socket),
                Err(errno) => {
                    return Err(Failure::nobody_acts(format!("sendmsg to the broker: {errno}")));
                }
            }
        }
        Err(Failure::nobody_acts("the broker is gone"))
    }
}

impl From<&Caller> for Told {
    fn from(caller: &Caller) -> Self {
        let others = caller.others.iter().map(|(kind, _)| *kind).collect();
        Self { facts: caller.facts.clone(), others }
    }
}

/// A service manager may have the OOM killer spare the daemon; what acts for containers, in their
/// control groups, is not spared.
fn spare_nobody() {
    const FILE: &str = "/proc/self/oom_score_adj";
    let score = std::fs::read(FILE).ok().and_then(|text| text::numbers::<i32>(&text).next());
    if score.is_some_and(|score| score < 0) {
        let _ = std::fs::write(FILE, "0");
    }
}

/// What the broker does, for as long as the daemon is there.
fn work(socket: &OwnedFd) {
    let _ = rustix::thread::set_name(c"ambit-broker");
    spare_nobody();
    // No other process may wait for what a mount leaves behind, and until one does, the container
    // that it was for cannot end.
    let _ = rustix::process::set_child_subreaper(Some(rustix::process::getpid()));
    let _ = close_all_but(socket.as_raw_fd().unsigned_abs());
    match Turns::new() {
        Ok(turns) => serve(socket, &turns),
        Err(error) => complain(format_args!("ambit: the broker has no memory: {error}")),
    }
}

/// Until the daemon is gone.
fn serve(socket: &OwnedFd, turns: &Turns) {
    let mut bytes = vec![0; LONGEST];
    loop {
        let running = loop {
            match waitpid(None, Some(WaitPidFlag::WNOHANG)) {
                Ok(WaitStatus::StillAlive) => break true,
                Ok(_) => {}
                Err(_) => break false,
            }
        };
        // Whoever ended while nobody asks for anything is waited for a little later.
        let soon = Timespec { tv_sec: 0, tv_nsec: 100_000_000 };
        let patience = running.then_some(&soon);
        match poll(&mut [PollFd::new(socket, PollFlags::IN)], patience) {
            Ok(0) | Err(rustix::io::Errno::INTR) => continue,
            Ok(_) => {}
            Err(_) => return,
        }
        let received = channel::receive(socket, &mut bytes, RecvFlags::empty());
        let Ok(Received { length: length @ 1.., mut fds, .. }) = received else { return };
        if fds.is_empty() {
            continue;
        }
        match fork() {
            Ok(Fork::Child) => {
                let line = Line::from(fds.remove(0));
                run(&bytes[..length], fds, line, turns);
                leave(0)
            }
            // Without a process its line is closed, and the daemon says so.
            Ok(Fork::Parent(_)) | Err(_) => {}
        }
    }
}

/// Does an errand, in a process of its own.
fn run(request: &[u8], mut fds: Vec<OwnedFd>, line: Line, turns: &Turns) {
    let errand = match serde_json::from_slice(request) {
        Ok(errand) => errand,
        Err(error) => return line.report(Err(wrong(&error.to_string()))),
    };
    let done = match errand {
        Errand::Worker => return act::serve(line, fds),
        Errand::Mount(order, told) => {
            if fds.is_empty() {
                return line.report(Err(wrong("a descriptor is missing")));
            }
            let watches = fds.remove(0);
            let mounted = caller(told, fds)
                .and_then(|caller| mount::run(&order, &caller, watches.as_fd(), turns));
            return line.report_number(mounted);
        }
        Errand::Bind(bind, told) => caller(told, fds)
            .and_then(|caller| super::bind::bind(&bind, &caller))
            .map(|()| Vec::new()),
        Errand::Find(find, told) => caller(told, fds)
            .and_then(|caller| super::find::find(&find, &caller))
            .map(|file| vec![file]),
    };
    line.report(done);
}

fn caller(told: Told, fds: Vec<OwnedFd>) -> Result<Caller, Failure> {
    let mut fds = fds.into_iter();
    let mut next = || fds.next().ok_or_else(|| wrong("a descriptor is missing"));
    let (users, mounts, root, folder) = (next()?, next()?, next()?, next()?);
    let others: Result<Vec<_>, Failure> =
        told.others.iter().map(|&kind| Ok((kind, next()?))).collect();
    let others = others?;
    let groups = fds.collect();
    Ok(Caller { users, mounts, others, root, folder, groups, facts: told.facts })
}

fn wrong(what: &str) -> Failure {
    Failure::new(Errno::EPROTO, format!("a wrong request: {what}")).on_our_side()
}

#[cfg(test)]
mod tests {
    use super::*;

    fn ask(broker: &Broker) -> Result<Line, Failure> {
        broker.send(&Errand::Worker, std::iter::empty())
    }

    #[test]
    fn a_request_waits_for_the_broker_after_one_that_died() {
        let (ours, theirs) = channel::pair().unwrap();
        drop(theirs);
        let broker = Broker::kept(Some(ours));
        std::thread::scope(|scope| {
            let asking = scope.spawn(|| ask(&broker));
            let (ours, theirs) = channel::pair().unwrap();
            broker.replace(ours);
            assert!(asking.join().unwrap().is_ok());
            let flags = RecvFlags::empty();
            let received = channel::receive(&theirs, &mut vec![0; LONGEST], flags).unwrap();
            assert_eq!((received.length > 0, received.fds.len()), (true, 1));
        });
    }

    #[test]
    fn without_a_keeper_the_kernel_answers_at_once() {
        let (ours, theirs) = channel::pair().unwrap();
        drop(theirs);
        let failure = ask(&Broker::connected(Some(ours), Duration::ZERO)).unwrap_err();
        assert!(failure.untried, "{failure}");
    }
}
