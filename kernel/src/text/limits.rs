//! `/proc/<tid>/limits`: a line of headings, then one for each resource.

use super::scan;

/// The width of the column of names; the soft and the hard limit follow.
const NAME: usize = 25;

/// Returns resource, soft and hard limit, in the order of the kernel's numbers.
pub fn parse(text: &[u8]) -> Vec<(i32, u64, u64)> {
    let number = |word: &[u8]| match word {
        b"unlimited" => Some(u64::MAX),
        word => std::str::from_utf8(word).ok()?.parse().ok(),
    };
    let limit = |(resource, line): (i32, &[u8])| {
        let mut words = scan::words(line.get(NAME..)?);
        Some((resource, number(words.next()?)?, number(words.next()?)?))
    };
    (0..).zip(scan::lines(text).skip(1)).filter_map(limit).collect()
}

#[cfg(test)]
mod tests {
    use nix::sys::resource::{Resource, getrlimit};

    use super::*;

    #[test]
    fn limits_are_numbered_as_the_kernel_does() {
        let all = parse(&std::fs::read("/proc/self/limits").unwrap());
        assert_eq!(all.len(), 16);
        let (soft, hard) = getrlimit(Resource::RLIMIT_NOFILE).unwrap();
        assert_eq!(all[libc::RLIMIT_NOFILE as usize], (7, soft, hard));
    }
}
