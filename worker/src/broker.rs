//! The broker: a single-threaded process with the host's rights that forks all processes which work
//! for containers. The keeper starts it beside the server. Without a keeper the daemon forks it
//! before it has threads.
//!
//! The broker forks one process for each request and then listens again, so a request that hangs
//! does not delay others. It must never hold a descriptor besides its end of the connection and the
//! source locks, nor do the work itself. It ends with the daemon; mounts that are being made are
//! completed. If the broker dies, the keeper starts another one.
//!
//! Start reading at [`Broker::mount`] for the daemon's side and at [`serve`] for the broker's.

use std::cell::Cell;
use std::os::fd::{AsFd, AsRawFd, BorrowedFd, OwnedFd};
use std::sync::{Arc, Condvar, Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant};

use ambit_kernel::channel::{self, Received};
use ambit_kernel::sys::close_range::close_all_but;
use ambit_kernel::sys::command_line;
use ambit_kernel::sys::fork::{Fork, fork};
use nix::sys::signal::SigSet;
use nix::sys::wait::{WaitPidFlag, WaitStatus, waitpid};
use rustix::event::{PollFd, PollFlags, Timespec, poll};
use rustix::io::Errno;
use rustix::net::sockopt::{Timeout, set_socket_timeout};
use rustix::net::{RecvFlags, SendFlags};
use serde::{Deserialize, Serialize};

use ambit_kernel::output::complain;
use ambit_kernel::text;

use super::attach::{self, AttachOrder, Report};
use super::bind_device::Bind;
use super::caller::{Facts, WholeCaller};
use super::child::exit;
use super::error::Error;
use super::find::Find;
use super::mount::{Order, SourceLocks};
use super::report_channel::ReportChannel;
use super::{mount, operation};

/// The longest request, in bytes: three strings of a page each, as JSON arrays of numbers.
const LONGEST: usize = 128 << 10;
/// How long the daemon waits for a report after the deadline of a mount.
const REPORT_GRACE: Duration = Duration::from_secs(3);
/// How long a request waits until the keeper has started another broker. After that the call is
/// left to the kernel.
const REPLACEMENT: Duration = Duration::from_secs(2);
/// The send timeout for a request.
const SEND_TIMEOUT: Duration = Duration::from_secs(5);

thread_local! {
    static REQUESTS: Cell<u32> = const { Cell::new(0) };
}

/// A request to the broker. Its descriptors are sent beside it, in this order: the channel for the
/// report; for a mount, the inotify instance that watches it; the caller's user namespace, mount
/// namespace, root, working directory, other namespaces and environment; `cgroup.procs` of control
/// groups.
#[derive(Debug, Serialize, Deserialize)]
enum Request {
    /// Make a mount.
    Mount(Order, CallerInfo),
    /// Make a procfs or sysfs of the caller's namespaces.
    MountOwn(Order, CallerInfo),
    /// Open a file that the caller may write.
    Find(Find, CallerInfo),
    /// Bind-mount a device node where the filesystem does not support them.
    Bind(Bind, CallerInfo),
    /// Start a long-lived worker in the control groups.
    Worker,
    /// Attach the overlay's files in a container, or remove them. The descriptor is the folder of
    /// one of its processes in `/proc`.
    Attach(AttachOrder),
}

/// The part of a [`WholeCaller`] that is not a descriptor.
#[derive(Debug, Serialize, Deserialize)]
struct CallerInfo {
    facts: Facts,
    /// The kinds (`CLONE_NEW*`) of the other namespaces.
    others: Vec<i32>,
    /// True if the caller's environment is among the descriptors.
    has_environment: bool,
}

/// The daemon's connection to the broker.
#[derive(Debug)]
pub struct Broker {
    connection: Mutex<Option<Arc<OwnedFd>>>,
    replaced: Condvar,
    /// How long to wait for another broker after one has died.
    patience: Duration,
}

