//! The listener threads: each receives a notification, has it decided, and answers it itself.
//!
//! Passing it to another thread would cost more than the answer (17 against 8 us a round trip) and
//! defeat SYNC_WAKE_UP. So a handler that runs here must never block; a thread that blocks
//! nevertheless is replaced by the watchdog. Calls that need a privileged operation are queued for
//! other threads (`operation_queue.rs`). Start reading at `Threads::ready`.

use std::collections::BTreeSet;
use std::os::fd::{AsFd, BorrowedFd};
use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::{Arc, Mutex, OnceLock, PoisonError};
use std::thread::JoinHandle;
use std::time::Duration;

use ambit_kernel::watchdog::Watchdog;
use libseccomp_sys::{seccomp_notif, seccomp_notif_resp};
use rustix::event::{PollFd, PollFlags, Timespec};
use rustix::io::Errno;

use super::Error;
use super::account::Account;
use super::bucket;
use super::epoll::{Next, Ready, Watch};
use super::journal::{Entry, Journal, Phase};
use super::listener::{Listener, response};
use super::lxc;
use super::lxc_users::UserConnections;
use super::pipeline::Pipeline;
use super::policies::Member;
use super::policy::Policy;
use super::transport::{Received, Transport};
use super::trapped::Trapped;
use crate::pending::Pending;
use crate::verdict::Verdict;

/// How many calls of one container are answered before those of the next one, if one of its threads
/// calls; and if several call, which together call faster than one can.
const TURN: u32 = 16;
const TURN_OF_SEVERAL: u32 = TURN / 4;

/// The longest turn, in nanoseconds: a thread that handles one event for longer may be replaced
/// ([`HUNG`]).
const LONGEST_TURN: u64 = 10_000_000;

/// A thread that handles one event for so many nanoseconds hangs: it accesses memory of its caller,
/// which may be a mapped file of a filesystem that hangs, such as a FUSE server of the container.
/// Another thread takes its place (`epoll.rs`), and `account.rs` keeps further calls of that
/// container off the listener threads.
const HUNG: u64 = 50_000_000;

/// The interval of the watchdog's checks, and after how many checks without a call it sleeps.
const INTERVAL: Duration = Duration::from_millis(20);
const IDLE_AFTER: u32 = 50;

/// How long a listener thread waits for the next call of the same container.
const SOON: Timespec = Timespec { tv_sec: 0, tv_nsec: 50_000 };

/// What a listener thread does after it has answered a call.
enum AfterCall {
    /// It may receive another call of the same listener. The thread with this id made the last one.
    Stay(u32),
    /// It returns to the event loop.
    Leave(Next),
}

/// A source of calls that a listener thread watches.
#[derive(Debug)]
pub(super) enum Source {
    /// The listener of a container.
    Listener { listener: Arc<Listener>, member: Mutex<Member> },
    /// The connection of one liblxc monitor.
    LxcConnection(Arc<lxc::Connection>),
}

impl AsFd for Source {
    fn as_fd(&self) -> BorrowedFd<'_> {
        match self {
            Self::Listener { listener, .. } => listener.as_fd(),
            Self::LxcConnection(connection) => connection.as_fd(),
        }
    }
}

/// All listener threads.
#[derive(Debug)]
pub(super) struct Threads {
    pub(super) pipeline: Arc<Pipeline>,
    pub(super) journal: Arc<Journal>,
    watches: Vec<Watch<Source>>,
    pub(super) users: UserConnections,
    next: AtomicUsize,
    /// The thread in charge of each of `watches`.
    handles: Mutex<Vec<Option<JoinHandle<()>>>>,
    watchdog: OnceLock<Watchdog>,
}

impl Threads {
    /// Starts one thread per four CPUs: a round trip is mostly two context switches, and the caller
    /// sleeps meanwhile.
    pub(super) fn start(pipeline: Pipeline, journal: Arc<Journal>) -> Result<Arc<Self>, Error> {
        let processors = std::thread::available_parallelism().map_or(1, usize::from);
        let count = (processors / 4).max(1);
        let watches = (0..count).map(|_| Watch::new()).collect::<Result<_, _>>()?;
        let threads = Arc::new(Self {
            pipeline: Arc::new(pipeline),
            journal,
            watches,
            users: UserConnections::new(),
            next: AtomicUsize::new(0),
            handles: Mutex::new((0..count).map(|_| None).collect()),
            watchdog: OnceLock::new(),
        });
        let failed = |source| Error::System { what: "cannot start a listener thread", source };
        let weak = Arc::downgrade(&threads);
        let mut seen = 0;
        let check = move || {
            let (handled, busy) = weak.upgrade()?.replace_hung();
            Some(std::mem::replace(&mut seen, handled) != handled || busy)
        };
        let watchdog = Watchdog::start("watchdog", INTERVAL, IDLE_AFTER, check).map_err(failed)?;
        let _ = threads.watchdog.set(watchdog);
        for index in 0..count {
            if let Err(source) = threads.start_thread(index, threads.watches[index].charge()) {
                threads.stop();
                return Err(failed(source));
            }
        }
        Ok(threads)
    }

