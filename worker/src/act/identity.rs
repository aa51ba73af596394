//! Taking on a caller's identity for one act, and as few capabilities as the act needs.
//!
//! The worker stays in the host's user namespace, so a capability here is one over the host. None
//! that passes over permissions is in force while a path of the container is walked.

use std::os::fd::BorrowedFd;
use std::sync::OnceLock;

use rustix::io::Errno;
use rustix::process::Gid;
use rustix::thread::{CapabilitySet, CapabilitySets};
use serde::{Deserialize, Serialize};

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
    let inheritable = CapabilitySet::empty();
    let permitted = PERMITTED.get().copied().unwrap_or(ALL);
    let sets = CapabilitySets { effective, permitted, inheritable };
    rustix::thread::set_capabilities(None, sets)
}

impl Identity {
    /// Becomes it, with no more capabilities than these: permissions are the caller's, and paths
    /// start at its root. When this fails it is not known who this process is.
    pub(super) fn take_on(&self, root: BorrowedFd<'_>, rights: CapabilitySet) -> Result<(), Errno> {
        use_only(CHANGE)?;
        // First: a FUSE filesystem refuses ids that its user namespace does not map (EOVERFLOW).
        self.change_to()?;
        // The kernel takes some of the capabilities away with the ids, or gives them back.
        use_only(CHANGE)?;
        rustix::process::fchdir(root)?;
        rustix::process::chroot(".")?;
        use_only(rights)
    }

    fn change_to(&self) -> Result<(), Errno> {
        let groups: Vec<_> = self.groups.iter().map(|&id| Gid::from_raw(id)).collect();
        rustix::thread::set_thread_groups(&groups)?;
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