impl Broker {
    /// Forks the broker as a child of this process.
    pub fn start() -> std::io::Result<Self> {
        let (ours, theirs) = channel::pair()?;
        match fork()? {
            Fork::Parent(_) => Ok(Self::connected(Some(ours), Duration::ZERO)),
            Fork::Child => {
                work(&theirs);
                exit(0)
            }
        }
    }

    /// Returns the connection to a broker that the keeper starts and replaces. With `None` the
    /// first connection comes later, by [`Broker::replace`].
    pub fn kept(connection: Option<OwnedFd>) -> Self {
        Self::connected(connection, REPLACEMENT)
    }

    /// Runs the broker in this process. The keeper has started it with the connection as standard
    /// input.
    pub fn serve_keeper() -> std::io::Result<()> {
        let socket = rustix::io::fcntl_dupfd_cloexec(rustix::stdio::stdin(), 3)?;
        rustix::stdio::dup2_stdin(std::fs::File::open("/dev/null")?)?;
        // Helpers must not inherit the keeper's signal mask. Only the keeper gets the signals of a
        // terminal.
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

    /// Continues with the connection of another broker.
    pub fn replace(&self, connection: OwnedFd) {
        // A broker that is stopped (SIGSTOP) does not receive.
        let _ = set_socket_timeout(&connection, Timeout::Send, Some(SEND_TIMEOUT));
        *self.lock() = Some(Arc::new(connection));
        self.replaced.notify_all();
    }

    /// Returns how many requests this thread has sent to brokers. Each takes processor time of the
    /// broker, which forks a process for it.
    pub fn requests_of_this_thread() -> u32 {
        REQUESTS.get()
    }

    fn lock(&self) -> MutexGuard<'_, Option<Arc<OwnedFd>>> {
        self.connection.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Waits for a connection that is not `dead`, the one of a broker that has died.
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

    /// Makes a mount and waits until it is attached. Adds an inotify watch for the root of a kernel
    /// filesystem to `watches` and returns the watch descriptor. For a helper, returns the device
    /// number of its filesystem.
    pub fn mount(
        &self,
        order: &Order,
        caller: &WholeCaller,
        watches: BorrowedFd<'_>,
    ) -> Result<Option<u64>, Error> {
        let until = Instant::now() + order.deadline + REPORT_GRACE;
        let request = Request::Mount(order.clone(), caller.into());
        self.for_caller(&request, caller, Some(watches))?.receive_number(until)
    }

    /// Makes a procfs or sysfs for the caller and waits until it is attached.
    pub fn mount_own(&self, order: &Order, caller: &WholeCaller) -> Result<(), Error> {
        let until = Instant::now() + order.deadline + REPORT_GRACE;
        let request = Request::MountOwn(order.clone(), caller.into());
        self.for_caller(&request, caller, None)?.receive(until).map(drop)
    }

    /// Opens a file (`O_PATH`) that the caller may write.
    pub fn find(
        &self,
        find: &Find,
        caller: &WholeCaller,
        until: Instant,
    ) -> Result<OwnedFd, Error> {
        let report = self.for_caller(&Request::Find(find.clone(), caller.into()), caller, None)?;
        let file = report.receive(until)?.pop();
        file.ok_or_else(|| malformed("a report without a file"))
    }

    /// Bind-mounts a device node below the caller's `/dev`.
    pub fn bind_device(
        &self,
        bind: &Bind,
        caller: &WholeCaller,
        until: Instant,
    ) -> Result<(), Error> {
        let request = Request::Bind(bind.clone(), caller.into());
        self.for_caller(&request, caller, None)?.receive(until).map(drop)
    }

    /// Attaches the overlay's files in a container, or removes what was attached. `process` is the
    /// folder of one of its processes in `/proc`.
    ///
    /// # Errors
    /// The process has ended or is in no container, or the container does not answer in time.
    pub fn attach(&self, order: &AttachOrder, process: BorrowedFd<'_>) -> Result<Report, Error> {
        let until = Instant::now() + attach::DEADLINE + REPORT_GRACE;
        let report = self.send(&Request::Attach(order.clone()), std::iter::once(process))?;
        report.receive_value(until).map_err(|error| match error.errno {
            // Its alarm has ended the process.
            Errno::IO => Error::new(
                Errno::TIMEDOUT,
                format!("it was not done within {} s", attach::DEADLINE.as_secs()),
            ),
            _ => error,
        })
    }

    /// Starts a worker in these control groups. The worker's first message has its own pidfd.
    pub(super) fn worker(&self, groups: &[OwnedFd]) -> Result<ReportChannel, Error> {
        self.send(&Request::Worker, groups.iter().map(AsFd::as_fd))
    }

    fn for_caller(
        &self,
        request: &Request,
        caller: &WholeCaller,
        first: Option<BorrowedFd<'_>>,
    ) -> Result<ReportChannel, Error> {
        let fixed = [&caller.users, &caller.mounts, &caller.root, &caller.folder];
        let others = caller.others.iter().map(|(_, namespace)| namespace);
        let callers = fixed.into_iter().chain(others).chain(&caller.environment);
        let callers = callers.chain(&caller.groups).map(AsFd::as_fd);
        self.send(request, first.into_iter().chain(callers))
    }

    /// Sends a request, and returns the channel on which the report arrives.
    fn send<'a>(
        &self,
        request: &Request,
        fds: impl Iterator<Item = BorrowedFd<'a>>,
    ) -> Result<ReportChannel, Error> {
        let (report, theirs) = ReportChannel::pair()?;
        let bytes = serde_json::to_vec(request)
            .map_err(|error| Error::new(Errno::INVAL, error.to_string()).mark_untried())?;
        let mut all = vec![theirs.as_fd()];
        for fd in fds {
            all.push(fd);
        }
        if bytes.len() > LONGEST {
            let message = "the request is too long for the broker";
            return Err(Error::new(Errno::TOOBIG, message).mark_untried());
        }
        let (until, mut dead) = (Instant::now() + self.patience, None);
        while let Some(socket) = self.connection(dead.as_ref(), until) {
            match channel::send(&socket, &bytes, &all, SendFlags::empty()) {
                Ok(()) => {
                    REQUESTS.set(REQUESTS.get().wrapping_add(1));
                    return Ok(report);
                }
                Err(Errno::PIPE | Errno::CONNRESET) => dead = Some(socket),
                Err(errno) => {
                    return Err(Error::unavailable(format!("sendmsg to the broker: {errno}")));
                }
            }
        }
        Err(Error::unavailable("the broker has ended"))
    }
}

