//! Whether the kernel has setxattrat(2), which is of Linux 6.13.

use std::sync::OnceLock;

use rustix::io::Errno;

use super::raw;

/// True if `number` is that of setxattrat(2) on this architecture and the kernel has the call. The
/// kernel is asked once.
pub fn exists(number: i32) -> bool {
    static ANSWER: OnceLock<bool> = OnceLock::new();
    libc::c_long::from(number) == raw::SETXATTRAT
        && *ANSWER.get_or_init(|| raw::probe_setxattrat() == Some(Errno::INVAL))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_the_number_of_the_call_is_looked_for() {
        assert!(!exists(-1) && !exists(0));
    }
}
