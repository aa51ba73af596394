//! Assumes a caller's identity for one operation, with as few capabilities as it needs.
//!
//! The worker stays in the host's user namespace, so its capabilities are capabilities over the
//! host. None that overrides file permissions may be effective while a path of the container is
//! resolved. Start reading at [`Identity::assume`].

use std::os::fd::BorrowedFd;
use std::sync::OnceLock;

use ambit_kernel::sys::capabilities;
use rustix::io::Errno;
use rustix::process::Gid;
use rustix::thread::{CapabilitySet, CapabilitySets};
use serde::{Deserialize, Serialize};

/// The ids and the umask that a worker assumes, as ids of the host.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Identity {
    /// The filesystem user id: the owner of new files, and the user for permission checks.
    pub uid: u32,
    /// The filesystem group id.
    pub gid: u32,
    /// Supplementary groups.
    pub groups: Vec<u32>,
    /// The file mode creation mask, umask(2).
    pub umask: u32,
}

/// The capabilities that a change of identity needs.
const CHANGE_IDENTITY: CapabilitySet = CapabilitySet::SETUID
    .union(CapabilitySet::SETGID)
    .union(CapabilitySet::SYS_CHROOT)
    .union(CapabilitySet::DAC_READ_SEARCH);

/// All capabilities that a worker ever uses.
const ALL: CapabilitySet = CHANGE_IDENTITY
    .union(CapabilitySet::MKNOD)
    .union(CapabilitySet::DAC_OVERRIDE)
    .union(CapabilitySet::SYS_ADMIN)
    .union(CapabilitySet::SYS_PTRACE)
    .union(CapabilitySet::NET_ADMIN)
    .union(CapabilitySet::BPF);

/// The part of [`ALL`] that this process has. A service manager may withhold some, and Linux before
/// 5.8 lacks CAP_BPF.
static PERMITTED: OnceLock<CapabilitySet> = OnceLock::new();

/// Drops all capabilities that no operation needs, for good.
pub(super) fn drop_capabilities() -> Result<(), Errno> {
    let _ = PERMITTED.set(capabilities::keep_only(ALL)?);
    use_only(CHANGE_IDENTITY)
}

/// Sets the effective capabilities.
pub(super) fn use_only(effective: CapabilitySet) -> Result<(), Errno> {
    let inheritable = CapabilitySet::empty();
    let permitted = PERMITTED.get().copied().unwrap_or(ALL);
    let sets = CapabilitySets { effective, permitted, inheritable };
    rustix::thread::set_capabilities(None, sets)
}

impl Identity {
    /// Assumes the ids, the umask and the root, with `rights` as effective capabilities. After an
    /// error the ids of this process are unknown.
    pub(super) fn assume(&self, root: BorrowedFd<'_>, rights: CapabilitySet) -> Result<(), Errno> {
        use_only(CHANGE_IDENTITY)?;
        // Before chdir(2): it fails with EOVERFLOW on a FUSE filesystem whose user namespace does
        // not map the ids.
        self.set_ids()?;
        // setfsuid(2) clears or restores CAP_DAC_* and others in the effective set:
        // capabilities(7).
        use_only(CHANGE_IDENTITY)?;
        rustix::process::fchdir(root)?;
        rustix::process::chroot(".")?;
        use_only(rights)
    }

    fn set_ids(&self) -> Result<(), Errno> {
        let groups: Vec<_> = self.groups.iter().map(|&id| Gid::from_raw(id)).collect();
        rustix::thread::set_thread_groups(&groups)?;
        // setfsuid(2) and setfsgid(2) return no error. A call with an invalid id returns the
        // current one.
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
