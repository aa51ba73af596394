//! Taking on a caller's identity for one act, and as few capabilities as the act needs.
//!
//! The worker stays in the host's user namespace, so a capability here is one over the host. None
//! that passes over permissions is in force while a path of the container is walked.
//!
//! Changing credentials is most of what a quick act costs. So a worker stays who it was when the next
//! task is for the very same identity and root. The task tells the identity anew each time, and the
//! root unless it is the one that was told with the task before.

use std::cell::{Cell, RefCell};
use std::os::fd::BorrowedFd;
use std::sync::OnceLock;

use rustix::io::Errno;
use rustix::process::Gid;
use rustix::thread::{CapabilitySet, CapabilitySets};
use serde::{Deserialize, Serialize};

use super::place::Place;

/// Whom the kernel takes the worker for, in the host's numbers.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Identity {
    /// The user that owns what is made, and whose permissions count.
    pub uid: u32,
    /// The group.
    pub gid: u32,
    /// Supplementary groups.
    pub groups: Vec<u32>,
    /// The mask for modes of new files.
    pub umask: u32,
}

/// What it takes to become somebody else.
const CHANGE: CapabilitySet = CapabilitySet::SETUID
    .union(CapabilitySet::SETGID)
    .union(CapabilitySet::SYS_CHROOT)
    .union(CapabilitySet::DAC_READ_SEARCH);

/// All that a worker ever uses.
const ALL: CapabilitySet = CHANGE
    .union(CapabilitySet::MKNOD)
    .union(CapabilitySet::DAC_OVERRIDE)
    .union(CapabilitySet::SYS_ADMIN)
    .union(CapabilitySet::SYS_PTRACE)
    .union(CapabilitySet::NET_ADMIN)
    .union(CapabilitySet::BPF);

/// Those of them that this process has: a service manager may withhold some, and Linux before 5.8 does
/// not know all.
static PERMITTED: OnceLock<CapabilitySet> = OnceLock::new();

thread_local! {
    /// The capabilities in force, if that is known. They are each thread's own, as this is.
    static IN_FORCE: Cell<Option<CapabilitySet>> = const { Cell::new(None) };
    /// Who this is, if that is known.
    static STANDING: RefCell<Option<Identity>> = const { RefCell::new(None) };
    /// Its root, if that is known. In use by this process, it cannot become another one.
    static ROOT: Cell<Option<Place>> = const { Cell::new(None) };
}

/// Gives up for good what no act needs.
pub(super) fn lay_down() -> Result<(), Errno> {
    for number in 0..64u32 {
        let one = CapabilitySet::from_bits_retain(1 << number);
        if !ALL.contains(one) && rustix::thread::remove_capability_from_bounding_set(one).is_err() {
            break; // beyond the last one this kernel knows
        }
    }
    rustix::thread::clear_ambient_capability_set()?;
    rustix::thread::set_no_new_privs(true)?;
    let permitted = rustix::thread::capabilities(None)?.permitted & ALL;
    let _ = PERMITTED.set(permitted);
    use_only(CHANGE)
}

/// From here on these capabilities are in force, and no others.
pub(super) fn use_only(effective: CapabilitySet) -> Result<(), Errno> {
    if IN_FORCE.get() == Some(effective) {
        return Ok(());
    }
    IN_FORCE.set(None);
    let inheritable = CapabilitySet::empty();
    let permitted = PERMITTED.get().copied().unwrap_or(ALL);
    let sets = CapabilitySets { effective, permitted, inheritable };
    rustix::thread::set_capabilities(None, sets)?;
    IN_FORCE.set(Some(effective));
    Ok(())
}

impl Identity {
    /// Becomes it, with no more capabilities than these: permissions are the caller's, and paths
    /// start at its root, which is that of the last time if none is given. When this fails it is not
    /// known who this process is.
    pub(super) fn take_on(
        &self,
        root: Option<BorrowedFd<'_>>,
        rights: CapabilitySet,
    ) -> Result<(), Errno> {
        let place = root.and_then(|root| Place::of(root, ""));
        let moves = root.filter(|_| place.is_none() || place != ROOT.get());
        if moves.is_none() && STANDING.with_borrow(|standing| standing.as_ref() == Some(self)) {
            return use_only(rights);
        }
        // Until all of it is done.
        STANDING.set(None);
        use_only(CHANGE)?;
        // First: a FUSE filesystem refuses ids that its user namespace does not map (EOVERFLOW).
        self.change_to()?;
        if let Some(root) = moves {
            ROOT.set(None);
            use_only(CHANGE)?;
            rustix::process::fchdir(root)?;
            rustix::process::chroot(".")?;
            ROOT.set(place);
        }
        use_only(rights)?;
        STANDING.set(Some(self.clone()));
        Ok(())
    }

    fn change_to(&self) -> Result<(), Errno> {
        let groups: Vec<_> = self.groups.iter().map(|&id| Gid::from_raw(id)).collect();
        rustix::thread::set_thread_groups(&groups)?;
        // The kernel takes some of the capabilities away with the ids, or gives them back.
        IN_FORCE.set(None);
        // Neither says whether it worked; asking for an id that there is none of tells.
        nix::unistd::setfsgid(self.gid.into());
        nix::unistd::setfsuid(self.uid.into());
        let now = (nix::unistd::setfsuid(u32::MAX.into()), nix::unistd::setfsgid(u32::MAX.into()));
        if (now.0.as_raw(), now.1.as_raw()) != (self.uid, self.gid) {
            return Err(Errno::PERM);
        }
        rustix::process::umask(rustix::fs::Mode::from_raw_mode(self.umask));
        Ok(())
    }
}
