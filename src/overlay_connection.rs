//! The FUSE connections of the overlay: mounted, or taken over from the previous server, and held by
//! the keeper for the next one.

use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::path::Path;
use std::sync::Arc;

use ambit_fuse::{MountOptions, Overlay, Submount};
use ambit_keeper::client::{Inherited, KeeperClient};
use ambit_sysinfo::Accounting;
use rustix::event::{PollFd, PollFlags, Timespec};

/// The name under which the keeper holds the overlay's own connection. Those of its device, the
/// kernel's INIT request and the abort switch are made of it.
const OVERLAY: &str = "overlay";

/// Takes the overlay over from the previous server. Mounts it if there was none, or if its
/// connection has been aborted.
pub(crate) fn open(
    options: MountOptions,
    accounting: &Arc<Accounting>,
    keeper: &KeeperClient,
    inherited: &mut Inherited,
) -> anyhow::Result<Overlay> {
    match alive(inherited, OVERLAY) {
        Some((device, init)) => {
            let overlay = Overlay::takeover(device, &init, options, accounting.clone())?;
            for submount in Submount::ALL {
                match alive(inherited, submount.name()) {
                    Some((device, init)) => overlay.takeover_submount(submount, device, &init)?,
                    None => {
                        overlay.begin_submount(submount);
                        keep_submounts(&overlay, keeper, &[submount]);
                    }
                }
            }
            Ok(overlay)
        }
        None => {
            let overlay = Overlay::mount(options, accounting.clone())?;
            let connection = (overlay.device(), overlay.init_record());
            keep(keeper, OVERLAY, connection, overlay.abort_switch(None));
            keep_submounts(&overlay, keeper, &Submount::ALL);
            Ok(overlay)
        }
    }
}

/// Stores these connections with the keeper.
pub(crate) fn keep_submounts(overlay: &Overlay, keeper: &KeeperClient, submounts: &[Submount]) {
    for &submount in submounts {
        if let Some((device, init)) = overlay.submount(submount) {
            let abort = overlay.abort_switch(Some(submount));
            keep(keeper, submount.name(), (device.as_fd(), &init), abort);
        }
    }
}

/// Stores a new connection with the keeper, and the descriptor that aborts it. A connection must
/// not be stored twice: the keeper has the service manager remove the first one, and if the keeper
/// is killed then, both are lost.
fn keep(
    keeper: &KeeperClient,
    name: &str,
    (device, init): (BorrowedFd<'_>, &[u8]),
    abort: Option<OwnedFd>,
) {
    keeper.store_bytes(&format!("{name}-init"), init);
    keeper.store(name, device);
    // The keeper can abort a connection that a server in state D holds.
    if let Some(abort) = abort {
        keeper.store(&format!("{name}-abort"), abort);
    }
}

/// Returns an inherited connection, unless it has been aborted: poll(2) then reports POLLERR for
/// its device.
fn alive(inherited: &mut Inherited, name: &str) -> Option<(OwnedFd, Vec<u8>)> {
    let init = inherited.take_bytes(&format!("{name}-init"));
    let device = inherited.take(name)?;
    let mut poll = [PollFd::new(&device, PollFlags::IN)];
    let now = Timespec { tv_sec: 0, tv_nsec: 0 };
    let _ = rustix::event::poll(&mut poll, Some(&now));
    if poll[0].revents().contains(PollFlags::ERR) {
        tracing::warn!("the FUSE connection {name} was aborted; mounting anew");
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
