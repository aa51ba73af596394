//! The overlay as a whole: mounted, served, handed over, removed.
//!
//! A connection lives as long as somebody holds its device. Whoever keeps a duplicate of
//! [`Overlay::device`] with the bytes of [`Overlay::init_record`] can have a successor take over
//! ([`Overlay::takeover`]) when this process is gone, without a container noticing more than a
//! pause. Dropping an [`Overlay`] therefore neither unmounts nor stops it; [`Overlay::unmount`]
//! does both.

use std::fmt;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::Duration;

use ambit_sysinfo::Views;
use rustix::fs::{Mode, OFlags};

use crate::adopt::InitRequest;
use crate::connection::{Connection, Place, Stage};
use crate::counters::{Counters, Counts};
use crate::error::Error;
use crate::filesystem::OverlayFilesystem;
use crate::mount::{self, Writes};
use crate::pressure::{self, PressureFilesystem};
use crate::witness::Witness;

/// Where and how the overlay is served.
#[derive(Debug, Clone)]
pub struct MountOptions {
    /// The mount point; made when missing.
    pub path: PathBuf,
    /// Threads that answer requests. More than containers can keep busy at once only wake each
    /// other up.
    pub threads: usize,
    /// How long a reader waits for a file of the kernel that does not answer. Longer than accounting
    /// has others wait for it: these are shown the last good numbers then.
    pub patience: Duration,
    /// The source of the mount, and what follows `fuse.` in its type.
    pub name: &'static str,
    /// Files that everybody sees as the machine has them, named by their paths below the root.
    pub passed: &'static [&'static str],
    /// Who notes what each thread is at.
    pub witness: Option<Arc<dyn Witness>>,
    /// Can triggers be set on `/proc/pressure`? They are a mount of its own upon the overlay, and where
    /// that is in a container's view the overlay can be bound by its parts only.
    pub triggers: bool,
}

impl MountOptions {
    /// The default: two threads.
    #[must_use]
    pub fn new(path: impl Into<PathBuf>) -> Self {
        Self {
            path: path.into(),
            threads: 2,
            patience: Duration::from_secs(8),
            name: mount::NAME,
            passed: &[],
            witness: None,
            triggers: true,
        }
    }
}

/// An overlay that is being served.
pub struct Overlay {
    connection: Connection,
    /// The files of `/proc/pressure` once more, with triggers.
    pressure: Option<Connection>,
    name: &'static str,
    patience: Duration,
    views: Arc<dyn Views>,
    witness: Option<Arc<dyn Witness>>,
    counters: Arc<Counters>,
}

impl Overlay {
    /// Mounts the overlay and serves it. It answers when this returns.
    ///
    /// # Errors
    /// The mount point is in use, or a step failed; nothing stays mounted then.
    pub fn mount(options: MountOptions, views: Arc<dyn Views>) -> Result<Self, Error> {
        let MountOptions { path, threads, patience, name, passed, witness, triggers } = options;
        let filesystem = OverlayFilesystem::watched_by(witness.clone(), views.clone(), passed);
        let counters = filesystem.counters();
        let place = Place { path: &path, name, threads, patience };
        let connection = Connection::mount(place, Writes::Refused, filesystem)?;
        let pressure = None;
        let mut overlay = Self { connection, pressure, name, patience, views, witness, counters };
        if triggers {
            overlay.mount_pressure();
        }
        overlay.look_up_all();
        Ok(overlay)
    }

    /// Looks every name up that is bound into containers, before anybody else can.
    ///
    /// Since Linux 6.16 a name that two look up for the first time at the same moment can be
    /// thrown away under the one who found it: it is in the cache of names before it is marked as
    /// valid (`fuse_lookup`, `d_time`). Whoever then binds it is told ENOENT (`move_mount`,
    /// `mount`), and engines start containers at the same moment. A name that is known is safe.
    fn look_up_all(&self) {
        for point in crate::bind_points() {
            let path = self.connection.path.join(point);
            // Not known is all that may happen: whoever binds it looks it up then.
            let _ = rustix::fs::open(path, OFlags::PATH | OFlags::CLOEXEC, Mode::empty());
        }
    }

