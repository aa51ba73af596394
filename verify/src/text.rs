//! Parsers of what the kernel prints, and sizes as people read and write them. A parser returns
//! `None` for text that the kernel does not print.

use std::collections::{BTreeMap, BTreeSet};

/// Numbers of processors, nodes, or anything else that is printed as a list.
pub(crate) type Cpus = BTreeSet<u32>;

/// The largest number in a list that is believed: a list is hostile above it.
const LARGEST: u32 = 1 << 16;

/// A list such as `0-1,4`; an empty text is an empty set.
pub(crate) fn list(text: &str) -> Option<Cpus> {
    let mut set = Cpus::new();
    for range in text.trim().split(',').filter(|range| !range.is_empty()) {
        let (first, last) = range.split_once('-').unwrap_or((range, range));
        let (first, last) = (first.parse::<u32>().ok()?, last.parse::<u32>().ok()?);
        if first > last || last > LARGEST {
            return None;
        }
        set.extend(first..=last);
    }
    Some(set)
}

/// The same as the kernel prints it.
pub(crate) fn print_list(set: &Cpus) -> String {
    let mut ranges: Vec<(u32, u32)> = Vec::new();
    for &number in set {
        match ranges.last_mut() {
            Some((_, last)) if *last + 1 == number => *last = number,
            _ => ranges.push((number, number)),
        }
    }
    let print = |&(first, last): &(u32, u32)| {
        if first == last { first.to_string() } else { format!("{first}-{last}") }
    };
    ranges.iter().map(print).collect::<Vec<_>>().join(",")
}

/// Lines `Key: 123 kB` of meminfo, in bytes; those of a node begin with `Node 0 `. Numbers without
/// a unit are left out.
pub(crate) fn meminfo(text: &str) -> Option<BTreeMap<String, u64>> {
    let mut lines = BTreeMap::new();
    for line in text.lines() {
        let (key, rest) = line.split_once(':')?;
        let key = key.rsplit(' ').next()?;
        let mut words = rest.split_whitespace();
        let value: u64 = words.next()?.parse().ok()?;
        if words.next() == Some("kB") {
            lines.insert(key.to_owned(), value.checked_mul(1024)?);
        }
    }
    lines.contains_key("MemTotal").then_some(lines)
}

/// Lines `key 123`.
pub(crate) fn pairs(text: &str) -> Option<BTreeMap<String, u64>> {
    let mut pairs = BTreeMap::new();
    for line in text.lines() {
        let (key, value) = line.split_once(' ')?;
        pairs.insert(key.to_owned(), value.trim().parse().ok()?);
    }
    (!pairs.is_empty()).then_some(pairs)
}

/// The numbers behind a word at the beginning of lines, such as `cpu` in `/proc/stat`.
pub(crate) fn numbered<'a>(lines: impl Iterator<Item = &'a str>, word: &str) -> Cpus {
    let number = |line: &str| {
        let rest = line.strip_prefix(word)?;
        let end = rest.find(|c: char| !c.is_ascii_digit()).unwrap_or(rest.len());
        rest[..end].parse().ok()
    };
    lines.filter_map(number).collect()
}

/// The processors of `/proc/cpuinfo`: `processor : 0`, on s390 `processor 0: …`.
pub(crate) fn cpuinfo(text: &str) -> Cpus {
    let number = |line: &str| {
        let rest = line.strip_prefix("processor")?.trim_start_matches([' ', '\t', ':']);
        rest.split(|c: char| !c.is_ascii_digit()).next()?.parse().ok()
    };
    text.lines().filter_map(number).collect()
}

/// Managed and free pages of all zones of `/proc/zoneinfo`.
pub(crate) fn zones(text: &str) -> Option<(u64, u64)> {
    let sum = |label: &str| {
        text.lines().try_fold(0u64, |sum, line| match line.trim().strip_prefix(label) {
            Some(rest) if rest.starts_with(' ') => sum.checked_add(rest.trim().parse().ok()?),
            _ => Some(sum),
        })
    };
    let (managed, free) = (sum("managed")?, sum("pages free")?);
    (managed > 0).then_some((managed, free))
}

/// Size and used bytes of all areas of `/proc/swaps`.
pub(crate) fn swaps(text: &str) -> Option<(u64, u64)> {
    let mut lines = text.lines();
    lines.next().filter(|line| line.starts_with("Filename"))?;
    lines.try_fold((0u64, 0u64), |(all, used), line| {
        // From the end: the name may be followed by a mark ` (deleted)`.
        let mut words = line.split_whitespace().rev().skip(1);
        let mut number = || words.next()?.parse::<u64>().ok()?.checked_mul(1024);
        let (more_used, more) = (number()?, number()?);
        Some((all.checked_add(more)?, used.checked_add(more_used)?))
    })
}

