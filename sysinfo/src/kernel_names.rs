//! The keys of the running kernel's `/proc/vmstat`, the lines of `/proc/interrupts` that belong to no
//! device, and the rows of ZFS's `arcstats`. They are read when first needed and only once: they are
//! fixed when a kernel is built, and `/proc/interrupts` of a large machine takes milliseconds. No
//! count is taken from these files.

use std::sync::{Arc, OnceLock};

use ambit_kernel::text::scan;

use crate::host::RawFiles;
use crate::stats::Interrupt;

/// The names, once read.
#[derive(Debug, Default)]
pub(crate) struct KernelNames {
    vmstat: OnceLock<Arc<[Box<str>]>>,
    interrupts: OnceLock<Arc<[Interrupt]>>,
    arc: OnceLock<Arc<[Box<str>]>>,
}

impl KernelNames {
    pub(crate) fn vmstat(&self, kernel: Option<&dyn RawFiles>) -> Arc<[Box<str>]> {
        once(&self.vmstat, kernel, "proc/vmstat", parse_vmstat)
    }

    pub(crate) fn arc(&self, kernel: Option<&dyn RawFiles>) -> Arc<[Box<str>]> {
        once(&self.arc, kernel, "proc/spl/kstat/zfs/arcstats", parse_arcstats)
    }

    pub(crate) fn interrupts(&self, kernel: Option<&dyn RawFiles>) -> Arc<[Interrupt]> {
        once(&self.interrupts, kernel, "proc/interrupts", parse_interrupts)
    }
}

/// Returns the value, reading it if it is not known. After a failure it is empty and read again
/// next time.
fn once<T>(
    kept: &OnceLock<Arc<[T]>>,
    kernel: Option<&dyn RawFiles>,
    path: &str,
    parse: impl Fn(&[u8]) -> Arc<[T]>,
) -> Arc<[T]> {
    if let Some(names) = kept.get() {
        return names.clone();
    }
    let mut text = Vec::new();
    match kernel.map(|kernel| kernel.read(path, &mut text)) {
        Some(Ok(())) => kept.get_or_init(|| parse(&text)).clone(),
        Some(Err(_)) | None => Arc::default(),
    }
}

fn parse_vmstat(text: &[u8]) -> Arc<[Box<str>]> {
    scan::pairs(text).filter_map(|(key, _)| Some(std::str::from_utf8(key).ok()?.into())).collect()
}

/// Two lines of heading, then name, type and number.
fn parse_arcstats(text: &[u8]) -> Arc<[Box<str>]> {
    let name = |line| Some(std::str::from_utf8(scan::words(line).next()?).ok()?.into());
    scan::lines(text).skip(2).filter_map(name).collect()
}

/// Lines of devices have a number as label.
fn parse_interrupts(text: &[u8]) -> Arc<[Interrupt]> {
    let mut lines = scan::lines(text);
    let cpus = lines.next().map_or(0, |heading| scan::words(heading).count());
    let parse = |line: &[u8]| {
        let colon = memchr::memchr(b':', line)?;
        let label = std::str::from_utf8(line[..colon].trim_ascii()).ok()?;
        if !label.bytes().next()?.is_ascii_alphabetic() {
            return None;
        }
        let is_count = |word: &&[u8]| word.iter().all(u8::is_ascii_digit);
        let rest = &line[colon + 1..];
        let counts = scan::words(rest).take(cpus).take_while(is_count).count();
        let per_cpu = counts == cpus && (cpus > 1 || scan::words(rest).count() > 1);
        // The blanks in front of the description are part of the kernel's layout.
        let mut description = rest;
        for _ in 0..counts {
            description = description.trim_ascii_start();
            let end = description.iter().position(|byte| !byte.is_ascii_digit());
            description = &description[end.unwrap_or(description.len())..];
        }
        let description = std::str::from_utf8(description.trim_ascii_end()).ok()?.into();
        Some(Interrupt { label: label.into(), description, per_cpu })
    };
    lines.filter_map(parse).collect()
}

#[cfg(any(test, feature = "fuzzing"))]
pub(crate) fn parse(text: &[u8]) {
    let _ = (parse_vmstat(text), parse_interrupts(text), parse_arcstats(text));
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn interrupts_of_devices_are_left_out() {
        let text = b"           CPU0       CPU1       \n\
                     24:          1          0  IO-APIC   5-edge      ACPI:Ged\n\
                     NMI:          0          0   Non-maskable interrupts\n\
                     ERR:          0\n";
        let found = parse_interrupts(text);
        assert_eq!(found.len(), 2);
        assert_eq!((&*found[0].label, found[0].per_cpu), ("NMI", true));
        assert_eq!(&*found[0].description, "   Non-maskable interrupts");
        assert_eq!((&*found[1].label, found[1].per_cpu), ("ERR", false));
        assert_eq!(&*found[1].description, "");
    }

    #[test]
    fn a_single_processor_does_not_hide_which_lines_have_columns() {
        let text = b"           CPU0       \nNMI:          0   Non-maskable interrupts\nMIS:  0\n";
        let found = parse_interrupts(text);
        assert_eq!((found[0].per_cpu, found[1].per_cpu), (true, false));
        assert_eq!(&*found[0].description, "   Non-maskable interrupts");
    }

    /// 10,000 interrupts on 256 processors, 28 MB of text.
    #[test]
    fn of_ten_thousand_interrupts_the_architectures_remain() {
        let counts = " 4294967295".repeat(256);
        let mut text: String = (0..256).map(|cpu| format!("  CPU{cpu}")).collect();
        text.push('\n');
        for number in 0..10_000 {
            text.push_str(&format!(
                "{number:5}:{counts}  IR-PCI-MSIX-0000:01:00.0 {number}-edge x\n"
            ));
        }
        for label in ["NMI", "LOC", "RES"] {
            text.push_str(&format!("{label:>5}:{counts}   Of the architecture\n"));
        }
        let found = parse_interrupts(text.as_bytes());
        let labels: Vec<_> = found.iter().map(|line| &*line.label).collect();
        assert_eq!(labels, ["NMI", "LOC", "RES"]);
        assert!(
            found.iter().all(|line| line.per_cpu && &*line.description == "   Of the architecture")
        );
    }

    #[test]
    fn keys_of_vmstat_in_their_order() {
        let keys = parse_vmstat(b"nr_free_pages 1\nnr_zone_inactive_anon 2\nbroken\n");
        assert_eq!(&*keys, ["nr_free_pages".into(), "nr_zone_inactive_anon".into()]);
    }
}
