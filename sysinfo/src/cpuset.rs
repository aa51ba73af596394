//! A set of processor numbers, in the kernel's list format (`0-3,8,10-11`).
//!
//! Numbers above [`CpuSet::MAX`] are refused, because the set takes memory in proportion to the
//! largest number.

use std::fmt;

/// A set of processor numbers.
#[derive(Clone, Default, PartialEq, Eq, Hash)]
pub struct CpuSet {
    words: Vec<u64>,
}

impl CpuSet {
    /// The largest processor number that is accepted; `NR_CPUS` is at most 8192.
    pub const MAX: u32 = 65_535;

    /// Parses a list such as `0-3,8`. Surrounding white space is ignored and an empty list is
    /// the empty set. Anything else that is not a list gives `None`.
    pub fn parse(list: &[u8]) -> Option<Self> {
        let mut set = Self::default();
        let list = list.trim_ascii();
        if list.is_empty() {
            return Some(set);
        }
        for part in list.split(|&byte| byte == b',') {
            let (first, last) = match part.iter().position(|&byte| byte == b'-') {
                Some(dash) => (number(&part[..dash])?, number(&part[dash + 1..])?),
                None => {
                    let only = number(part)?;
                    (only, only)
                }
            };
            if first > last || last > Self::MAX {
                return None;
            }
            set.insert_range(first, last);
        }
        Some(set)
    }

    /// The processors `0..count`.
    pub fn first(count: u32) -> Self {
        (0..count.min(Self::MAX + 1)).collect()
    }

    /// Works on whole words, so that a text of many long ranges is parsed in time linear in its
    /// length.
    fn insert_range(&mut self, first: u32, last: u32) {
        let (start, end) = (first as usize / 64, last as usize / 64);
        if self.words.len() <= end {
            self.words.resize(end + 1, 0);
        }
        for word in start..=end {
            let from = if word == start { u64::MAX << (first % 64) } else { u64::MAX };
            let upto = if word == end { u64::MAX >> (63 - last % 64) } else { u64::MAX };
            self.words[word] |= from & upto;
        }
    }

    /// Adds one processor; numbers above [`Self::MAX`] are ignored.
    pub fn insert(&mut self, cpu: u32) {
        if cpu <= Self::MAX {
            self.insert_range(cpu, cpu);
        }
    }

    /// True if the set contains this processor.
    pub fn contains(&self, cpu: u32) -> bool {
        self.words.get(cpu as usize / 64).is_some_and(|word| word >> (cpu % 64) & 1 == 1)
    }

    /// How many processors the set has.
    pub fn len(&self) -> usize {
        self.words.iter().map(|word| word.count_ones() as usize).sum()
    }

    /// True for the empty set.
    pub fn is_empty(&self) -> bool {
        self.words.iter().all(|&word| word == 0)
    }

    /// The processors in ascending order.
    pub fn iter(&self) -> impl Iterator<Item = u32> + '_ {
        self.words.iter().zip(0u32..).flat_map(|(&word, index)| {
            (0..64).filter(move |bit| word >> bit & 1 == 1).map(move |bit| index * 64 + bit)
        })
    }

    /// The processors that are in both sets.
    #[must_use]
    pub fn intersection(&self, other: &Self) -> Self {
        let words = self.words.iter().zip(&other.words).map(|(a, b)| a & b).collect();
        Self { words }.trimmed()
    }

    /// The processors that are not in the other set, in ascending order.
    pub fn without<'s>(&'s self, other: &'s Self) -> impl Iterator<Item = u32> + 's {
        self.iter().filter(|&cpu| !other.contains(cpu))
    }

    /// The set in the kernel's mask format: hexadecimal, a comma after every 32 bits, and as
    /// many digits as the kernel prints for this machine, or more where the set needs them.
    pub fn mask(&self, digits: usize) -> impl fmt::Display + '_ {
        let needed = self.iter().last().map_or(1, |last| last as usize / 4 + 1);
        Mask { set: self, digits: digits.max(needed) }
    }

    fn trimmed(mut self) -> Self {
        while self.words.last() == Some(&0) {
            self.words.pop();
        }
        self
    }
}

