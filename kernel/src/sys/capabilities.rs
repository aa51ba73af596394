//! Gives capabilities up for good: a thread, and what it starts later, does not get them back.

use rustix::io::Errno;
use rustix::thread::{CapabilitySet, CapabilitySets};

/// Drops all capabilities of this thread but these, and sets `no_new_privs`, by which execve(2) gives
/// none back. With `CAP_SETPCAP` it drops them from the bounding set too. Returns those that are
/// left: a service manager may have withheld some.
pub fn keep_only(kept: CapabilitySet) -> Result<CapabilitySet, Errno> {
    let _ = limit_bounding_set(kept); // EPERM: without CAP_SETPCAP
    rustix::thread::set_no_new_privs(true)?;
    limit_permitted(kept)
}

/// Drops all capabilities but these from the bounding set of this thread.
///
/// # Errors
/// EPERM without `CAP_SETPCAP`.
pub fn limit_bounding_set(kept: CapabilitySet) -> Result<(), Errno> {
    for number in 0..64u32 {
        let one = CapabilitySet::from_bits_retain(1 << number);
        if kept.contains(one) {
            continue;
        }
        match rustix::thread::remove_capability_from_bounding_set(one) {
            Err(Errno::INVAL) => break, // the kernel has no capability of this number
            other => other?,
        }
    }
    Ok(())
}

/// Drops all permitted capabilities of this thread but these and returns those that are left, which
/// are all effective. The inheritable set becomes empty, and with it the ambient set
/// (capabilities(7)).
pub fn limit_permitted(kept: CapabilitySet) -> Result<CapabilitySet, Errno> {
    let permitted = rustix::thread::capabilities(None)?.permitted & kept;
    let inheritable = CapabilitySet::empty();
    let sets = CapabilitySets { effective: permitted, permitted, inheritable };
    rustix::thread::set_capabilities(None, sets)?;
    Ok(permitted)
}
