//! One FUSE connection: its device, the INIT request that began it, and the threads that serve it.
//!
//! The kernel ends a connection when the last descriptor of its device is closed, in any process.
//! Dropping a [`FuseConnection`] therefore neither unmounts nor stops it;
//! [`FuseConnection::shut_down`] ends it for all its mounts. Start reading at
//! [`FuseConnection::begin`].

use std::io;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::path::Path;
use std::sync::Arc;
use std::thread;
use std::time::{Duration, Instant};

use ambit_kernel::recorder;
use ambit_sysinfo::Views;
use fuser::{Config, Filesystem, SessionACL};
use rustix::net::Shutdown;

use crate::adopt::{self, InitRequest};
use crate::counters::Counters;
use crate::error::Error;
use crate::mount::MountKind;
use crate::mount::{self, AbortSwitch};
use crate::recorder::{Operation, Refuse};
use crate::request_slot::RequestSlot;
use crate::spare::Spare;
use crate::thread_pool::{SessionThread, ThreadKind, ThreadPool};

/// Deadline for the threads to notice that the connection has ended.
const END_WITHIN: Duration = Duration::from_secs(5);

/// The same deadline if some threads are in reads that hang: those end when their file answers.
const END_WITHOUT_HUNG: Duration = Duration::from_secs(1);

/// A filesystem that a thread pool serves. Clones share all state.
pub(crate) trait PooledFilesystem: Filesystem + Clone + Send + 'static {
    fn served(&self) -> Served<'_>;

    /// Returns the filesystem for the session of threads of this kind.
    fn with_thread_kind(self, kind: ThreadKind) -> Self;

    /// Handles one request at once, or in its container's turn ([`Turns`](crate::turns::Turns)).
    fn in_turn<R: Refuse + Send + 'static>(
        &self,
        request: recorder::Request,
        reply: R,
        work: impl FnOnce(&Self, &RequestSlot, R) + Send + 'static,
    ) {
        let Served { pool, views, kind, .. } = self.served();
        let (_busy, is_crowded) = pool.turns.begin(request.thread);
        let owner = || match is_crowded {
            true => views.owner(request.thread),
            // An open file has its text.
            false if request.operation == Operation::Read as u32 => None,
            false => views.newcomer(request.thread),
        };
        let owner = match kind {
            ThreadKind::Regular => catch_unwind(AssertUnwindSafe(owner)).ok().flatten(),
            ThreadKind::LastResort => None,
        };
        let Some(owner) = owner else {
            return self.guard(request, reply, |slot, reply| work(self, slot, reply));
        };
        let own = self.clone();
        let in_turn = move || own.guard(request, reply, |slot, reply| work(&own, slot, reply));
        pool.turns.take(owner, in_turn);
    }

    /// Handles one request in the thread pool. After a panic the pending reply is dropped, so that
    /// fuser answers EIO.
    fn guard<R: Refuse>(
        &self,
        request: recorder::Request,
        reply: R,
        work: impl FnOnce(&RequestSlot, R),
    ) {
        let Served { pool, counters, kind, .. } = self.served();
        pool.handle(kind, request, reply, |slot, reply| {
            if catch_unwind(AssertUnwindSafe(|| work(slot, reply))).is_err() {
                slot.drop_reply();
                Counters::add(&counters.panics);
            }
        });
    }
}

/// By which threads and with whose numbers a filesystem is served, and what counts their panics.
pub(crate) struct Served<'a> {
    pub(crate) pool: &'a Arc<ThreadPool>,
    pub(crate) counters: &'a Counters,
    pub(crate) kind: ThreadKind,
    pub(crate) views: &'a dyn Views,
}

/// A connection that is being served.
#[derive(Debug)]
pub(crate) struct FuseConnection {
    pub(crate) device: Arc<OwnedFd>,
    pub(crate) init: InitRequest,
    pub(crate) spare: Spare,
    thread: SessionThread,
    pool: Arc<ThreadPool>,
}

/// How a connection is mounted and by how many threads it is served.
#[derive(Debug, Clone)]
pub(crate) struct ServeOptions {
    pub(crate) kind: MountKind,
    pub(crate) threads: usize,
    /// How long a request may take before the watchdog answers it.
    pub(crate) patience: Duration,
}

/// State of the connection on a device.
#[derive(Debug, Clone, Copy)]
pub(crate) enum Stage {
    /// The kernel waits for the answer to INIT.
    Begun,
    /// A predecessor answered INIT, and perhaps left requests without an answer.
    Live,
}

impl FuseConnection {
    /// Makes a new connection and serves it. It answers requests when this returns, and is attached
    /// nowhere.
    pub(crate) fn begin<F: PooledFilesystem>(
        serving: &ServeOptions,
        filesystem: F,
    ) -> Result<Self, Error> {
        let device = Arc::new(mount::open_device()?);
        let spare = Spare::begin(Arc::clone(&device), serving.kind.clone())?;
        let init = InitRequest::receive(device.as_fd())?;
        Self::start(device, init, Stage::Begun, spare, serving, filesystem)
    }

