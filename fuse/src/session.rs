//! The overlay as a whole: mounted, served, handed over, removed.
//!
//! A connection lives as long as somebody holds its device. Whoever keeps a duplicate of
//! [`Overlay::device`] with the bytes of [`Overlay::init_record`] can have a successor take over
//! ([`Overlay::takeover`]) when this process is gone, without a container noticing more than a
//! pause. Dropping an [`Overlay`] therefore neither unmounts nor stops it; [`Overlay::unmount`]
//! does both.

use std::fmt;
use std::io;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::thread::{self, JoinHandle};
use std::time::{Duration, Instant};

use ambit_sysinfo::Views;
use fuser::{Config, SessionACL};
use rustix::net::Shutdown;

use crate::adopt::{self, InitRequest};
use crate::counters::{Counters, Counts};
use crate::error::Error;
use crate::filesystem::OverlayFilesystem;
use crate::mount::{self, AbortSwitch};

/// How long the threads may take to see that the connection has ended.
const END_WITHIN: Duration = Duration::from_secs(5);

/// Where and how the overlay is served.
#[derive(Debug, Clone)]
pub struct MountOptions {
    /// The mount point; made when missing.
    pub path: PathBuf,
    /// Threads that answer requests. More than containers can keep busy at once only wake each
    /// other up.
    pub threads: usize,
}

impl MountOptions {
    /// The default: two threads.
    #[must_use]
    pub fn new(path: impl Into<PathBuf>) -> Self {
        Self { path: path.into(), threads: 2 }
    }
}

/// A connection that is being served.
pub struct Overlay {
    path: PathBuf,
    device: OwnedFd,
    init: InitRequest,
    connection: Option<u32>,
    counters: Arc<Counters>,
    thread: JoinHandle<io::Result<()>>,
}

/// What the device has seen so far.
#[derive(Clone, Copy)]
enum Stage {
    /// The kernel waits for the answer to INIT.
    Begun,
    /// A predecessor answered INIT, and perhaps left requests without an answer.
    Live,
}

impl Overlay {
    /// Mounts the overlay and serves it. It answers when this returns.
    ///
    /// # Errors
    /// The mount point is in use, or a step failed; nothing stays mounted then.
    pub fn mount(options: MountOptions, views: Arc<dyn Views>) -> Result<Self, Error> {
        let MountOptions { path, threads } = options;
        let path = mount::prepare(&path)?;
        let device = mount::attach(&path)?;
        let served = Self::serve(device, MountOptions { path: path.clone(), threads }, views);
        served.inspect_err(|_| {
            // The first failure is the one to report.
            let _ = mount::detach(&path);
        })
    }

    /// Serves a device that was mounted elsewhere and whose INIT was not read yet; in tests, one
    /// end of a socket pair.
    ///
    /// # Errors
    /// INIT cannot be read or answered, or threads cannot be started.
    pub fn serve(
        device: OwnedFd,
        options: MountOptions,
        views: Arc<dyn Views>,
    ) -> Result<Self, Error> {
        let init = InitRequest::receive(device.as_fd())?;
        Self::start(device, init, Stage::Begun, options, views)
    }

    /// Takes over a device that a predecessor served, and has the kernel send again what was
    /// left without an answer.
    ///
    /// # Errors
    /// The record is no INIT request, or a step failed; the device can be tried again.
    pub fn takeover(
        device: OwnedFd,
        init_record: &[u8],
        options: MountOptions,
        views: Arc<dyn Views>,
    ) -> Result<Self, Error> {
        let init = InitRequest::from_record(init_record)?;
        Self::start(device, init, Stage::Live, options, views)
    }

    fn start(
        device: OwnedFd,
        init: InitRequest,
        stage: Stage,
        options: MountOptions,
        views: Arc<dyn Views>,
    ) -> Result<Self, Error> {
        let filesystem = OverlayFilesystem::new(views);
        let counters = filesystem.counters();
        let mut config = Config::default();
        config.acl = SessionACL::All;
        config.n_threads = Some(options.threads.max(1));
        let (session, reply) = adopt::adopt(filesystem, device.as_fd(), &init, config)?;
        match stage {
            Stage::Begun => reply.forward(device.as_fd())?,
            Stage::Live => {
                // Before Linux 6.9 what was in flight is lost; new requests are served.
                if let Err(error) = adopt::resend(device.as_fd()) {
                    tracing::warn!(%error, "requests the predecessor left unanswered are not sent again");
                }
            }
        }
        let thread = thread::Builder::new()
            .name("ambit-fuse".into())
            .spawn(move || session.run())
            .map_err(|source| Error::Session { call: "start of a thread", source })?;
        let connection = mount::connection(&options.path);
        Ok(Self { path: options.path, device, init, connection, counters, thread })
    }

    /// Where it is mounted.
    #[must_use]
    pub fn path(&self) -> &Path {
        &self.path
    }

    /// The device, a duplicate of which keeps the connection alive without this process.
    #[must_use]
    pub fn device(&self) -> BorrowedFd<'_> {
        self.device.as_fd()
    }

    /// The kernel's INIT request, to be kept beside the device for a successor.
    #[must_use]
    pub fn init_record(&self) -> &[u8] {
        self.init.record()
    }

    /// What it did so far.
    #[must_use]
    pub fn counters(&self) -> Counts {
        self.counters.counts()
    }

    /// Has serving ended by itself? It does when somebody unmounted the overlay everywhere.
    #[must_use]
    pub fn is_finished(&self) -> bool {
        self.thread.is_finished()
    }

    /// Removes the mount, ends the connection wherever it is bound, and waits for the threads.
    ///
    /// # Errors
    /// The kernel refuses to unmount, or the connection cannot be ended.
    pub fn unmount(self) -> Result<(), Error> {
        let still = |reason| Error::StillServing { path: self.path.clone(), reason };
        match self.connection {
            Some(number) => {
                // Binds in containers keep the connection alive after the mount is gone.
                let switch = AbortSwitch::of(number);
                // Somebody may have unmounted it, or mounted something else there.
                if mount::connection(&self.path) == Some(number) {
                    mount::detach(&self.path)?;
                }
                if let Err(error) = switch.and_then(|switch| switch.throw()) {
                    tracing::debug!(%error, "cannot abort the FUSE connection");
                }
            }
            // No mount of this namespace: a socket, or mounted elsewhere.
            None => {
                if let Err(error) = rustix::net::shutdown(&self.device, Shutdown::Both) {
                    tracing::debug!(%error, "the device is no socket");
                }
            }
        }
        let patience = Instant::now() + END_WITHIN;
        while !self.thread.is_finished() {
            if Instant::now() > patience {
                return Err(still("it is bound elsewhere and cannot be aborted"));
            }
            thread::sleep(Duration::from_millis(1));
        }
        // A session that ends reports how; it ends because we ended it.
        self.thread.join().map(drop).map_err(|_| still("its thread panicked"))
    }
}

impl fmt::Debug for Overlay {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Overlay")
            .field("path", &self.path)
            .field("connection", &self.connection)
            .field("counters", &self.counters())
            .finish_non_exhaustive()
    }
}
