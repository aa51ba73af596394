//! Reading what programs and kernel files print.

/// The value of a `Key:   123 kB` line.
#[track_caller]
pub(crate) fn kb(text: &str, key: &str) -> u64 {
    text.lines()
        .find_map(|line| line.strip_prefix(key)?.strip_prefix(':'))
        .and_then(|rest| rest.trim().trim_end_matches(" kB").parse().ok())
        .unwrap_or_else(|| panic!("no {key} in:\n{text}"))
}

/// The value of a `key=value` line.
#[track_caller]
pub(crate) fn value<'a>(text: &'a str, key: &str) -> &'a str {
    text.lines()
        .find_map(|line| line.strip_prefix(key)?.strip_prefix('='))
        .unwrap_or_else(|| panic!("no {key} in:\n{text}"))
}

/// The same as a number.
#[track_caller]
pub(crate) fn number(text: &str, key: &str) -> u64 {
    value(text, key).parse().unwrap_or_else(|_| panic!("{key} is no number in:\n{text}"))
}

/// A cell of the table that `free` prints: row `Mem` or `Swap`, column by its name.
#[track_caller]
pub(crate) fn free(text: &str, row: &str, column: &str) -> u64 {
    let mut lines = text.lines();
    let at = lines
        .next()
        .and_then(|head| head.split_whitespace().position(|name| name == column))
        .unwrap_or_else(|| panic!("no column {column} in:\n{text}"));
    lines
        .find_map(|line| line.strip_prefix(row)?.strip_prefix(':'))
        .and_then(|rest| rest.split_whitespace().nth(at)?.parse().ok())
        .unwrap_or_else(|| panic!("no row {row} in:\n{text}"))
}

/// The per-processor lines of `/proc/stat`.
pub(crate) fn cpu_lines(text: &str) -> Vec<&str> {
    text.lines()
        .filter(|line| {
            line.strip_prefix("cpu")
                .is_some_and(|rest| rest.starts_with(|c: char| c.is_ascii_digit()))
        })
        .collect()
}

/// How many numbers a list such as `0-1,4` names.
#[track_caller]
pub(crate) fn list_length(text: &str) -> usize {
    text.trim()
        .split(',')
        .map(|range| {
            let (first, last) = range.split_once('-').unwrap_or((range, range));
            let parse =
                |n: &str| n.parse::<usize>().unwrap_or_else(|_| panic!("no list: {text:?}"));
            parse(last) - parse(first) + 1
        })
        .sum()
}

/// How many lines begin so.
pub(crate) fn count(text: &str, start: &str) -> usize {
    text.lines().filter(|line| line.starts_with(start)).count()
}

/// The first number of a text such as `/proc/uptime`.
#[track_caller]
pub(crate) fn first_number(text: &str) -> f64 {
    text.split_whitespace()
        .next()
        .and_then(|word| word.parse().ok())
        .unwrap_or_else(|| panic!("no number first in {text:?}"))
}

/// Fails when two numbers are further apart than this.
#[track_caller]
pub(crate) fn close(what: &str, a: u64, b: u64, apart: u64) {
    assert!(a.abs_diff(b) <= apart, "{what}: {a} and {b} are more than {apart} apart");
}
