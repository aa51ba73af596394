//! `/proc/<tid>/status`: one line for each fact, the values separated by tabs.

use ambit_sysinfo::scan;

/// The text. The kernel escapes newlines in the name of the program that it begins with, so no
/// name can bring a line of its own; other bytes of it are as the program chose them.
#[derive(Debug, Clone, Copy)]
pub struct Status<'a>(pub &'a [u8]);

impl<'a> Status<'a> {
    /// What follows a label such as `Uid:`, without blanks around it.
    #[must_use]
    pub fn value(self, label: &str) -> Option<&'a [u8]> {
        let find = |line: &'a [u8]| line.strip_prefix(label.as_bytes());
        scan::lines(self.0).find_map(find).map(<[u8]>::trim_ascii)
    }

    /// The numbers that follow a label; none when the line is missing.
    pub fn numbers(self, label: &str) -> impl Iterator<Item = u32> + use<'a> {
        super::numbers(self.value(label).unwrap_or_default())
    }

    /// The one number that follows a label, written to another base than ten.
    #[must_use]
    pub fn radix(self, label: &str, radix: u32) -> Option<u64> {
        u64::from_str_radix(std::str::from_utf8(self.value(label)?).ok()?, radix).ok()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const TEXT: &[u8] = b"Name:\t\xc3\\n Uid:\t9\nUmask:\t0027\nUid:\t0\t1\t2\t3\nGroups:\t4 5 \n\
                          NSpid:\t900\t31\t2\nCapEff:\t000001ffffffffff\n";

    #[test]
    fn facts_follow_their_labels() {
        let status = Status(TEXT);
        assert_eq!(status.numbers("Uid:").collect::<Vec<_>>(), [0, 1, 2, 3]);
        assert_eq!(status.numbers("Groups:").collect::<Vec<_>>(), [4, 5]);
        assert_eq!(status.numbers("NSpid:").last(), Some(2));
        assert_eq!(status.radix("Umask:", 8), Some(0o027));
        assert_eq!(status.radix("CapEff:", 16), Some((1 << 41) - 1));
        assert_eq!((status.radix("CapBnd:", 16), status.numbers("Gid:").next()), (None, None));
    }

    #[test]
    fn a_name_that_is_no_text_hides_nothing() {
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
