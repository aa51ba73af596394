//! How long a quota kept a container from running, of both cgroup versions.
//!
//! `cpu.stat.local` (Linux 6.6) counts the time for which the container had something to run, and
//! its own quota or that of an ancestor forbade it. Before, `cpu.stat` counts its own quota alone.
//! An ancestor's `cpu.stat` is never read: it counts siblings too.

use ambit_kernel::text::scan;

use super::{Cgroup, CgroupFile};
use crate::Error;

#[derive(Debug)]
pub(super) struct Throttled(pub(super) [CgroupFile; 2]);

impl Throttled {
    pub(super) fn new(cgroup: &Cgroup) -> Self {
        Self(["cpu.stat.local", "cpu.stat"].map(|name| cgroup.file(name)))
    }

    /// Returns nanoseconds, summed over the machine's processors; 0 where they are not counted.
    pub(super) fn read(&mut self, buffer: &mut Vec<u8>) -> Result<u64, Error> {
        for file in &mut self.0 {
            if let Some(time) = file.read(buffer)?.and_then(parse) {
                return Ok(time);
            }
        }
        Ok(0)
    }
}

/// v2 counts microseconds, v1 nanoseconds.
fn parse(text: &[u8]) -> Option<u64> {
    scan::pairs(text).find_map(|(key, time)| match key {
        b"throttled_usec" => Some(time.saturating_mul(1000)),
        b"throttled_time" => Some(time),
        _ => None,
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn both_versions_are_nanoseconds() {
        assert_eq!(parse(b"usage_usec 9\nnr_throttled 2\nthrottled_usec 7\n"), Some(7000));
        assert_eq!(parse(b"nr_periods 3\nnr_throttled 2\nthrottled_time 7\n"), Some(7));
        assert_eq!(parse(b"usage_usec 9\n"), None, "no cpu controller");
    }
}
