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
use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use ambit_kernel::recorder::Recorder;
use ambit_kernel::text::mountinfo::{self, Mounted};
use ambit_sysinfo::Views;

use crate::adopt::InitRequest;
use crate::connection::{FuseConnection, ServeOptions, Stage};
use crate::counters::Counts;
use crate::error::Error;
use crate::filesystem::OverlayFilesystem;
use crate::mount::{self, MountKind, Writes};
use crate::pressure::PressureFilesystem;
use crate::tree::PRESSURE;
use crate::visit::{self, Visit, Visitor};

/// Deadline for the process that looks up all names.
const LOOK_UP_WITHIN: Duration = Duration::from_secs(3);

/// Where and how the overlay is served.
#[derive(Debug, Clone)]
pub struct MountOptions {
    /// The mount point; created if missing. Without one the overlay is attached nowhere, and
    /// [`Overlay::detached`] returns its mounts.
    pub path: Option<PathBuf>,
    /// Number of threads that answer requests. More than containers keep busy only wake each other
    /// up.
    pub threads: usize,
    /// How long a reader waits for a kernel file that hangs. Longer than the `patience` of
    /// accounting, after which a thread that waits for a sample of another one gets the last good
    /// numbers.
    pub patience: Duration,
    /// The source of the mount, and what follows `fuse.` in its type.
    pub name: &'static str,
    /// The label that SELinux gives all files, if the kernel has SELinux.
    pub context: Option<Arc<str>>,
    /// Files that every reader sees as on the machine, by their paths below the root.
    pub passed: &'static [&'static str],
    /// The recorder of requests, if there is one.
    pub recorder: Option<Arc<dyn Recorder>>,
    /// True if triggers can be set on `/proc/pressure`. Its files are then a mount of their own
    /// over the overlay; in a mount namespace with that mount, the overlay cannot be bound as a
    /// whole.
    pub triggers: bool,
    /// Runs visits of mounts in another process. The default is [`visit::in_place`].
    pub visitor: Visitor,
}

impl MountOptions {
    /// The default: two threads.
    #[must_use]
    pub fn new(path: impl Into<PathBuf>) -> Self {
        Self { path: Some(path.into()), ..Self::detached() }
    }

    /// The default, without a mount point.
    #[must_use]
    pub fn detached() -> Self {
        Self {
            path: None,
            threads: 2,
            patience: Duration::from_secs(8),
            name: mount::NAME,
            context: None,
            passed: &[],
            recorder: None,
            triggers: true,
            visitor: visit::in_place,
        }
    }

    fn serving(&self, threads: usize, writes: Writes) -> ServeOptions {
        let kind = MountKind { context: self.context.clone(), ..MountKind::new(self.name, writes) };
        ServeOptions { kind, threads, patience: self.patience }
    }
}

/// The detached mounts of an overlay.
#[derive(Debug)]
pub struct Detached {
    /// The overlay itself.
    pub overlay: OwnedFd,
    /// The filesystem with triggers, for `proc/pressure` of the overlay.
    pub pressure: Option<OwnedFd>,
}

/// Result of [`Overlay::restore`].
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Restored {
    /// Everything was attached.
    Nothing,
    /// A mount was missing and is attached again.
    Mounts,
}

