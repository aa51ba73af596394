//! Capabilities of a sandbox that keeps the host's users: few.
//!
//! In a user namespace of its own a sandbox has all of them, over what is its own. Without one
//! every capability is the host's; this leaves the set that container engines leave, less
//! CAP_MKNOD, because nothing else here would keep root from making and opening the host's disks.

use anyhow::{Context, Result};
use rustix::thread::{CapabilitySet, CapabilitySets};

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

/// Drops all others, for good.
pub(super) fn drop_most() -> Result<()> {
    for number in 0..64 {
        let one = CapabilitySet::from_bits_retain(1 << number);
        if KEPT.contains(one) {
            continue;
        }
        match rustix::thread::remove_capability_from_bounding_set(one) {
            // Beyond the last one this kernel knows.
            Err(rustix::io::Errno::INVAL) => break,
            other => other.context("cannot drop capabilities: prctl")?,
        }
    }
    let now = rustix::thread::capabilities(None).context("cannot read capabilities: capget")?;
    let kept = CapabilitySets {
        effective: now.effective & KEPT,
        permitted: now.permitted & KEPT,
        inheritable: CapabilitySet::empty(),
    };
    rustix::thread::set_capabilities(None, kept).context("cannot drop capabilities: capset")?;
    // Executing as root would otherwise be the only way left to get any, and it must give no more.
    rustix::thread::clear_ambient_capability_set().context("cannot drop capabilities: prctl")
}
