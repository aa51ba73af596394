//! `/proc/<tid>/status`: one line for each fact, the values separated by tabs.

use super::scan;
use memchr::memmem;

/// The text. It begins with the name of the program, in which the kernel escapes newlines, so a name
/// cannot add a line. The program chooses the other bytes of the name.
#[derive(Debug, Clone, Copy)]
pub struct Status<'a>(pub &'a [u8]);

impl<'a> Status<'a> {
    /// Returns the text behind a label such as `Uid:`, without blanks around it.
    pub fn value(self, label: &str) -> Option<&'a [u8]> {
        let find = |line: &'a [u8]| line.strip_prefix(label.as_bytes());
        scan::lines(self.0).find_map(find).map(<[u8]>::trim_ascii)
    }

    /// Returns the numbers behind a label; none if the line is missing.
    pub fn numbers(self, label: &str) -> impl Iterator<Item = u32> + use<'a> {
        super::numbers(self.value(label).unwrap_or_default())
    }

    /// Returns the one number behind a label, which is written to another base than ten.
    pub fn radix(self, label: &str, radix: u32) -> Option<u64> {
        number(self.value(label)?, radix)
    }
}

/// The credentials of a thread by which the kernel checks its access to files.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Credentials {
    /// The id of its process.
    pub tgid: u32,
    /// The umask. `None` before Linux 4.7, which does not show it.
    pub umask: Option<u32>,
    /// The user id for filesystem access (`fsuid`).
    pub fsuid: u32,
    /// The group id for filesystem access (`fsgid`).
    pub fsgid: u32,
    /// Supplementary groups.
    pub groups: Vec<u32>,
    /// The effective capabilities.
    pub effective: u64,
}

impl Credentials {
    /// Parses a status in one pass, up to the last line that is needed. `None`: it is no status.
    pub fn of(status: Status<'_>) -> Option<Self> {
        let (mut tgid, mut umask, mut fsuid, mut fsgid) = (None, None, None, None);
        // Real, effective, saved, of the filesystem.
        let last = |values| words(values).nth(3).and_then(decimal);
        let mut lines = scan::lines(status.0);
        let groups = loop {
            let line = lines.next()?;
            let Some(colon) = line.iter().position(|&byte| byte == b':') else { continue };
            let values = &line[colon + 1..];
            match &line[..colon] {
                b"Umask" => umask = number(values, 8).and_then(|mask| u32::try_from(mask).ok()),
                b"Tgid" => tgid = decimal(values),
                b"Uid" => fsuid = last(values),
                b"Gid" => fsgid = last(values),
                b"Groups" => break words(values).filter_map(decimal).collect(),
                _ => {}
            }
        };
        let effective = memmem::find(status.0, b"\nCapEff:").map(|at| &status.0[at + 1..])?;
        let effective = number(Status(effective).value("CapEff:")?, 16)?;
        let (tgid, fsuid, fsgid) = (tgid?, fsuid?, fsgid?);
        Some(Self { tgid, umask, fsuid, fsgid, groups, effective })
    }
}

fn words(values: &[u8]) -> impl Iterator<Item = &[u8]> {
    values.split(|byte| matches!(byte, b'\t' | b' ')).filter(|word| !word.is_empty())
}

fn decimal(word: &[u8]) -> Option<u32> {
    scan::decimal(word).and_then(|number| u32::try_from(number).ok())
}

fn number(value: &[u8], radix: u32) -> Option<u64> {
    u64::from_str_radix(std::str::from_utf8(value.trim_ascii()).ok()?, radix).ok()
}

#[cfg(test)]
mod tests {
    use super::*;

    const TEXT: &[u8] = b"Name:\t\xc3\\n Uid:\t9\nUmask:\t0027\nUid:\t0\t1\t2\t3\nGroups:\t4 5 \n\
                          NSpid:\t900\t31\t2\nCapEff:\t000001ffffffffff\n";

    #[test]
    fn values_follow_their_labels() {
        let status = Status(TEXT);
        assert_eq!(status.numbers("Uid:").collect::<Vec<_>>(), [0, 1, 2, 3]);
        assert_eq!(status.numbers("Groups:").collect::<Vec<_>>(), [4, 5]);
        assert_eq!(status.numbers("NSpid:").last(), Some(2));
        assert_eq!(status.radix("Umask:", 8), Some(0o027));
        assert_eq!(status.radix("CapEff:", 16), Some((1 << 41) - 1));
        assert_eq!((status.radix("CapBnd:", 16), status.numbers("Gid:").next()), (None, None));
    }

    #[test]
    fn a_missing_line_is_no_credentials() {
        let all = Credentials::of(Status(TEXT));
        assert_eq!(all, None, "no Tgid, no Gid");
        let before = [b"Tgid:\t31\nGid:\t5\t6\t7\t8\n", TEXT].concat();
        let expected = Credentials {
            tgid: 31,
            umask: Some(0o027),
            fsuid: 3,
            fsgid: 8,
            groups: vec![4, 5],
            effective: (1 << 41) - 1,
        };
        assert_eq!(Credentials::of(Status(&before)), Some(expected));
    }

    #[test]
    fn credentials_of_this_thread_are_those_of_the_calls() {
        let text = std::fs::read("/proc/thread-self/status").unwrap();
        let all = Credentials::of(Status(&text)).unwrap();
        let effective = rustix::thread::capabilities(None).unwrap().effective;
        let groups = rustix::process::getgroups().unwrap();
        assert_eq!(all.tgid, std::process::id());
        assert_eq!(all.fsuid, rustix::process::geteuid().as_raw());
        assert_eq!(all.fsgid, rustix::process::getegid().as_raw());
        assert_eq!(all.groups, groups.iter().map(|group| group.as_raw()).collect::<Vec<_>>());
        assert_eq!(all.effective, effective.bits());
        assert!(all.umask.is_some());
    }

    #[test]
    fn a_name_that_is_not_utf_8_hides_no_line() {
        let thread = std::thread::spawn(|| {
            // Cut off in the middle of a letter, as the kernel does with long names.
            rustix::thread::set_name(c"w\xc3\xa4chter-\xc3").unwrap();
            std::fs::read("/proc/thread-self/status").unwrap()
        });
        let text = thread.join().unwrap();
        assert!(std::str::from_utf8(&text).is_err());
        let effective = rustix::process::geteuid().as_raw();
        assert_eq!(Status(&text).numbers("Uid:").nth(1), Some(effective));
    }
}
