//! Signal dispositions back to what a program expects when it starts.
//!
//! The Rust runtime ignores SIGPIPE, and ignored signals stay ignored across `execve`: without
//! this, `yes | head -1` inside a sandbox would never end.

use std::io;

use nix::sys::signal::Signal;

use super::raw;

/// Makes SIGPIPE end the process again.
///
/// # Errors
/// Never on Linux: the signal exists and may be changed.
pub fn restore_sigpipe() -> io::Result<()> {
    Ok(raw::default_action(Signal::SIGPIPE)?)
}

/// Gives all signals their default actions: those that the parent of this program ignores too.
pub fn restore_all() {
    raw::default_actions();
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn sigpipe_has_its_default_action_afterwards() {
        restore_sigpipe().unwrap();
        let status = std::fs::read_to_string("/proc/self/status").unwrap();
        let ignored = status.lines().find_map(|line| line.strip_prefix("SigIgn:")).unwrap();
        let ignored = u64::from_str_radix(ignored.trim(), 16).unwrap();
        assert_eq!(ignored >> (libc::SIGPIPE - 1) & 1, 0);
    }
}
