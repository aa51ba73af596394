//! Drops capabilities in a sandbox without a user namespace.
//!
//! In a user namespace of its own, a sandbox has all capabilities over its own resources. Without
//! one, a capability is one over the host. So it keeps the set that container engines keep, without
//! CAP_MKNOD: nothing else keeps its root from making and opening nodes of the host's disks.

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

/// Drops all capabilities but [`KEPT`], also from the bounding set.
pub(super) fn drop_most() -> Result<()> {
    for number in 0..64 {
        let one = CapabilitySet::from_bits_retain(1 << number);
        if KEPT.contains(one) {
            continue;
        }
        match rustix::thread::remove_capability_from_bounding_set(one) {
            // EINVAL: the number is beyond the kernel's last capability.
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
    // Ambient capabilities would survive an execve(2) by a user other than root.
    rustix::thread::clear_ambient_capability_set().context("cannot drop capabilities: prctl")
}
