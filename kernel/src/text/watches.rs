//! `/proc/self/fdinfo/<fd>` of an inotify instance.

use std::collections::HashSet;

use super::scan;

/// Returns the numbers of the watches that the kernel still has, from lines such as
/// `inotify wd:1f ino:2 sdev:fd00001 mask:400 ...`.
pub fn parse(text: &[u8]) -> HashSet<u64> {
    let number = |line: &[u8]| {
        let digits = scan::words(line.strip_prefix(b"inotify wd:")?).next()?;
        u64::from_str_radix(std::str::from_utf8(digits).ok()?, 16).ok()
    };
    scan::lines(text).filter_map(number).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn watches_have_hexadecimal_numbers() {
        let text =
            b"pos:\t0\nflags:\t02004000\ninotify wd:1f ino:2 sdev:1\ninotify wd:\ninotify wd:3 \n";
        assert_eq!(parse(text), HashSet::from([0x1f, 3]));
    }
}