impl From<&WholeCaller> for CallerInfo {
    fn from(caller: &WholeCaller) -> Self {
        let others = caller.others.iter().map(|(kind, _)| *kind).collect();
        let has_environment = caller.environment.is_some();
        Self { facts: caller.facts.clone(), others, has_environment }
    }
}

/// Raises a negative `oom_score_adj`, which a service manager may have set to protect the daemon,
/// to 0: a process that works in a container's control groups must not be protected.
fn reset_oom_score() {
    const FILE: &str = "/proc/self/oom_score_adj";
    let score = std::fs::read(FILE).ok().and_then(|text| text::numbers::<i32>(&text).next());
    if score.is_some_and(|score| score < 0) {
        let _ = std::fs::write(FILE, "0");
    }
}

/// Runs the broker until the daemon closes the connection.
fn work(socket: &OwnedFd) {
    let _ = rustix::thread::set_name(c"ambit-broker");
    // Containers see the processes that it forks for them.
    let _ = command_line::replace("ambit-broker");
    reset_oom_score();
    // Processes that a failed mount leaves behind must be reaped: a zombie in the container's pid
    // namespace keeps its init from ending.
    let _ = rustix::process::set_child_subreaper(Some(rustix::process::getpid()));
    let _ = close_all_but(socket.as_raw_fd().unsigned_abs());
    match SourceLocks::new() {
        Ok(locks) => serve(socket, &locks),
        Err(error) => complain(format_args!(
            "ambit: the broker cannot make its source locks: memfd_create: {error}"
        )),
    }
}

