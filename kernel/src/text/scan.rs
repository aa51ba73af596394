//! Byte scanners for the formats of kernel text: flat keyed (`key value` lines), nested keyed
//! (`8:0 rbytes=1 wbytes=2`), single values and lists. They never allocate or copy, and no bytes make
//! them panic.

/// Returns the lines of a text, without their newline.
pub fn lines(text: &[u8]) -> impl Iterator<Item = &[u8]> {
    let mut rest = text;
    std::iter::from_fn(move || {
        if rest.is_empty() {
            return None;
        }
        let (line, after) = match memchr::memchr(b'\n', rest) {
            Some(end) => (&rest[..end], &rest[end + 1..]),
            None => (rest, &rest[rest.len()..]),
        };
        rest = after;
        Some(line)
    })
}

/// Returns the decimal number at the start of a text, after blanks. It saturates instead of wrapping.
pub fn decimal(text: &[u8]) -> Option<u64> {
    let text = text.trim_ascii_start();
    let digits = text.iter().take_while(|byte| byte.is_ascii_digit());
    let mut value = None;
    for digit in digits {
        let before: u64 = value.unwrap_or(0);
        value = Some(before.saturating_mul(10).saturating_add(u64::from(digit - b'0')));
    }
    value
}

/// Returns a signed number; cgroup v1 writes "no quota" as -1.
pub fn signed(text: &[u8]) -> Option<i64> {
    let text = text.trim_ascii_start();
    match text.strip_prefix(b"-") {
        Some(rest) => decimal(rest).map(|value| 0i64.saturating_sub_unsigned(value)),
        None => decimal(text).map(|value| i64::try_from(value).unwrap_or(i64::MAX)),
    }
}

/// Returns the `key value` pairs of a flat keyed file.
pub fn pairs(text: &[u8]) -> impl Iterator<Item = (&[u8], u64)> {
    lines(text).filter_map(|line| {
        let space = memchr::memchr(b' ', line)?;
        Some((&line[..space], decimal(&line[space + 1..])?))
    })
}

/// Returns the words of a line, separated by blanks.
pub fn words(line: &[u8]) -> impl Iterator<Item = &[u8]> {
    line.split(u8::is_ascii_whitespace).filter(|word| !word.is_empty())
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    #[test]
    fn numbers_saturate() {
        assert_eq!(decimal(b" 12 kB"), Some(12));
        assert_eq!(decimal(b"99999999999999999999999"), Some(u64::MAX));
        assert_eq!(decimal(b"x"), None);
        assert_eq!(signed(b"-1\n"), Some(-1));
        assert_eq!(signed(b"99999999999999999999999"), Some(i64::MAX));
    }

    #[test]
    fn a_line_that_is_no_pair_is_skipped() {
        let text = b"anon 4096\nbroken\nfile x\nshmem 1";
        let found: Vec<_> = pairs(text).collect();
        assert_eq!(found, [(b"anon".as_slice(), 4096), (b"shmem".as_slice(), 1)]);
    }

    proptest! {
        #[test]
        fn any_bytes_are_scanned_without_a_panic(text in proptest::collection::vec(any::<u8>(), 0..400)) {
            let _ = (decimal(&text), signed(&text));
            let total: usize = lines(&text).map(|line| line.len() + 1).sum();
            prop_assert!(total <= text.len() + 1);
            let _ = pairs(&text).count() + words(&text).count();
        }
    }
}