/// The names in a column of `/proc/partitions` or `/proc/diskstats`, whose lines begin with a number.
pub(crate) fn disks(text: &str, column: usize) -> BTreeSet<String> {
    let name = |line: &str| {
        let mut words = line.split_whitespace();
        let is_disk = words.next()?.parse::<u32>().is_ok();
        words.nth(column - 1).filter(|_| is_disk).map(str::to_owned)
    };
    text.lines().filter_map(name).collect()
}

/// A number that begins with digits, as a whole word; none of the kernel's is larger than this.
pub(crate) fn number(text: Option<&str>) -> Option<f64> {
    text.filter(|word| word.starts_with(|c: char| c.is_ascii_digit()))?
        .parse()
        .ok()
        .filter(|number| *number < 1e15)
}

/// A size as people read it, with at most two digits behind the point.
pub(crate) fn size(bytes: u64) -> String {
    let units = [(40, "TiB"), (30, "GiB"), (20, "MiB"), (10, "KiB")];
    let Some((shift, unit)) = units.into_iter().find(|(shift, _)| bytes >> shift > 0) else {
        return format!("{bytes} bytes");
    };
    let text = format!("{:.2}", bytes as f64 / f64::from(1u32 << (shift - 10)) / 1024.0);
    format!("{} {unit}", text.trim_end_matches('0').trim_end_matches('.'))
}

/// A size as people write it: `512M`, `1.5G`, or bytes.
pub(crate) fn parse_size(text: &str) -> Option<u64> {
    let text = text.trim_end_matches("iB");
    let (number, factor) = match text.chars().last()?.to_ascii_uppercase() {
        'K' => (&text[..text.len() - 1], 10),
        'M' => (&text[..text.len() - 1], 20),
        'G' => (&text[..text.len() - 1], 30),
        'T' => (&text[..text.len() - 1], 40),
        _ => (text, 0),
    };
    if let Ok(whole) = number.parse::<u64>() {
        return whole.checked_mul(1 << factor);
    }
    let value = self::number(Some(number))? * (1u64 << factor) as f64;
    (value < 1e18).then_some(value as u64)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn lists_are_read_and_printed() {
        assert_eq!(list("0-2,5\n").map(|set| print_list(&set)).as_deref(), Some("0-2,5"));
        assert_eq!(list("\n"), Some(Cpus::new()));
        for hostile in ["3-1", "0-4294967295", "a", "0-", "-1", "0 1"] {
            assert_eq!(list(hostile), None, "{hostile}");
        }
    }

    #[test]
    fn sizes_are_read_and_printed() {
        assert_eq!(parse_size("512M"), Some(512 << 20));
        assert_eq!(parse_size("1.5GiB"), Some(3 << 29));
        assert_eq!(parse_size("4096"), Some(4096));
        for wrong in ["", "M", "-1", "99999999999T", "1e30G", "inf"] {
            assert_eq!(parse_size(wrong), None, "{wrong}");
        }
        assert_eq!(size(512 << 20), "512 MiB");
        assert_eq!(size(3 << 29), "1.5 GiB");
        assert_eq!(size(25_276_301_312), "23.54 GiB");
        assert_eq!(size(0), "0 bytes");
    }

    #[test]
    fn meminfo_of_the_machine_and_of_a_node() {
        let lines = meminfo("MemTotal:  1024 kB\nHugePages_Total: 3\n").unwrap();
        assert_eq!((lines["MemTotal"], lines.len()), (1 << 20, 1));
        assert_eq!(meminfo("Node 0 MemTotal:  1024 kB\n").unwrap()["MemTotal"], 1 << 20);
        assert_eq!(meminfo("MemFree: 1 kB\n"), None);
        assert_eq!(meminfo("garbage"), None);
    }

    #[test]
    fn processors_are_counted() {
        let stat = "cpu  1 2\ncpu0 1\ncpu12 1\nintr 0\n";
        assert_eq!(numbered(stat.lines(), "cpu"), Cpus::from([0, 12]));
        assert_eq!(cpuinfo("processor\t: 3\nmodel: x\nprocessor 4: id\n"), Cpus::from([3, 4]));
        assert_eq!(pairs("a 1\nb 2\n").unwrap()["b"], 2);
        assert_eq!(pairs("nonsense\n"), None);
    }
}
