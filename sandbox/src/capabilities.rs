//! Drops capabilities in a sandbox without a user namespace.
//!
//! In a user namespace of its own, a sandbox has all capabilities over its own resources. Without
//! one, a capability is one over the host. So it keeps the set that container engines keep, without
//! CAP_MKNOD: nothing else keeps its root from making and opening nodes of the host's disks.

use ambit_kernel::sys::capabilities::{limit_bounding_set, limit_permitted};
use anyhow::{Context, Result};
use rustix::thread::CapabilitySet;

const KEPT: CapabilitySet = CapabilitySet::CHOWN
    .union(CapabilitySet::DAC_OVERRIDE)
    .union(CapabilitySet::FOWNER)
    .union(CapabilitySet::FSETID)
    .union(CapabilitySet::KILL)
    .union(CapabilitySet::SETGID)
    .union(CapabilitySet::SETUID)
    .union(CapabilitySet::SETPCAP)
    .union(CapabilitySet::NET_BIND_SERVICE)
    .union(CapabilitySet::NET_RAW)
    .union(CapabilitySet::SYS_CHROOT)
    .union(CapabilitySet::AUDIT_WRITE)
    .union(CapabilitySet::SETFCAP);

/// Drops all capabilities but [`KEPT`], also from the bounding set.
pub(super) fn drop_most() -> Result<()> {
    limit_bounding_set(KEPT).context("cannot drop capabilities: prctl")?;
    limit_permitted(KEPT).context("cannot drop capabilities: capset")?;
    Ok(())
}
