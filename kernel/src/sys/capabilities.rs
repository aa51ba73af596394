//! Gives capabilities up for good: a thread, and what it starts later, does not get them back.

use rustix::io::Errno;
use rustix::thread::{CapabilitySet, CapabilitySets};

/// Drops all capabilities of this thread but these, and sets `no_new_privs`, by which execve(2) gives
/// none back. With `CAP_SETPCAP` it drops them from the bounding set too. Returns those that are
/// left: a service manager may have withheld some.
///
/// # Errors
/// The kernel refuses to set them.
pub fn keep_only(kept: CapabilitySet) -> Result<CapabilitySet, Errno> {
    for number in 0..64u32 {
        let one = CapabilitySet::from_bits_retain(1 << number);
        if !kept.contains(one) && rustix::thread::remove_capability_from_bounding_set(one).is_err()
        {
            break; // EINVAL: no capability has this number; EPERM: without CAP_SETPCAP
        }
    }
    rustix::thread::clear_ambient_capability_set()?;
    rustix::thread::set_no_new_privs(true)?;
    let permitted = rustix::thread::capabilities(None)?.permitted & kept;
    let inheritable = CapabilitySet::empty();
    let sets = CapabilitySets { effective: permitted, permitted, inheritable };
    rustix::thread::set_capabilities(None, sets)?;
    Ok(permitted)
}
