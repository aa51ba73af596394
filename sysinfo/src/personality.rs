//! The personality of a task. On arm64 the kernel prints other feature names in `/proc/cpuinfo` for
//! a task with the personality of a 32-bit program, because such programs look for the features of
//! 32-bit processors. The personality of the daemon's threads must be what it was before.

use nix::sys::personality::{self, Persona};

/// include/uapi/linux/personality.h
const PER_LINUX32: u32 = 0x0008;
const PER_MASK: u32 = 0x00ff;

/// True for the personality of a 32-bit program. The text is that of `/proc/<pid>/personality`.
pub(crate) fn is_32_bit(text: &[u8]) -> bool {
    let digits = std::str::from_utf8(text.trim_ascii()).unwrap_or_default();
    u32::from_str_radix(digits, 16).is_ok_and(|persona| persona & PER_MASK == PER_LINUX32)
}

/// Runs a function with the personality of a 32-bit program, which is set for this thread only.
pub(crate) fn as_32_bit<T>(work: impl FnOnce() -> T) -> Option<T> {
    let own = personality::get().ok()?;
    personality::set(own | Persona::from_bits_retain(PER_LINUX32.cast_signed())).ok()?;
    let result = work();
    // Cannot fail: it is the value that was in force before.
    let _ = personality::set(own);
    Some(result)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_personality_is_the_lowest_byte() {
        assert!(is_32_bit(b"00000008\n") && is_32_bit(b"00040008\n"));
        assert!(!is_32_bit(b"00000000\n") && !is_32_bit(b"00040000\n"));
        assert!(!is_32_bit(b"") && !is_32_bit(b"8 is no number\n"));
    }

    #[test]
    fn the_personality_is_restored() {
        let own = || std::fs::read("/proc/thread-self/personality").unwrap();
        assert_eq!(as_32_bit(own).map(|text| is_32_bit(&text)), Some(true));
        assert!(!is_32_bit(&own()));
    }
}
