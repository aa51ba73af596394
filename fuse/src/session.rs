//! The overlay as a whole: mounted, served, handed over, removed.
//!
//! A connection lives as long as a process has its device open. A process that keeps a duplicate of
//! [`Overlay::device`] with the bytes of [`Overlay::init_record`] lets a successor take over
//! ([`Overlay::takeover`]) when this process has ended; containers notice a pause only. Dropping an
//! [`Overlay`] therefore must neither unmount nor stop it; [`Overlay::unmount`] does both. Start
//! reading at [`Overlay::mount`].

use std::fmt;
use std::io;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::path::Path;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use ambit_kernel::lock;
use ambit_kernel::text::mountinfo::{self, Mounted};
use ambit_sysinfo::Views;

use crate::adopt::InitRequest;
use crate::connection::{FuseConnection, ServeOptions, Stage};
use crate::counters::Counts;
use crate::error::Error;
use crate::filesystem::OverlayFilesystem;
use crate::leases::LeaseFilesystem;
use crate::mount::{self, Writes};
use crate::options::MountOptions;
use crate::pressure::PressureFilesystem;
use crate::submount::Submount;
use crate::visit::Visit;

/// Deadline for the process that looks up all names.
const LOOK_UP_WITHIN: Duration = Duration::from_secs(3);

/// The detached mounts of an overlay.
#[derive(Debug)]
pub struct Detached {
    /// The overlay itself.
    pub overlay: OwnedFd,
    /// The filesystem with triggers, for `proc/pressure` of the overlay.
    pub pressure: Option<OwnedFd>,
}

/// Result of [`Overlay::restore`].
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Restored {
    /// Everything was attached.
    Nothing,
    /// Mounts were missing and are attached again. These connections had been aborted and are new.
    Mounts(Vec<Submount>),
}

type Submounts = [Option<FuseConnection>; Submount::ALL.len()];

/// An overlay that is being served.
pub struct Overlay {
    connection: FuseConnection,
    /// The connections besides, in the order of [`Submount::ALL`].
    submounts: Mutex<Submounts>,
    options: MountOptions,
    views: Arc<dyn Views>,
    filesystem: OverlayFilesystem,
}

impl Overlay {
    /// Mounts the overlay and serves it. It answers requests when this returns.
    ///
    /// # Errors
    /// The mount point is in use, or a step failed; nothing stays mounted then.
    pub fn mount(mut options: MountOptions, views: Arc<dyn Views>) -> Result<Self, Error> {
        if let Some(path) = &mut options.path {
            *path = mount::prepare(path, options.visitor)?;
        }
        let filesystem = filesystem(&options, &views);
        let serving = options.serving(options.threads, Writes::Refused);
        let connection = FuseConnection::begin(&serving, filesystem.clone())?;
        let overlay = Self { connection, submounts: Mutex::default(), options, views, filesystem };
        for submount in Submount::ALL {
            overlay.begin_submount(submount);
        }
        match overlay.options.path.as_deref().map_or(Ok(()), |path| overlay.attach(path)) {
            Ok(()) => Ok(overlay),
            // The first error is reported.
            Err(error) => overlay.unmount().and(Err(error)),
        }
    }

    /// Begins a connection that the options want, which the next [`Self::restore`] attaches. A
    /// failure is logged; the overlay works without it.
    pub fn begin_submount(&self, submount: Submount) {
        if !self.wants(submount) {
            return;
        }
        let serving = self.serving(submount);
        let begun = match submount {
            Submount::Pressure => FuseConnection::begin(&serving, self.pressure_filesystem()),
            Submount::Leases => FuseConnection::begin(&serving, self.lease_filesystem()),
        };
        match begun {
            Ok(connection) => self.submounts()[submount as usize] = Some(connection),
            Err(error) => tracing::warn!(%error, "{}", submount.missing()),
        }
    }

    fn wants(&self, submount: Submount) -> bool {
        match submount {
            Submount::Pressure => self.options.triggers,
            Submount::Leases => !self.options.lease.is_zero() && self.connection.init.can_resend(),
        }
    }

    fn serving(&self, submount: Submount) -> ServeOptions {
        match submount {
            Submount::Pressure => self.options.serving(1, Writes::Allowed),
            Submount::Leases => self.options.serving(self.options.threads, Writes::Refused),
        }
    }

    fn pressure_filesystem(&self) -> PressureFilesystem {
        PressureFilesystem::new(self.options.recorder.clone(), self.views.clone())
    }