/// Forks a process for each request until the daemon closes the connection.
fn serve(socket: &OwnedFd, locks: &SourceLocks) {
    let mut bytes = vec![0; LONGEST];
    loop {
        let running = loop {
            match waitpid(None, Some(WaitPidFlag::WNOHANG)) {
                Ok(WaitStatus::StillAlive) => break true,
                Ok(_) => {}
                Err(_) => break false,
            }
        };
        // While children run, the loop wakes every 100 ms to reap them.
        let soon = Timespec { tv_sec: 0, tv_nsec: 100_000_000 };
        let patience = running.then_some(&soon);
        match poll(&mut [PollFd::new(socket, PollFlags::IN)], patience) {
            Ok(0) | Err(Errno::INTR) => continue,
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
                let daemon = ReportChannel::from(fds.remove(0));
                run(&bytes[..length], fds, daemon, locks);
                exit(0)
            }
            // If fork(2) failed, the channel is closed, which the daemon reports as EIO.
            Ok(Fork::Parent(_)) | Err(_) => {}
        }
    }
}

/// Carries out one request in this process, which was forked for it.
fn run(bytes: &[u8], mut fds: Vec<OwnedFd>, daemon: ReportChannel, locks: &SourceLocks) {
    let request = match serde_json::from_slice(bytes) {
        Ok(request) => request,
        Err(error) => return daemon.report(Err(malformed(&error.to_string()))),
    };
    let done = match request {
        Request::Worker => return operation::serve(daemon, fds),
        Request::Mount(order, info) => {
            if fds.is_empty() {
                return daemon.report(Err(malformed("a descriptor is missing")));
            }
            let watches = fds.remove(0);
            let mounted = receive_caller(info, fds)
                .and_then(|caller| mount::run(&order, &caller, watches.as_fd(), locks));
            return daemon.report_number(mounted);
        }
        Request::Attach(order) => {
            let done = match fds.first() {
                Some(process) => attach::run(&order, process.as_fd()),
                None => Err(malformed("a descriptor is missing")),
            };
            return match done.and_then(|report| daemon.done_with(&report)) {
                Ok(()) => {}
                Err(error) => daemon.report(Err(error)),
            };
        }
        Request::MountOwn(order, info) => receive_caller(info, fds)
            .and_then(|caller| mount::run_own(&order, &caller))
            .map(|()| Vec::new()),
        Request::Bind(bind, info) => receive_caller(info, fds)
            .and_then(|caller| super::bind_device::bind_device(&bind, &caller))
            .map(|()| Vec::new()),
        Request::Find(find, info) => receive_caller(info, fds)
            .and_then(|caller| super::find::find(&find, &caller))
            .map(|file| vec![file]),
    };
    daemon.report(done);
}

fn receive_caller(info: CallerInfo, fds: Vec<OwnedFd>) -> Result<WholeCaller, Error> {
    let mut fds = fds.into_iter();
    let mut next = || fds.next().ok_or_else(|| malformed("a descriptor is missing"));
    let (users, mounts, root, folder) = (next()?, next()?, next()?, next()?);
    let others: Result<Vec<_>, Error> =
        info.others.iter().map(|&kind| Ok((kind, next()?))).collect();
    let others = others?;
    let environment = if info.has_environment { Some(next()?) } else { None };
    let groups = fds.collect();
    Ok(WholeCaller { users, mounts, others, root, folder, environment, groups, facts: info.facts })
}

fn malformed(what: &str) -> Error {
    Error::new(Errno::PROTO, format!("a malformed request: {what}")).mark_untried()
}

#[cfg(test)]
mod tests {
    use super::*;

    fn ask(broker: &Broker) -> Result<ReportChannel, Error> {
        broker.send(&Request::Worker, std::iter::empty())
    }

    #[test]
    fn a_request_waits_for_the_next_broker_after_one_has_died() {
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
        let error = ask(&Broker::connected(Some(ours), Duration::ZERO)).unwrap_err();
        assert!(error.untried, "{error}");
    }
}