    /// Serves a device with an existing connection, which may be mounted at this path.
    pub(crate) fn serve<F: PooledFilesystem>(
        device: OwnedFd,
        init: InitRequest,
        stage: Stage,
        path: Option<&Path>,
        serving: &ServeOptions,
        filesystem: F,
    ) -> Result<Self, Error> {
        let device = Arc::new(device);
        let spare = Spare::take_over(Arc::clone(&device), serving.kind.clone(), path);
        Self::start(device, init, stage, spare, serving, filesystem)
    }

    fn start<F: PooledFilesystem>(
        device: Arc<OwnedFd>,
        init: InitRequest,
        stage: Stage,
        spare: Spare,
        serving: &ServeOptions,
        filesystem: F,
    ) -> Result<Self, Error> {
        let config = config(serving.threads.max(1));
        let (session, reply) = adopt::adopt(filesystem.clone(), device.as_fd(), &init, config)?;
        match stage {
            Stage::Begun => reply.forward(device.as_fd())?,
            // Before Linux 6.9 requests in flight are lost; new ones are served.
            Stage::Live => {
                if init.can_resend()
                    && let Err(error) = adopt::resend(device.as_fd())
                {
                    tracing::warn!(%error, "requests the predecessor left unanswered are not sent again");
                }
            }
        }
        let pool = Arc::clone(filesystem.served().pool);
        let (its_device, its_init) = (Arc::clone(&device), init.clone());
        let start_thread =
            move |kind| start_thread(filesystem.clone(), its_device.as_fd(), &its_init, kind);
        if let Err(error) =
            pool.start_watchdog(serving.threads.max(1), serving.patience, start_thread)
        {
            tracing::warn!(%error, "no watchdog: a thread that hangs gets no substitute");
        }
        let its_pool = Arc::clone(&pool);
        let run = move || {
            let ended = session.run();
            its_pool.close();
            ended
        };
        let thread = thread::Builder::new().name("ambit-fuse".into()).spawn(run);
        let thread = thread.map_err(|source| {
            pool.close();
            no_thread(source)
        })?;
        Ok(Self { device, init, spare, thread, pool })
    }

    /// True if serving has ended, because the connection was aborted.
    pub(crate) fn is_finished(&self) -> bool {
        // A thread that hangs keeps its own session from ending, but not those of substitutes.
        self.thread.is_finished() || self.pool.has_ended()
    }

    /// Waits until no request waits for its turn, for so long at most.
    pub(crate) fn drain(&self, patience: Duration) {
        self.pool.turns.drain(patience);
    }

    /// Returns the number of the connection; `None` if the device is a socket.
    pub(crate) fn number(&self) -> Option<u32> {
        self.spare.number()
    }

    /// Opens the file that aborts the connection when it is written to.
    pub(crate) fn abort_switch(&self) -> Option<OwnedFd> {
        let switch = AbortSwitch::open(self.number()?);
        let switch = switch.inspect_err(|error| {
            tracing::debug!(%error, "the FUSE connection cannot be aborted by the keeper");
        });
        switch.ok().map(OwnedFd::from)
    }

    /// Ends the connection for all mounts and waits for the threads.
    pub(crate) fn shut_down(self) -> Result<(), Error> {
        let still = |reason| Error::StillServing { reason };
        let ended = match self.number() {
            Some(number) => {
                let thrown = AbortSwitch::open(number).and_then(|switch| switch.throw());
                thrown.inspect_err(|error| {
                    tracing::debug!(%error, "cannot abort the FUSE connection");
                })
            }
            None => {
                let shut = rustix::net::shutdown(&self.device, Shutdown::Both);
                shut.map_err(io::Error::from).inspect_err(|error| {
                    tracing::debug!(%error, "cannot shut down the device, which is no socket");
                })
            }
        };
        // Where it cannot be aborted, as in a user namespace, it ends with its last mount.
        drop(self.spare);
        let begun = Instant::now();
        while !(self.thread.is_finished() && self.pool.have_all_ended()) {
            let hung = self.pool.hung();
            if hung > 0 && ended.is_ok() && begun.elapsed() > END_WITHOUT_HUNG {
                self.pool.close();
                tracing::warn!(
                    "{hung} threads are in reads that hang; the server ends without them"
                );
                return Ok(());
            }
            if begun.elapsed() > END_WITHIN {
                return Err(still("it is bound elsewhere and cannot be aborted"));
            }
            thread::sleep(Duration::from_millis(1));
        }
        // The result of the session is an abort by this process and not an error.
        self.thread.join().map(drop).map_err(|_| still("its thread panicked"))
    }
}

fn config(threads: usize) -> Config {
    let mut config = Config::default();
    config.acl = SessionACL::All;
    config.n_threads = Some(threads);
    config
}

/// Starts a substitute on a connection that is being served. Each session answers on the device
/// that it reads from; INIT was answered before.
fn start_thread<F: PooledFilesystem>(
    filesystem: F,
    device: BorrowedFd<'_>,
    init: &InitRequest,
    kind: ThreadKind,
) -> Result<SessionThread, Error> {
    let (session, _) = adopt::adopt(filesystem.with_thread_kind(kind), device, init, config(1))?;
    let thread = thread::Builder::new().name("fuse-substitute".into());
    thread.spawn(move || session.run()).map_err(no_thread)
}

fn no_thread(source: io::Error) -> Error {
    Error::Session { call: "start of a thread", source }
}