    fn start_thread(self: &Arc<Self>, index: usize, charge: u64) -> std::io::Result<()> {
        let own = Arc::clone(self);
        let thread = std::thread::Builder::new().name(format!("notify-{index}"));
        let handle = thread.spawn(move || own.serve(index, charge))?;
        self.handles.lock().unwrap_or_else(PoisonError::into_inner)[index] = Some(handle);
        Ok(())
    }

    /// Replaces threads that hang. Returns how many events were handled, and whether one is being
    /// handled now.
    pub(super) fn replace_hung(self: &Arc<Self>) -> (u64, bool) {
        let (mut handled, mut busy) = (0, false);
        for (index, watch) in self.watches.iter().enumerate() {
            if let Some(charge) = watch.replace_if_hung(HUNG) {
                tracing::warn!("a call hangs on a listener thread: another thread goes on");
                if let Err(error) = self.start_thread(index, charge) {
                    tracing::error!("no thread can take the place of one that hangs: {error}");
                }
            }
            let (its_handled, its_busy) = watch.activity();
            handled += its_handled;
            busy |= its_busy;
        }
        (handled, busy)
    }

    /// Adds a source to one of the threads.
    pub(super) fn add(&self, source: Source) -> Result<(), Error> {
        let index = self.next.fetch_add(1, Ordering::Relaxed) % self.watches.len();
        self.watches[index].add(source)
    }

    /// Takes over the listener of a predecessor: finishes the calls that the predecessor had
    /// received, then watches the listener.
    pub(super) fn take_over(&self, listener: Listener, mut member: Member) -> Result<(), Error> {
        let listener = Arc::new(listener);
        let account = Arc::clone(member.account(&self.pipeline.accounts));
        // The predecessor has named the container in the log.
        account.announce();
        let policy = member.policy(&self.pipeline.policies).clone();
        for (left, entry) in self.journal.take_left(listener.number()) {
            let (seccomp_notif { id, pid, data, .. }, phase) = (left.notification, left.phase);
            let transport = Notification { listener: Arc::clone(&listener), id };
            if let Phase::Done(answer) = phase {
                transport.answer_again(&answer);
                continue;
            }
            let call = Trapped::look_up(
                &self.pipeline.dispatch,
                pid,
                data,
                Arc::clone(&account),
                policy.clone(),
            );
            let received = Received { transport, call, entry, phase };
            received.serve(bucket::now(), self.count(), &self.pipeline);
        }
        self.add(Source::Listener { listener, member: Mutex::new(member) })
    }

    /// Returns the names of all containers with a listener or a connection.
    pub(super) fn containers(&self) -> BTreeSet<String> {
        let mut containers = BTreeSet::new();
        for watch in &self.watches {
            watch.for_each(|source| {
                containers.insert(match source {
                    Source::Listener { member, .. } => {
                        let member = member.lock().unwrap_or_else(PoisonError::into_inner);
                        member.container.id.clone()
                    }
                    Source::LxcConnection(connection) => connection.container(),
                });
            });
        }
        containers
    }

    /// Ends each thread after the call that it is answering, and closes the listeners. Does not
    /// wait for a thread that hangs.
    pub(super) fn stop(&self) {
        self.watches.iter().for_each(Watch::stop);
        for index in 0..self.watches.len() {
            loop {
                let mut handles = self.handles.lock().unwrap_or_else(PoisonError::into_inner);
                // The watchdog may replace the thread meanwhile.
                match handles[index].take_if(|handle| handle.is_finished()) {
                    Some(_) => break,
                    None if handles[index].is_none() => break,
                    None => {}
                }
                drop(handles);
                std::thread::sleep(Duration::from_micros(200));
            }
        }
        if let Some(watchdog) = self.watchdog.get() {
            watchdog.stop();
        }
    }

    fn serve(self: &Arc<Self>, index: usize, charge: u64) {
        self.watches[index].run(charge, |source, ready| self.ready(source, ready));
    }

    /// Returns the number of listener threads.
    pub(super) fn count(&self) -> usize {
        self.watches.len()
    }