/// An overlay that is being served.
pub struct Overlay {
    connection: FuseConnection,
    /// The second connection, for `/proc/pressure` with triggers.
    pressure: Mutex<Option<FuseConnection>>,
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
        let pressure = Mutex::default();
        let overlay = Self { connection, pressure, options, views, filesystem };
        overlay.begin_pressure();
        match overlay.options.path.as_deref().map_or(Ok(()), |path| overlay.attach(path)) {
            Ok(()) => Ok(overlay),
            // The first error is reported.
            Err(error) => overlay.unmount().and(Err(error)),
        }
    }

    /// Serves `/proc/pressure` with triggers, which the next [`Self::restore`] attaches. A failure
    /// is logged; all but triggers works without it.
    pub fn begin_pressure(&self) {
        if !self.options.triggers {
            return;
        }
        match FuseConnection::begin(&self.serving_pressure(), self.pressure_filesystem()) {
            Ok(connection) => *self.pressure_connection() = Some(connection),
            Err(error) => tracing::warn!(%error, "no triggers can be set on /proc/pressure"),
        }
    }

    fn serving_pressure(&self) -> ServeOptions {
        self.options.serving(1, Writes::Allowed)
    }

    fn pressure_filesystem(&self) -> PressureFilesystem {
        PressureFilesystem::new(self.options.recorder.clone(), self.views.clone())
    }

    fn pressure_connection(&self) -> MutexGuard<'_, Option<FuseConnection>> {
        self.pressure.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Attaches the overlay and the pressure files, and has all names looked up before a container
    /// engine can use them.
    fn attach(&self, path: &Path) -> Result<(), Error> {
        self.connection.spare.attach(|mount| mount::attach(mount, path))?;
        self.attach_pressure(path);
        Ok(())
    }

    /// Has a visitor attach the pressure files and look up the names, because both send requests to
    /// the overlay.
    fn attach_pressure(&self, path: &Path) {
        let look_up = |pressure: Option<BorrowedFd<'_>>| {
            let overlay = mount::open_mount(path)?;
            let visit = Visit::Names { overlay: overlay.as_fd(), pressure };
            (self.options.visitor)(visit, LOOK_UP_WITHIN)
        };
        let call = "look-up by another process";
        let visited = match &*self.pressure_connection() {
            Some(connection) => connection.spare.attach(|mount| {
                let failed = |source| Error::Mount { path: path.into(), call, source };
                look_up(Some(mount)).map_err(|errno| failed(errno.into()))
            }),
            None => look_up(None).map_err(|errno| Error::Mount {
                path: path.into(),
                call,
                source: errno.into(),
            }),
        };
        if let Err(error) = visited {
            tracing::warn!(%error, "the overlay is not complete: no triggers can be set");
        }
    }

    /// Attaches again what was unmounted, in the mount namespace of this process only. The
    /// filesystem with triggers gets a new connection if its own was aborted.
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
            return Ok(Restored::Mounts);
        }
        let place = path.join(PRESSURE);
        let aborted = self.pressure_is_finished();
        if aborted {
            drop(self.pressure_connection().take());
            self.begin_pressure();
        }
        let missing = |connection: &FuseConnection| !is_attached(connection, &place);
        if aborted || self.pressure_connection().as_ref().is_some_and(missing) {
            self.attach_pressure(path);
            return Ok(Restored::Mounts);
        }
        Ok(Restored::Nothing)
    }

    /// Takes over the filesystem with triggers from a predecessor, as [`Self::takeover`] does for
    /// the overlay.
    ///
    /// # Errors
    /// As [`Self::takeover`].
    pub fn takeover_pressure(&self, device: OwnedFd, init_record: &[u8]) -> Result<(), Error> {
        let init = InitRequest::from_record(init_record)?;
        let path = self.options.path.as_ref().map(|path| path.join(PRESSURE));
        let (serving, filesystem) = (self.serving_pressure(), self.pressure_filesystem());
        let connection = FuseConnection::serve(
            device,
            init,
            Stage::Live,
            path.as_deref(),
            &serving,
            filesystem,
        )?;
        *self.pressure_connection() = Some(connection);
        Ok(())
    }

    /// Returns device and INIT record of the filesystem with triggers, to be kept like those of the
    /// overlay.
    #[must_use]
    pub fn pressure(&self) -> Option<(Arc<OwnedFd>, Vec<u8>)> {
        let pressure = self.pressure_connection();
        let connection = pressure.as_ref()?;
        Some((Arc::clone(&connection.device), connection.init.record().to_vec()))
    }

    /// Returns detached mounts of the overlay, if it has no mount point.
    #[must_use]
    pub fn detached(&self) -> Option<Detached> {
        let pressure = self.pressure_connection();
        let pressure = pressure.as_ref().and_then(|connection| connection.spare.duplicate());
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
        Ok(Self { connection, pressure: Mutex::default(), options, views, filesystem })
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

    /// Returns the abort switches of both connections: any write to one aborts its connection. A
    /// switch has no effect when its connection is gone.
    #[must_use]
    pub fn abort_switches(&self) -> (Option<OwnedFd>, Option<OwnedFd>) {
        let pressure = self.pressure_connection();
        (self.connection.abort_switch(), pressure.as_ref().and_then(FuseConnection::abort_switch))
    }

    /// Returns the counters of the overlay.
    #[must_use]
    pub fn counters(&self) -> Counts {
        self.filesystem.counters().counts()
    }

    /// Waits until no first visit of a container waits for its turn, for so long at most: before
    /// Linux 6.9 a successor does not get requests that this process has received.
    pub fn drain(&self, patience: Duration) {
        self.filesystem.drain(patience);
    }

    /// True if serving has ended, because the connection was aborted.
    #[must_use]
    pub fn is_finished(&self) -> bool {
        self.connection.is_finished()
    }

    /// True if serving of the filesystem with triggers has ended.
    #[must_use]
    pub fn pressure_is_finished(&self) -> bool {
        self.pressure_connection().as_ref().is_some_and(FuseConnection::is_finished)
    }

    /// Removes the mount with those on it, ends both connections for all their mounts, and waits
    /// for the threads.
    ///
    /// # Errors
    /// The kernel refuses to unmount, or the connection cannot be ended.
    pub fn unmount(self) -> Result<(), Error> {
        let Self { connection, pressure, options, .. } = self;
        let number = connection.number();
        // Another filesystem may be mounted there by now.
        if let Some(path) = options.path
            && number.is_some()
            && mount::connection(&path, options.name) == number
        {
            mount::detach(&path)?;
        }
        let pressure = pressure.into_inner().unwrap_or_else(PoisonError::into_inner);
        let pressure = pressure.map_or(Ok(()), FuseConnection::shut_down);
        connection.shut_down().and(pressure)
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
