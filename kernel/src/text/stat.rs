//! `/proc/<tid>/stat`: one line of fields, separated by blanks. The second one is the name of the
//! program in parentheses, which may contain anything: fields are counted from the last `)`.

use super::scan;

/// Returns the fields behind the name. The first is the state, field 3 of `proc_pid_stat(5)`.
pub fn fields(stat: &[u8]) -> Option<impl Iterator<Item = &[u8]>> {
    let name_ends = memchr::memrchr(b')', stat)?;
    Some(scan::words(&stat[name_ends + 1..]))
}

/// Returns the letter of the state, such as `R`.
pub fn state(stat: &[u8]) -> Option<u8> {
    fields(stat)?.next()?.first().copied()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_name_with_parentheses_hides_no_field() {
        let stat = b"7 (a) R (b) S 1 7\n";
        assert_eq!(state(stat), Some(b'S'));
        assert_eq!(fields(stat).unwrap().nth(1), Some(&b"1"[..]));
        assert_eq!(state(b"7 (a"), None);
        assert_eq!(state(b"7 (a)"), None);
    }
}
