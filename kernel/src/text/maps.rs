//! `/proc/<tid>/maps`: a line `start-end rwxp offset device inode path` for each mapping, in
//! ascending order.
//!
//! The path, or the name that a program gave its memory, may have any length and any bytes but a
//! newline, which the kernel escapes. Only the first two fields are parsed.

/// The access that a mapping must allow.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Access {
    /// Reading.
    Read,
    /// Writing.
    Write,
}

/// Longer than `start-end rwxp` of 64-bit addresses.
const HEAD: usize = 48;

/// Finds out how far a range of addresses is covered by mappings that allow an access. The text
/// comes in pieces of any size.
#[derive(Debug)]
pub struct Coverage {
    access: Access,
    /// Everything from the start of the range up to here is covered.
    covered: u64,
    end: u64,
    /// The beginning of the line that is being read.
    head: [u8; HEAD],
    length: usize,
}

impl Coverage {
    /// Creates a scan of the addresses from `start` to `end`, exclusive.
    pub fn new(start: u64, end: u64, access: Access) -> Self {
        Self { access, covered: start, end, head: [0; HEAD], length: 0 }
    }

    /// Takes the next piece of the text. False once nothing that follows can change the result.
    pub fn feed(&mut self, text: &[u8]) -> bool {
        let mut rest = text;
        while !rest.is_empty() && self.covered < self.end {
            let newline = memchr::memchr(b'\n', rest);
            let line = &rest[..newline.unwrap_or(rest.len())];
            let kept = line.len().min(HEAD - self.length);
            self.head[self.length..self.length + kept].copy_from_slice(&line[..kept]);
            self.length += kept;
            let Some(newline) = newline else { return true };
            rest = &rest[newline + 1..];
            let length = std::mem::take(&mut self.length);
            if let Some((start, end, allowed)) = mapping(&self.head[..length], self.access)
                && end > self.covered
            {
                if start > self.covered || !allowed {
                    return false;
                }
                self.covered = end;
            }
        }
        self.covered < self.end
    }

    /// Returns the first address of the range that is not covered, or its end.
    pub fn covered(&self) -> u64 {
        self.covered.min(self.end)
    }
}

/// The addresses of a mapping, and whether it allows the access.
fn mapping(line: &[u8], access: Access) -> Option<(u64, u64, bool)> {
    let mut fields = line.splitn(3, |&byte| byte == b' ');
    let (range, flags) = (fields.next()?, fields.next()?);
    let (start, end) = std::str::from_utf8(range).ok()?.split_once('-')?;
    let number = |text| u64::from_str_radix(text, 16).ok();
    let [read, write, ..] = flags else { return None };
    let allowed = match access {
        Access::Read => *read == b'r',
        Access::Write => *write == b'w',
    };
    Some((number(start)?, number(end)?, allowed))
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    const TEXT: &[u8] = b"1000-2000 r-xp 00000000 08:01 7   /bin/a file with blanks\n\
        2000-3000 rw-p 00001000 08:01 7   /tmp/x\\012f000-ffff000 rw-p\n\
        3000-4000 -w-s 00000000 00:00 0 \n\
        5000-6000 rw-p 00000000 00:00 0   [anon:3000-9000 rw-p \xff]\n\
        7ffffffde000-7ffffffff000 rw-p 00000000 00:00 0                          [stack]\n\
        ffffffffff600000-ffffffffff601000 --xp 00000000 00:00 0                  [vsyscall]\n";

    fn covered(text: &[u8], start: u64, end: u64, access: Access) -> u64 {
        let mut coverage = Coverage::new(start, end, access);
        coverage.feed(text);
        coverage.covered() - start
    }

    #[test]
    fn a_range_is_covered_as_far_as_mappings_allow() {
        let write = |start, length| covered(TEXT, start, start + length, Access::Write);
        assert_eq!(write(0x2000, 0x10), 0x10);
        assert_eq!(write(0x2ff0, 0x20), 0x20, "two mappings");
        assert_eq!(write(0x3ff0, 0x20), 0x10, "a gap follows");
        assert_eq!(write(0x1ff0, 0x20), 0, "the first page is read-only");
        assert_eq!((write(0, 8), write(0x4000, 8), write(0x9000, 8)), (0, 0, 0));
        assert_eq!(write(0x7fff_ffff_eff0, 0x10), 0x10);
        assert_eq!(write(0xffff_ffff_ff60_0000, 8), 0);
        let read = |start, length| covered(TEXT, start, start + length, Access::Read);
        assert_eq!(read(0x1ff0, 0x1010), 0x1010);
        assert_eq!(read(0x2ff0, 0x20), 0x10, "what follows can only be written");
    }

    #[test]
    fn a_variable_can_be_written_and_a_constant_only_read() {
        let text = std::fs::read("/proc/self/maps").unwrap();
        let (written, constant) = (Box::new(7u64), "constant");
        let write = |at: u64| covered(&text, at, at + 8, Access::Write);
        assert_eq!(write(std::ptr::from_ref(&*written) as u64), 8);
        assert_eq!(write(constant.as_ptr() as u64), 0);
        assert_eq!(
            covered(&text, constant.as_ptr() as u64, constant.as_ptr() as u64 + 8, Access::Read),
            8
        );
    }

    #[test]
    fn the_end_of_the_address_space_is_no_overflow() {
        let text = b"fffffffffffff000-ffffffffffffffff rw-p 0\n";
        assert_eq!(covered(text, u64::MAX - 8, u64::MAX, Access::Write), 8);
    }

    proptest! {
        #[test]
        fn pieces_of_any_size_tell_the_same(
            start in 0u64..0x8000, length in 0u64..0x3000, size in 1usize..200
        ) {
            let mut coverage = Coverage::new(start, start + length, Access::Write);
            for piece in TEXT.chunks(size) {
                if !coverage.feed(piece) {
                    break;
                }
            }
            let whole = covered(TEXT, start, start + length, Access::Write);
            prop_assert_eq!(coverage.covered() - start, whole);
        }

        #[test]
        fn any_bytes_are_read_without_a_panic(text: Vec<u8>, start: u64, length in 0u64..9000) {
            let end = start.saturating_add(length);
            let mut coverage = Coverage::new(start, end, Access::Write);
            coverage.feed(&text);
            prop_assert!((start..=end).contains(&coverage.covered()));
        }
    }
}
