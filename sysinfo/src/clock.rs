//! Clocks: the time now, the start of a process, and the offset of a time namespace. All values are
//! nanoseconds; [`now`] includes suspend, [`awake`] does not, and the two must never be compared.
//! The clocks are read through the vDSO.

use ambit_kernel::text::{scan, stat};

/// One USER_HZ tick. The unit is fixed at 100 Hz on every architecture ambit supports
/// (include/asm-generic/param.h).
pub const TICK: u64 = 10_000_000;

/// Nanoseconds since the machine booted, suspend included (CLOCK_BOOTTIME). No system call.
pub fn now() -> u64 {
    read(rustix::time::ClockId::Boottime)
}

/// Nanoseconds that the machine was awake (CLOCK_MONOTONIC). For deadlines, which must not expire
/// because of a suspend, and for what the kernel counts only while awake: load averages and idle
/// time.
pub fn awake() -> u64 {
    read(rustix::time::ClockId::Monotonic)
}

fn read(clock: rustix::time::ClockId) -> u64 {
    let time = rustix::time::clock_gettime(clock);
    let seconds = u64::try_from(time.tv_sec).unwrap_or(0);
    let nanoseconds = u64::try_from(time.tv_nsec).unwrap_or(0);
    seconds.saturating_mul(1_000_000_000).saturating_add(nanoseconds)
}

/// When a process started, from the text of `/proc/<pid>/stat`: field 22.
pub fn start_of(stat: &[u8]) -> Option<u64> {
    scan::decimal(stat::fields(stat)?.nth(19)?).map(|ticks| ticks.saturating_mul(TICK))
}

/// The boot time offset of a process's time namespace, from the text of
/// `/proc/<pid>/timens_offsets`.
pub fn boottime_offset(text: &[u8]) -> Option<i64> {
    let line = scan::lines(text).find(|line| line.starts_with(b"boottime"))?;
    let mut words = scan::words(line).skip(1);
    let (seconds, nanoseconds) = (scan::signed(words.next()?)?, scan::signed(words.next()?)?);
    seconds.checked_mul(1_000_000_000)?.checked_add(nanoseconds)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_command_name_with_spaces_and_brackets() {
        let stat = b"7 (a b) c) S 1 7 7 0 -1 4194560 1 2 3 4 5 6 7 8 20 0 1 0 1234 99 9";
        assert_eq!(start_of(stat), Some(1234 * TICK));
        assert_eq!(start_of(b"7 (x"), None);
    }

    #[test]
    fn offsets_of_a_time_namespace() {
        let text = b"monotonic           0         0\nboottime         -100  500000000\n";
        assert_eq!(boottime_offset(text), Some(-99_500_000_000));
    }

    #[test]
    fn the_clock_runs() {
        let first = now();
        assert!(now() >= first && first > 0);
    }
}
