//! The FUSE connections of the overlay: mounted, or taken over from the previous server, and held by
//! the keeper for the next one.

use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::path::Path;
use std::sync::Arc;

use ambit_fuse::{MountOptions, Overlay};
use ambit_keeper::client::{Inherited, KeeperClient};
use ambit_sysinfo::Accounting;
use rustix::event::{PollFd, PollFlags, Timespec};

/// The names under which the keeper holds the FUSE device and the kernel's INIT request, of the
/// overlay and of the pressure files.
const OVERLAY: [&str; 2] = ["overlay", "overlay-init"];
const PRESSURE: [&str; 2] = ["pressure", "pressure-init"];

/// Takes the overlay over from the previous server. Mounts it if there was none, or if its
/// connection has been aborted.
pub(crate) fn open(
    options: MountOptions,
    accounting: &Arc<Accounting>,
    keeper: &KeeperClient,
    inherited: &mut Inherited,
) -> anyhow::Result<Overlay> {
    let [device, init] = OVERLAY;
    match alive(inherited.take(device), inherited.take_bytes(init)) {
        Some((device, init)) => {
            let overlay = Overlay::takeover(device, &init, options, accounting.clone())?;
            let [device, init] = PRESSURE;
            match alive(inherited.take(device), inherited.take_bytes(init)) {
                Some((device, init)) => overlay.takeover_pressure(device, &init)?,
                None => {
                    overlay.begin_pressure();
                    keep_pressure(&overlay, keeper);
                }
            }
            Ok(overlay)
        }
        None => {
            let overlay = Overlay::mount(options, accounting.clone())?;
            let connection = (overlay.device(), overlay.init_record());
            keep(keeper, OVERLAY, connection, overlay.abort_switches().0);
            keep_pressure(&overlay, keeper);
            Ok(overlay)
        }
    }
}

/// Stores the connection of the pressure files with the keeper.
pub(crate) fn keep_pressure(overlay: &Overlay, keeper: &KeeperClient) {
    if let Some((device, init)) = overlay.pressure() {
        keep(keeper, PRESSURE, (device.as_fd(), &init), overlay.abort_switches().1);
    }
}

/// Stores a new connection with the keeper, and the descriptor that aborts it. A connection must
/// not be stored twice: the keeper has the service manager remove the first one, and if the keeper
/// is killed then, both are lost.
fn keep(
    keeper: &KeeperClient,
    [device, init]: [&str; 2],
    (descriptor, record): (BorrowedFd<'_>, &[u8]),
    abort: Option<OwnedFd>,
) {
    keeper.store_bytes(init, record);
    keeper.store(device, descriptor);
    // The keeper can abort a connection that a server in state D holds.
    if let Some(abort) = abort {
        keeper.store(&format!("{device}-abort"), abort);
    }
}

/// Returns an inherited connection, unless it has been aborted: poll(2) then reports POLLERR for
/// its device.
fn alive(device: Option<OwnedFd>, init: Option<Vec<u8>>) -> Option<(OwnedFd, Vec<u8>)> {
    let device = device?;
    let mut poll = [PollFd::new(&device, PollFlags::IN)];
    let now = Timespec { tv_sec: 0, tv_nsec: 0 };
    let _ = rustix::event::poll(&mut poll, Some(&now));
    if poll[0].revents().contains(PollFlags::ERR) {
        tracing::warn!("the overlay's FUSE connection was aborted; mounting anew");
        return None;
    }
    Some((device, init?))
}

/// Returns the label of the overlay's files, where the kernel has SELinux and its policy knows the
/// label.
pub(crate) fn selinux_context(label: &str) -> Option<Arc<str>> {
    const CHECK: &str = "/sys/fs/selinux/context";
    if label.is_empty() || !Path::new(CHECK).exists() {
        return None;
    }
    // The kernel accepts only contexts that are valid in its policy.
    match std::fs::write(CHECK, label) {
        Ok(()) => Some(label.into()),
        Err(error) => {
            tracing::warn!(
                "SELinux does not know {label:?} ({error}): containers may not be allowed to read \
                 the files; set overlay.selinux_context to a label that they may read"
            );
            None
        }
    }
}
