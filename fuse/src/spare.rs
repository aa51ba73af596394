//! A spare mount of a connection, which is attached nowhere. The connection can be attached from it
//! at any time, and stays alive when all its other mounts are gone. Dropping it must not end the
//! connection. Start reading at [`Spare::begin`].

use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::path::Path;
use std::sync::{Arc, Mutex};

use crate::error::Error;
use crate::mount::{self, MountKind};
use crate::visit;
use ambit_kernel::lock;

/// The spare mount of a connection.
#[derive(Debug)]
pub(crate) struct Spare {
    device: Arc<OwnedFd>,
    kind: MountKind,
    mount: Mutex<Option<OwnedFd>>,
    number: Option<u32>,
}

impl Spare {
    /// Begins a connection.
    pub(crate) fn begin(device: Arc<OwnedFd>, kind: MountKind) -> Result<Self, Error> {
        let mount = mount::detached(device.as_fd(), &kind)?;
        Ok(Self::keep(device, kind, Some(mount)))
    }

    /// Takes over an existing connection, which may be attached at this path. There is no spare
    /// mount before Linux 5.15, nor for a device that is a socket.
    pub(crate) fn take_over(device: Arc<OwnedFd>, kind: MountKind, path: Option<&Path>) -> Self {
        let mount = mount::detached(device.as_fd(), &kind);
        let spare = Self::keep(device, kind, mount.ok());
        let number = spare.number.or_else(|| mount::connection(path?, spare.kind.name));
        Self { number, ..spare }
    }

    fn keep(device: Arc<OwnedFd>, kind: MountKind, mount: Option<OwnedFd>) -> Self {
        let number = mount.as_ref().and_then(|mount| visit::number(mount.as_fd()));
        Self { device, kind, mount: Mutex::new(mount), number }
    }

    /// The number of the connection.
    pub(crate) fn number(&self) -> Option<u32> {
        self.number
    }

    /// Duplicates the mount, for a process that attaches it in its own mount namespace.
    pub(crate) fn duplicate(&self) -> Option<OwnedFd> {
        let mount = lock(&self.mount);
        mount.as_ref()?.try_clone().ok()
    }

    /// Attaches the mount, and makes another spare one.
    pub(crate) fn attach(
        &self,
        attach: impl FnOnce(BorrowedFd<'_>) -> Result<(), Error>,
    ) -> Result<(), Error> {
        let mut kept = lock(&self.mount);
        let further = || mount::detached(self.device.as_fd(), &self.kind);
        let mount = match kept.take() {
            Some(mount) => mount,
            None => further()?,
        };
        let attached = attach(mount.as_fd());
        *kept = match (further(), &attached) {
            (Ok(further), _) => Some(further),
            // Before Linux 5.15.
            (Err(_), Ok(())) => mount::copy(mount.as_fd()).ok(),
            (Err(_), Err(_)) => Some(mount),
        };
        attached
    }
}