    fn ready(self: &Arc<Self>, source: &Source, ready: Ready) -> Next {
        if let Some(watchdog) = self.watchdog.get() {
            watchdog.wake();
        }
        match source {
            // All tasks under the filter have ended, so no call can come any more.
            Source::Listener { listener, .. } if ready.hung_up => {
                listener.forget();
                Next::Drop
            }
            Source::Listener { listener, member } => self.serve_listener(listener, member, ready),
            Source::LxcConnection(connection) if ready.readable => {
                let threads = Arc::clone(self);
                let back = move |connection| threads.watch(connection);
                connection.serve(&self.pipeline, &self.journal, self.count(), Box::new(back))
            }
            Source::LxcConnection(connection) => {
                connection.forget();
                Next::Drop
            }
        }
    }

    /// Adds a connection of liblxc to one of the threads.
    pub(super) fn watch(&self, connection: Arc<lxc::Connection>) {
        if let Err(error) = self.add(Source::LxcConnection(connection)) {
            tracing::error!("a connection of liblxc is lost: {error}");
        }
    }

    /// Answers a call of a container. If it makes one call after the other, and other containers
    /// call too, answers up to [`TURN`] calls of it. Otherwise this thread would alternate between
    /// the containers without ever sleeping, and each caller would wait for the CPU of this thread.
    fn serve_listener(
        &self,
        listener: &Arc<Listener>,
        member: &Mutex<Member>,
        ready: Ready,
    ) -> Next {
        let (mut now, mut first, mut turn) = (ready.at, None, TURN);
        for call in 1.. {
            let mut locked = member.lock().unwrap_or_else(PoisonError::into_inner);
            let account = Arc::clone(locked.account(&self.pipeline.accounts));
            let policy = locked.policy(&self.pipeline.policies).clone();
            drop(locked);
            let often = account.calls_in_succession(now);
            match self.answer(listener, account, policy, now) {
                AfterCall::Leave(next) => return next,
                AfterCall::Stay(tid) if *first.get_or_insert(tid) != tid => turn = TURN_OF_SEVERAL,
                AfterCall::Stay(_) => {}
            }
            if !ready.crowded || !often || call >= turn {
                break;
            }
            let mut comes = [PollFd::new(&**listener, PollFlags::IN)];
            if rustix::event::poll(&mut comes, Some(&SOON)) != Ok(1)
                || comes[0].revents() != PollFlags::IN
            {
                break;
            }
            now = bucket::now();
            if now - ready.at > LONGEST_TURN {
                break;
            }
        }
        Next::Watch
    }

    /// Receives exactly one notification and answers it. Only one, because an event promises one,
    /// and a second RECV would block if there is none.
    fn answer(
        &self,
        listener: &Arc<Listener>,
        account: Arc<Account>,
        policy: Policy,
        now: u64,
    ) -> AfterCall {
        let mut entry = self.journal.new_entry(&account.payer);
        let notification = match entry.receive(listener) {
            Ok(notification) => notification,
            // ENOENT: the caller died or got a signal between the event and RECV. EINTR: this
            // thread got a signal.
            Err(Errno::NOENT | Errno::INTR) => return AfterCall::Leave(Next::Watch),
            Err(errno) => {
                let container = &account.id;
                tracing::error!(container, "SECCOMP_IOCTL_NOTIF_RECV: {errno}; listener dropped");
                listener.forget();
                return AfterCall::Leave(Next::Drop);
            }
        };
        let wait = account.spend(now, policy.settings().limit.calls);
        let seccomp_notif { id, pid: tid, data, .. } = notification;
        let call = Trapped::look_up(&self.pipeline.dispatch, tid, data, account, policy);
        let transport = Notification { listener: Arc::clone(listener), id };
        let received = Received { transport, call, entry, phase: Phase::Received };
        received.serve(now, self.count(), &self.pipeline);
        wait.map_or(AfterCall::Stay(tid), |nanoseconds| AfterCall::Leave(Next::Pause(nanoseconds)))
    }
}

/// A call that was received from a listener.
struct Notification {
    listener: Arc<Listener>,
    id: u64,
}

impl Transport for Notification {
    fn pending(&self) -> Pending<'_> {
        Pending::Listener(self.listener.as_fd(), self.id)
    }

    fn memory(&self) -> Option<BorrowedFd<'_>> {
        None
    }

    fn answer(&self, verdict: &Verdict, entry: &Entry) -> Result<(), Errno> {
        if !matches!(verdict, Verdict::Install(_)) {
            entry.record_answer(&response(self.id, verdict));
        }
        self.listener.answer(self.id, verdict)
    }

    fn answer_again(&self, answer: &seccomp_notif_resp) -> bool {
        // ENOENT: the predecessor sent it, or the caller does not wait any more.
        self.listener.send(*answer).is_ok()
    }

    fn refuse(&self) -> Result<(), Errno> {
        self.listener.answer(self.id, &Verdict::Continue)
    }

    fn leave_thread(&mut self) -> bool {
        true
    }

    fn release(self, _delivered: bool) {}
}