    /// Mounts the files on which pressure triggers can be set over those of the overlay on which
    /// they cannot. Without them, all but triggers is as before.
    pub fn mount_pressure(&mut self) {
        let path = self.connection.path.join(pressure::DIRECTORY);
        let place = Place { path: &path, name: self.name, threads: 1, patience: self.patience };
        let filesystem = PressureFilesystem::watched_by(self.witness.clone(), self.views.clone());
        match Connection::mount(place, Writes::Allowed, filesystem) {
            Ok(connection) => self.pressure = Some(connection),
            Err(error) => tracing::warn!(%error, "no triggers can be set on /proc/pressure"),
        }
    }

    /// Takes over the files with triggers from a predecessor, as [`Self::takeover`] does with the
    /// overlay.
    ///
    /// # Errors
    /// As [`Self::takeover`].
    pub fn takeover_pressure(&mut self, device: OwnedFd, init_record: &[u8]) -> Result<(), Error> {
        let init = InitRequest::from_record(init_record)?;
        let path = self.connection.path.join(pressure::DIRECTORY);
        let place = Place { path: &path, name: self.name, threads: 1, patience: self.patience };
        let filesystem = PressureFilesystem::watched_by(self.witness.clone(), self.views.clone());
        let connection = Connection::start(device, init, Stage::Live, place, filesystem)?;
        self.pressure = Some(connection);
        Ok(())
    }

    /// Device and INIT record of the files with triggers, to be kept like those of the overlay.
    #[must_use]
    pub fn pressure(&self) -> Option<(BorrowedFd<'_>, &[u8])> {
        let connection = self.pressure.as_ref()?;
        Some((connection.device.as_fd(), connection.init.record()))
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
        let MountOptions { path, threads, patience, name, passed, witness, .. } = options;
        let filesystem = OverlayFilesystem::watched_by(witness.clone(), views.clone(), passed);
        let counters = filesystem.counters();
        let place = Place { path: &path, name, threads, patience };
        let connection = Connection::start(device, init, stage, place, filesystem)?;
        Ok(Self { connection, pressure: None, name, patience, views, witness, counters })
    }

    /// Where it is mounted.
    #[must_use]
    pub fn path(&self) -> &Path {
        &self.connection.path
    }

    /// The device, a duplicate of which keeps the connection alive without this process.
    #[must_use]
    pub fn device(&self) -> BorrowedFd<'_> {
        self.connection.device.as_fd()
    }

    /// The kernel's INIT request, to be kept beside the device for a successor.
    #[must_use]
    pub fn init_record(&self) -> &[u8] {
        self.connection.init.record()
    }

    /// What it did so far.
    #[must_use]
    pub fn counters(&self) -> Counts {
        self.counters.counts()
    }

    /// Has serving ended by itself? It does when somebody unmounted the overlay everywhere.
    #[must_use]
    pub fn is_finished(&self) -> bool {
        self.connection.is_finished()
    }

    /// Removes the mount, ends the connection wherever it is bound, and waits for the threads.
    ///
    /// # Errors
    /// The kernel refuses to unmount, or the connection cannot be ended.
    pub fn unmount(self) -> Result<(), Error> {
        // It lies upon the other.
        let pressure = self.pressure.map_or(Ok(()), Connection::unmount);
        self.connection.unmount().and(pressure)
    }
}

impl fmt::Debug for Overlay {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Overlay")
            .field("path", &self.connection.path)
            .field("connection", &self.connection.number())
            .field("pressure", &self.pressure.as_ref().map(Connection::number))
            .field("counters", &self.counters())
            .finish_non_exhaustive()
    }
}
