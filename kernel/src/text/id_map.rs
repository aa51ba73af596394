//! `/proc/<tid>/uid_map` and `gid_map`, as the host reads them.

use super::scan;

/// The ranges by which ids of a user namespace are mapped to ids of the host.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct IdMap(Vec<Range>);

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
struct Range {
    inside: u32,
    outside: u32,
    count: u32,
}

impl IdMap {
    /// Parses the text. A line that is no range is skipped.
    pub fn parse(text: &[u8]) -> Self {
        let range = |line| {
            let mut numbers = super::numbers(line);
            let (inside, outside, count) = (numbers.next()?, numbers.next()?, numbers.next()?);
            Some(Range { inside, outside, count })
        };
        Self(scan::lines(text).filter_map(range).collect())
    }

    /// Returns the id in the namespace for an id of the host.
    pub fn inside(&self, id: u32) -> Option<u32> {
        self.0.iter().find_map(|range| {
            let at = id.checked_sub(range.outside).filter(|at| *at < range.count)?;
            range.inside.checked_add(at)
        })
    }

    /// Returns the id on the host for an id of the namespace.
    pub fn outside(&self, id: u32) -> Option<u32> {
        self.0.iter().find_map(|range| {
            let at = id.checked_sub(range.inside).filter(|at| *at < range.count)?;
            range.outside.checked_add(at)
        })
    }

    /// Returns the ranges of ids of the host: first id, number of ids.
    pub fn outsiders(&self) -> Vec<(u32, u32)> {
        self.0.iter().map(|range| (range.outside, range.count)).collect()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn ids_are_mapped_both_ways() {
        let map = IdMap::parse(b"         0     100000      65536\n 70000 5 1\n");
        assert_eq!(
            (map.inside(100_000), map.inside(165_536), map.inside(5)),
            (Some(0), None, Some(70_000))
        );
        assert_eq!((map.outside(65_535), map.outside(65_536)), (Some(165_535), None));
        assert_eq!(map.outsiders(), [(100_000, 65_536), (5, 1)]);
    }

    #[test]
    fn a_line_that_is_no_range_is_skipped() {
        let map =
            IdMap::parse(b"0 1\n-1 0 5\n0 4294967296 1\n\xff 1 1\n\n4294967290 4294967290 100\n");
        assert_eq!(map.outsiders(), [(4_294_967_290, 100)]);
        assert_eq!(map.inside(u32::MAX), Some(u32::MAX));
    }
}
