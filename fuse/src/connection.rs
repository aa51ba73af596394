//! One FUSE connection: its device, the INIT request that began it, and the threads that serve it.
//!
//! A connection lives as long as somebody holds its device. Dropping a [`Connection`] therefore
//! neither unmounts nor stops it; [`Connection::unmount`] does both.

use std::io;
use std::os::fd::{AsFd, OwnedFd};
use std::path::{Path, PathBuf};
use std::thread::{self, JoinHandle};
use std::time::{Duration, Instant};

use fuser::{Config, Filesystem, SessionACL};
use rustix::net::Shutdown;

use crate::adopt::{self, InitRequest};
use crate::error::Error;
use crate::mount::{self, AbortSwitch, Writes};

/// How long the threads may take to see that the connection has ended.
const END_WITHIN: Duration = Duration::from_secs(5);

/// A connection that is being served.
#[derive(Debug)]
pub(crate) struct Connection {
    pub(crate) path: PathBuf,
    pub(crate) device: OwnedFd,
    pub(crate) init: InitRequest,
    name: &'static str,
    number: Option<u32>,
    thread: JoinHandle<io::Result<()>>,
}

/// Where a connection is mounted and by how many threads it is served.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Place<'a> {
    pub(crate) path: &'a Path,
    pub(crate) name: &'static str,
    pub(crate) threads: usize,
}

/// What the device has seen so far.
#[derive(Debug, Clone, Copy)]
pub(crate) enum Stage {
    /// The kernel waits for the answer to INIT.
    Begun,
    /// A predecessor answered INIT, and perhaps left requests without an answer.
    Live,
}

impl Connection {
    /// Mounts a new connection and serves it. It answers when this returns; when it fails,
    /// nothing stays mounted.
    pub(crate) fn mount<F: Filesystem + Send + 'static>(
        place: Place<'_>,
        writes: Writes,
        filesystem: F,
    ) -> Result<Self, Error> {
        let path = mount::prepare(place.path)?;
        let place = Place { path: &path, ..place };
        let device = mount::attach(&path, place.name, writes)?;
        let begun = InitRequest::receive(device.as_fd());
        let served =
            begun.and_then(|init| Self::start(device, init, Stage::Begun, place, filesystem));
        served.inspect_err(|_| {
            // The first failure is the one to report.
            let _ = mount::detach(&path);
        })
    }

    /// Serves a device.
    pub(crate) fn start<F: Filesystem + Send + 'static>(
        device: OwnedFd,
        init: InitRequest,
        stage: Stage,
        place: Place<'_>,
        filesystem: F,
    ) -> Result<Self, Error> {
        let mut config = Config::default();
        config.acl = SessionACL::All;
        config.n_threads = Some(place.threads.max(1));
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
        let number = mount::connection(place.path, place.name);
        Ok(Self { path: place.path.into(), device, init, name: place.name, number, thread })
    }

    /// Has serving ended by itself?
    pub(crate) fn is_finished(&self) -> bool {
        self.thread.is_finished()
    }

    /// Its number, where it is mounted in this namespace.
    pub(crate) fn number(&self) -> Option<u32> {
        self.number
    }

    /// Removes the mount, ends the connection wherever it is bound, and waits for the threads.
    pub(crate) fn unmount(self) -> Result<(), Error> {
        let still = |reason| Error::StillServing { path: self.path.clone(), reason };
        match self.number {
            Some(number) => {
                // Binds in containers keep the connection alive after the mount is gone.
                let switch = AbortSwitch::of(number);
                // Somebody may have unmounted it, or mounted something else there.
                if mount::connection(&self.path, self.name) == Some(number) {
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