/// The first and last number of each run of consecutive numbers, of ascending ones.
pub fn ranges(cpus: impl Iterator<Item = u32>) -> impl Iterator<Item = (u32, u32)> {
    let mut cpus = cpus.peekable();
    std::iter::from_fn(move || {
        let first = cpus.next()?;
        let mut last = first;
        while cpus.next_if(|&next| next == last + 1).is_some() {
            last += 1;
        }
        Some((first, last))
    })
}

/// Writes a list such as `0-3,8` of ascending numbers.
pub fn write_list(out: &mut impl fmt::Write, cpus: impl Iterator<Item = u32>) -> fmt::Result {
    for (index, (first, last)) in ranges(cpus).enumerate() {
        let comma = if index == 0 { "" } else { "," };
        if first == last {
            write!(out, "{comma}{first}")?;
        } else {
            write!(out, "{comma}{first}-{last}")?;
        }
    }
    Ok(())
}

impl FromIterator<u32> for CpuSet {
    fn from_iter<I: IntoIterator<Item = u32>>(cpus: I) -> Self {
        let mut set = Self::default();
        cpus.into_iter().for_each(|cpu| set.insert(cpu));
        set
    }
}

impl fmt::Display for CpuSet {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write_list(f, self.iter())
    }
}

struct Mask<'s> {
    set: &'s CpuSet,
    digits: usize,
}

impl fmt::Display for Mask<'_> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        for digit in (0..self.digits).rev() {
            let word = self.set.words.get(digit / 16).copied().unwrap_or(0);
            write!(f, "{:x}", word >> (digit % 16 * 4) & 0xF)?;
            if digit > 0 && digit % 8 == 0 {
                f.write_str(",")?;
            }
        }
        Ok(())
    }
}

impl fmt::Debug for CpuSet {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "CpuSet({self})")
    }
}

fn number(digits: &[u8]) -> Option<u32> {
    if digits.is_empty() || digits.len() > 6 || !digits.iter().all(u8::is_ascii_digit) {
        return None;
    }
    Some(digits.iter().fold(0, |value, digit| value * 10 + u32::from(digit - b'0')))
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    #[test]
    fn reads_the_kernels_lists() {
        let set = CpuSet::parse(b"0-3,8,10-11\n").unwrap();
        assert_eq!(set.iter().collect::<Vec<_>>(), [0, 1, 2, 3, 8, 10, 11]);
        assert_eq!(set.to_string(), "0-3,8,10-11");
        assert!(CpuSet::parse(b"\n").unwrap().is_empty());
    }

    #[test]
    fn refuses_what_is_not_a_list() {
        for bad in ["a", "1-", "-1", "3-1", "1,,2", "0-99999999", "1 2", "70000"] {
            assert_eq!(CpuSet::parse(bad.as_bytes()), None, "{bad}");
        }
    }

    #[test]
    fn masks_have_the_digits_of_the_machine() {
        let set = CpuSet::parse(b"0-3,8,33").unwrap();
        assert_eq!(set.mask(10).to_string(), "02,0000010f");
        assert_eq!(set.mask(1).to_string(), "2,0000010f");
        assert_eq!(CpuSet::first(2).mask(1).to_string(), "3");
        assert_eq!(CpuSet::default().mask(16).to_string(), "00000000,00000000");
        assert_eq!(CpuSet::parse(b"64").unwrap().mask(17).to_string(), "1,00000000,00000000");
    }

    #[test]
    fn equal_sets_compare_equal_whatever_their_history() {
        let narrow = CpuSet::first(1);
        let wide = CpuSet::first(130).intersection(&narrow);
        assert_eq!(narrow, wide);
    }

    proptest! {
        #[test]
        fn printing_and_parsing_are_inverse(cpus in proptest::collection::btree_set(0u32..2048, 0..80)) {
            let set: CpuSet = cpus.iter().copied().collect();
            prop_assert_eq!(set.len(), cpus.len());
            prop_assert_eq!(CpuSet::parse(set.to_string().as_bytes()), Some(set));
        }
    }
}