    fn lease_filesystem(&self) -> LeaseFilesystem {
        let MountOptions { recorder, lease, .. } = &self.options;
        let counters = self.filesystem.counters();
        LeaseFilesystem::new(recorder.clone(), self.views.clone(), counters, *lease)
    }

    fn submounts(&self) -> MutexGuard<'_, Submounts> {
        lock(&self.submounts)
    }

    /// Attaches the overlay and the mounts on it, and has all names looked up before a container
    /// engine can use them.
    fn attach(&self, path: &Path) -> Result<(), Error> {
        self.connection.spare.attach(|mount| mount::attach(mount, path))?;
        self.attach_submounts(path, &Submount::ALL);
        Ok(())
    }

    /// Has a visitor attach these mounts and look up the names, because both send requests to the
    /// overlay.
    fn attach_submounts(&self, path: &Path, missing: &[Submount]) {
        let visit = |submount: Option<(Submount, BorrowedFd<'_>)>| {
            let failed = |source: rustix::io::Errno| Error::Mount {
                path: path.into(),
                call: "look-up by another process",
                source: source.into(),
            };
            let overlay = mount::open_mount(path).map_err(failed)?;
            let overlay = overlay.as_fd();
            let visit = match submount {
                Some((submount, mount)) => Visit::Attach { overlay, submount, mount },
                None => Visit::Names { overlay },
            };
            (self.options.visitor)(visit, LOOK_UP_WITHIN).map_err(failed)
        };
        let submounts = self.submounts();
        for &submount in missing {
            let Some(connection) = &submounts[submount as usize] else { continue };
            let attached = connection.spare.attach(|mount| visit(Some((submount, mount))));
            if let Err(error) = attached {
                tracing::warn!(%error, "{}", submount.missing());
            }
        }
        if let Err(error) = visit(None) {
            tracing::warn!(%error, "the names of the overlay were not looked up");
        }
    }

    /// Attaches again what was unmounted, in the mount namespace of this process only. The
    /// mounts on the overlay get a new connection if their own was aborted.
    ///
    /// # Errors
    /// mountinfo cannot be read, or the mount point is in use.
    pub fn restore(&self) -> Result<Restored, Error> {
        let Some(path) = self.options.path.as_deref() else { return Ok(Restored::Nothing) };
        let point = |source: io::Error| Error::MountPoint { path: path.into(), source };
        let mounts = mountinfo::own().map_err(point)?;
        let is_attached = |connection: &FuseConnection, at: &Path| {
            let is_here =
                |mount: &Mounted| mount.path == at && Some(mount.minor) == connection.number();
            // Without a connection number its mount cannot be found; it counts as attached.
            connection.number().is_none() || mounts.iter().any(is_here)
        };
        if !is_attached(&self.connection, path) {
            mount::prepare(path, self.options.visitor)?;
            self.attach(path)?;
            return Ok(Restored::Mounts(Vec::new()));
        }
        let (mut anew, mut missing) = (Vec::new(), Vec::new());
        for submount in Submount::ALL {
            let is_aborted = self.is_aborted(submount);
            if is_aborted {
                drop(self.submounts()[submount as usize].take());
                self.begin_submount(submount);
                anew.push(submount);
            }
            let place = path.join(submount.place());
            let is_missing = |connection: &FuseConnection| !is_attached(connection, &place);
            if is_aborted || self.submounts()[submount as usize].as_ref().is_some_and(is_missing) {
                missing.push(submount);
            }
        }
        if missing.is_empty() {
            return Ok(Restored::Nothing);
        }
        self.attach_submounts(path, &missing);
        Ok(Restored::Mounts(anew))
    }

    /// Takes over another connection from a predecessor, as [`Self::takeover`] does for the
    /// overlay's own.
    ///
    /// # Errors
    /// As [`Self::takeover`].
    pub fn takeover_submount(
        &self,
        submount: Submount,
        device: OwnedFd,
        init_record: &[u8],
    ) -> Result<(), Error> {
        let init = InitRequest::from_record(init_record)?;
        let path = self.options.path.as_ref().map(|path| path.join(submount.place()));
        let (serving, stage, path) = (self.serving(submount), Stage::Live, path.as_deref());
        let connection = match submount {
            Submount::Pressure => {
                let filesystem = self.pressure_filesystem();
                FuseConnection::serve(device, init, stage, path, &serving, filesystem)
            }
            Submount::Leases => {
                let filesystem = self.lease_filesystem();
                FuseConnection::serve(device, init, stage, path, &serving, filesystem)
            }
        }?;
        self.submounts()[submount as usize] = Some(connection);
        Ok(())
    }

    /// Returns device and INIT record of another connection, to be kept like those of the
    /// overlay's own.
    #[must_use]
    pub fn submount(&self, submount: Submount) -> Option<(Arc<OwnedFd>, Vec<u8>)> {
        let submounts = self.submounts();
        let connection = submounts[submount as usize].as_ref()?;
        Some((Arc::clone(&connection.device), connection.init.record().to_vec()))
    }

    /// Returns detached mounts of the overlay, if it has no mount point.
    #[must_use]
    pub fn detached(&self) -> Option<Detached> {
        let pressure = self.submounts()[Submount::Pressure as usize]
            .as_ref()
            .and_then(|connection| connection.spare.duplicate());
        Some(Detached { overlay: self.connection.spare.duplicate()?, pressure })
    }

    /// Serves a device whose INIT was not read yet; in tests, one end of a socket pair.
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

    /// Takes over the device of a predecessor, and has the kernel send unanswered requests again.
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
        mut options: MountOptions,
        views: Arc<dyn Views>,
    ) -> Result<Self, Error> {
        // As mountinfo shows it.
        options.path = options.path.map(|path| mount::resolve(&path).unwrap_or(path));
        let filesystem = filesystem(&options, &views);
        let serving = options.serving(options.threads, Writes::Refused);
        let path = options.path.as_deref();
        let of_connection = filesystem.clone();
        let connection = FuseConnection::serve(device, init, stage, path, &serving, of_connection)?;
        Ok(Self { connection, submounts: Mutex::default(), options, views, filesystem })
    }

    /// Returns the mount point.
    #[must_use]
    pub fn path(&self) -> Option<&Path> {
        self.options.path.as_deref()
    }

    /// Returns the device. A duplicate of it keeps the connection alive without this process.
    #[must_use]
    pub fn device(&self) -> BorrowedFd<'_> {
        self.connection.device.as_fd()
    }

    /// Returns the kernel's INIT request, to be kept with the device for a successor.
    #[must_use]
    pub fn init_record(&self) -> &[u8] {
        self.connection.init.record()
    }

    /// Returns the abort switch of another connection, or of the overlay's own: any write to it
    /// aborts the connection. It has no effect when the connection is gone.
    #[must_use]
    pub fn abort_switch(&self, submount: Option<Submount>) -> Option<OwnedFd> {
        match submount {
            None => self.connection.abort_switch(),
            Some(submount) => self.submounts()[submount as usize].as_ref()?.abort_switch(),
        }
    }

    /// Returns the counters of the overlay.
    #[must_use]
    pub fn counters(&self) -> Counts {
        self.filesystem.counters().counts()
    }

    /// Waits until no request waits for its turn, for so long at most on each connection: before
    /// Linux 6.9 a successor does not get requests that this process has received.
    pub fn drain(&self, patience: Duration) {
        self.connection.drain(patience);
        self.submounts().iter().flatten().for_each(|connection| connection.drain(patience));
    }

    /// True if serving has ended, because the connection was aborted.
    #[must_use]
    pub fn is_finished(&self) -> bool {
        self.connection.is_finished()
    }

    /// True if serving of another connection has ended, because it was aborted.
    #[must_use]
    pub fn is_aborted(&self, submount: Submount) -> bool {
        self.submounts()[submount as usize].as_ref().is_some_and(FuseConnection::is_finished)
    }

    /// Removes the mount with those on it, ends all connections for all their mounts, and waits
    /// for the threads.
    ///
    /// # Errors
    /// The kernel refuses to unmount, or the connection cannot be ended.
    pub fn unmount(self) -> Result<(), Error> {
        let Self { connection, submounts, options, .. } = self;
        let number = connection.number();
        // Another filesystem may be mounted there by now.
        if let Some(path) = options.path
            && number.is_some()
            && mount::connection(&path, options.name) == number
        {
            mount::detach(&path)?;
        }
        let submounts = submounts.into_inner().unwrap_or_else(PoisonError::into_inner);
        let ended = submounts.into_iter().flatten().map(FuseConnection::shut_down);
        let ended = ended.fold(Ok(()), Result::and);
        connection.shut_down().and(ended)
    }
}

fn filesystem(options: &MountOptions, views: &Arc<dyn Views>) -> OverlayFilesystem {
    OverlayFilesystem::new(options.recorder.clone(), views.clone(), options.passed)
}

impl fmt::Debug for Overlay {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Overlay")
            .field("path", &self.options.path)
            .field("connection", &self.connection.number())
            .field("counters", &self.counters())
            .finish_non_exhaustive()
    }
}
