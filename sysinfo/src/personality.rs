//! The personality of a task: on arm64 the kernel describes the processors in other words to a task
//! with that of a 32-bit program, because such programs look for the features of 32-bit processors.

use nix::sys::personality::{self, Persona};

/// include/uapi/linux/personality.h
const PER_LINUX32: u32 = 0x0008;
const PER_MASK: u32 = 0x00ff;

/// Is it that of a 32-bit program? The text is `/proc/<pid>/personality`.
pub(crate) fn is_32_bit(text: &[u8]) -> bool {
    let digits = std::str::from_utf8(text.trim_ascii()).unwrap_or_default();
    u32::from_str_radix(digits, 16).is_ok_and(|persona| persona & PER_MASK == PER_LINUX32)
}

/// Does something with the personality of a 32-bit program, which is this thread's alone.
pub(crate) fn as_32_bit<T>(act: impl FnOnce() -> T) -> Option<T> {
    let own = personality::get().ok()?;
    personality::set(own | Persona::from_bits_retain(PER_LINUX32.cast_signed())).ok()?;
    let result = act();
    // What was set a moment ago can be set back.
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
    fn it_is_changed_for_a_moment() {
        let own = || std::fs::read("/proc/thread-self/personality").unwrap();
        assert_eq!(as_32_bit(own).map(|text| is_32_bit(&text)), Some(true));
        assert!(!is_32_bit(&own()));
    }
}
