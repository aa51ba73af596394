//! The release of the running kernel, for what it cannot be asked otherwise.

/// True if this kernel is of a version or newer. A release that is no number is taken for an old one.
pub fn is_at_least(version: (u32, u32)) -> bool {
    let uname = rustix::system::uname();
    parse(&uname.release().to_string_lossy()).is_some_and(|release| release >= version)
}

fn parse(release: &str) -> Option<(u32, u32)> {
    let mut numbers = release.split(|c: char| !c.is_ascii_digit()).map(str::parse);
    Some((numbers.next()?.ok()?, numbers.next()?.ok()?))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn two_numbers_count() {
        assert_eq!(parse("5.10.0-32-cloud-amd64"), Some((5, 10)));
        assert_eq!(parse("6.18+"), Some((6, 18)));
        assert_eq!(parse("next"), None);
        assert!(is_at_least((4, 0)) && !is_at_least((4000, 0)));
    }
}
