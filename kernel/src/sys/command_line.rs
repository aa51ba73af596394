//! The command line of this process, as `/proc/<pid>/cmdline` shows it.

use std::fs::{self, OpenOptions};
use std::io;
use std::os::unix::fs::FileExt;

use crate::text::stat;

/// Replaces the command line, for a process that containers see: the old one names paths of the
/// host. What is longer than the old one is cut off. `std::env::args` must not be used afterwards.
pub fn replace(text: &str) -> io::Result<()> {
    let stat = fs::read("/proc/self/stat")?;
    // Fields 48 and 49 of proc_pid_stat(5), the third of which is the first here.
    let range = stat::fields(&stat).and_then(|mut fields| {
        let mut next =
            |skipped| std::str::from_utf8(fields.nth(skipped)?).ok()?.parse::<u64>().ok();
        Some((next(45)?, next(0)?))
    });
    let (start, end) = range.ok_or(io::ErrorKind::InvalidData)?;
    let length = usize::try_from(end.saturating_sub(start)).map_err(io::Error::other)?;
    let memory = OpenOptions::new().write(true).open("/proc/self/mem")?;
    memory.write_all_at(&pad(text, length), start)
}

/// Returns the text in so many bytes, with at least one NUL behind it.
fn pad(text: &str, length: usize) -> Vec<u8> {
    let mut line = text.as_bytes().to_vec();
    line.truncate(length.saturating_sub(1));
    line.resize(length, 0);
    line
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_text_that_is_too_long_is_cut_off() {
        assert_eq!(pad("ab", 5), b"ab\0\0\0");
        assert_eq!(pad("abcdef", 4), b"abc\0");
        assert_eq!(pad("a", 0), b"");
    }
}
