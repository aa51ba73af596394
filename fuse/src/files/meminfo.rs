//! `/proc/meminfo`: the container's memory, in the running kernel's own set and order of lines.
//!
//! All lines of the machine's file are shown, so that programs find those of this kernel version.
//! The number of a line is the view's if `LINES` has the label, and the machine's if it is a
//! constant of the machine and no measurement (size of a huge page, size of the address space).
//! Else it is 0, so that an unknown label of a future kernel shows nothing of the machine. Sums are
//! computed from the printed parts. Layout of `fs/proc/meminfo.c`.

use ambit_sysinfo::{StatSet, View};

use crate::overlay::OverlayFile;
use crate::text::Text;

/// `/proc/meminfo`.
pub static MEMINFO: OverlayFile = OverlayFile {
    render_columns: |view, out| {
        // No sum of a container exceeds the machine's memory and swap.
        let largest = kib(view.host.memory_total.saturating_add(view.host.swap_total));
        render(view, largest.max(1).ilog10() as usize + 1, out);
    },
    ..OverlayFile::new("proc/meminfo", StatSet::MEMORY, |view, out| render(view, 0, out))
};

/// Writes the file with numbers of at least this width.
fn render(view: &View, width: usize, out: &mut Text) {
    // The machine's lines have the order of LINES, except for unknown ones, so the search for a
    // label starts after the previous one.
    let mut next = 0;
    for line in &view.host.meminfo {
        let found = (next..LINES.len()).chain(0..next).find(|&at| LINES[at].0 == &*line.label);
        let value = match found {
            Some(at) => {
                next = at + 1;
                match LINES[at].1 {
                    Value::Kib(number) => number(view),
                    Value::HostConstant => line.value,
                }
            }
            None => 0,
        };
        row(&line.label, value, line.kib, width, out);
    }
}

/// Writes a line. Label and colon fill 16 columns, the number is right aligned to the 24th; longer
/// labels are followed by one blank and leave less room. Numbers are at least `width` wide.
fn row(label: &str, value: u64, kib: bool, width: usize, out: &mut Text) {
    out.put(label).byte(b':');
    let start = match label.len() + 1 {
        ..=16 => 16,
        long => long + 1,
    };
    out.pad_to(start).right(value, width.max(24usize.saturating_sub(start)));
    if kib {
        out.put(" kB");
    }
    out.newline();
}

/// Returns the container's number of a line in KiB, for the `meminfo` of memory nodes; `None` for a
/// line that shows nothing of the container.
pub(crate) fn number(label: &str, view: &View) -> Option<u64> {
    LINES.iter().find(|line| line.0 == label).and_then(|line| match line.1 {
        Kib(number) => Some(number(view)),
        HostConstant => None,
    })
}

/// The origin of a line's number.
enum Value {
    /// The container's number, in the unit of the line: KiB but for pages of huge pools.
    Kib(fn(&View) -> u64),
    /// The machine's number, a constant that says nothing of its use.
    HostConstant,
}

use Value::{HostConstant, Kib};

/// The lines whose number is not 0, in the order of `fs/proc/meminfo.c` (6.18). Not listed, so 0:
///
/// - `Buffers`: a cgroup counts block device pages as page cache.
/// - `ShmemPmdMapped`, `FilePmdMapped` are 0 below: cgroups do not count how huge pages are mapped.
/// - `HugePages_Surp`: cgroups do not account which pages of a pool are surplus.
/// - `NFS_Unstable`, `Bounce`, `WritebackTmp`, `VmallocUsed`, `VmallocChunk`, `Balloon`,
///   `HardwareCorrupted`, `Cma*`, `Unaccepted`, `DirectMap*`: numbers of the machine.
const LINES: &[(&str, Value)] = &[
    ("MemTotal", Kib(|view| kib(view.memory.total))),
    ("MemFree", Kib(|view| kib(view.memory.free))),
    ("MemAvailable", Kib(|view| kib(view.memory.available))),
    ("Cached", Kib(|view| kib(view.memory.cached))),
    ("SwapCached", Kib(|view| kib(view.swap.cached))),
    ("Active", Kib(|view| kib(view.memory.active_anon) + kib(view.memory.active_file))),
    ("Inactive", Kib(|view| kib(view.memory.inactive_anon) + kib(view.memory.inactive_file))),
    ("Active(anon)", Kib(|view| kib(view.memory.active_anon))),
    ("Inactive(anon)", Kib(|view| kib(view.memory.inactive_anon))),
    ("Active(file)", Kib(|view| kib(view.memory.active_file))),
    ("Inactive(file)", Kib(|view| kib(view.memory.inactive_file))),
    ("Unevictable", Kib(|view| kib(view.memory.unevictable))),
    // Cgroups account what cannot be reclaimed, which is locked but for rare cases.
    ("Mlocked", Kib(|view| kib(view.memory.unevictable))),
    ("SwapTotal", Kib(|view| kib(view.swap.total))),
    ("SwapFree", Kib(|view| kib(view.swap.free))),
    ("Zswap", Kib(|view| kib(view.swap.zswap))),
    ("Zswapped", Kib(|view| kib(view.swap.zswapped))),
    ("Dirty", Kib(|view| kib(view.memory.dirty))),
    ("Writeback", Kib(|view| kib(view.memory.writeback))),
    ("AnonPages", Kib(|view| kib(view.memory.anon))),
    ("Mapped", Kib(|view| kib(view.memory.mapped))),
    ("Shmem", Kib(|view| kib(view.memory.shmem))),
    ("KReclaimable", Kib(|view| kib(view.memory.kernel_reclaimable))),
    ("Slab", Kib(|view| kib(view.memory.slab_reclaimable) + kib(view.memory.slab_unreclaimable))),
    ("SReclaimable", Kib(|view| kib(view.memory.slab_reclaimable))),
    ("SUnreclaim", Kib(|view| kib(view.memory.slab_unreclaimable))),
    ("KernelStack", Kib(|view| kib(view.memory.kernel_stack))),
    ("PageTables", Kib(|view| kib(view.memory.page_tables))),
    ("SecPageTables", Kib(|view| kib(view.memory.secondary_page_tables))),
    ("CommitLimit", Kib(commit_limit)),
    ("Committed_AS", Kib(committed)),
    ("VmallocTotal", HostConstant),
    ("Percpu", Kib(|view| kib(view.memory.percpu))),
    ("AnonHugePages", Kib(|view| kib(view.memory.anon_huge))),
    ("ShmemHugePages", Kib(|view| kib(view.memory.shmem_huge))),
    ("ShmemPmdMapped", Kib(|view| kib(view.memory.shmem_pmd_mapped))),
    ("FileHugePages", Kib(|view| kib(view.memory.file_huge))),
    ("FilePmdMapped", Kib(|view| kib(view.memory.file_pmd_mapped))),
    ("HugePages_Total", Kib(|view| view.memory.huge_total)),
    ("HugePages_Free", Kib(|view| view.memory.huge_free)),
    ("HugePages_Rsvd", Kib(|view| view.memory.huge_reserved)),
    ("Hugepagesize", HostConstant),
    ("Hugetlb", Kib(|view| kib(view.memory.huge_bytes))),
];

fn kib(bytes: u64) -> u64 {
    bytes >> 10
}

/// Computes the kernel's formula for a machine of the container's size with the default
/// `vm.overcommit_ratio` of 50, without the huge pages.
fn commit_limit(view: &View) -> u64 {
    kib(view.memory.total.saturating_sub(view.memory.huge_only)) / 2 + kib(view.swap.total)
}

/// Cgroups do not account committed memory. The lower bound is what is in use of it: anonymous and
/// shared memory, and what was swapped out of it.
fn committed(view: &View) -> u64 {
    kib(view.memory.anon) + kib(view.memory.shmem) + kib(view.swap.used)
}

#[cfg(test)]
mod tests {
    use std::sync::Arc;

    use ambit_sysinfo::{Host, HostTexts};
    use procfs_core::{FromBufRead, Meminfo as Parsed};
    use proptest::prelude::*;

    use super::*;
    use crate::fixture;

    #[test]
    fn a_limit_of_64_mib() {
        let mut view = fixture::view();
        view.memory.total = 64 << 20;
        let text = fixture::render(&MEMINFO, &view);
        assert!(text.starts_with("MemTotal:          65536 kB\nMemFree:  "), "{text}");
        assert!(text.contains("\nHugePages_Total:       0\n"));
        assert!(text.contains("\nVmallocTotal:   34359738367 kB\nVmallocUsed:           0 kB\n"));
    }

    #[test]
    fn the_columns_hold_the_largest_numbers_of_the_machine() {
        let mut view = fixture::view();
        let mut host = Host::clone(&view.host);
        host.memory_total = 1 << 40;
        view.host = Arc::new(host);
        let rendered = |view: &_| {
            let mut text = Text::new();
            (MEMINFO.render_columns)(view, &mut text);
            String::from_utf8(text.as_bytes().to_vec()).unwrap()
        };
        let small = rendered(&view);
        assert!(small.starts_with("MemTotal:           262144 kB\n"), "{small}");
        (view.memory.total, view.memory.free, view.memory.anon) = (1 << 40, 1 << 39, 1 << 39);
        let large = rendered(&view);
        assert!(large.starts_with("MemTotal:       1073741824 kB\n"), "{large}");
        let layout = |text: &str| text.lines().map(str::len).collect::<Vec<_>>();
        assert_eq!(layout(&small), layout(&large));
        Parsed::from_buf_read(large.as_bytes()).unwrap();
    }

    #[test]
    fn procfs_reads_what_the_view_says() {
        let view = fixture::view();
        let text = fixture::render(&MEMINFO, &view);
        let parsed = Parsed::from_buf_read(text.as_bytes()).unwrap();
        let (memory, swap) = (&view.memory, &view.swap);
        assert_eq!(parsed.mem_total, memory.total);
        assert_eq!(parsed.mem_free, memory.free);
        assert_eq!(parsed.mem_available, Some(memory.available));
        assert_eq!((parsed.buffers, parsed.cached), (0, memory.cached));
        assert_eq!(parsed.active, memory.active_anon + memory.active_file);
        assert_eq!(parsed.inactive_file, Some(memory.inactive_file));
        assert_eq!((parsed.swap_total, parsed.swap_free), (swap.total, swap.free));
        assert_eq!((parsed.dirty, parsed.writeback), (memory.dirty, memory.writeback));
        assert_eq!(parsed.anon_pages, Some(memory.anon));
        assert_eq!((parsed.mapped, parsed.shmem), (memory.mapped, Some(memory.shmem)));
        assert_eq!(parsed.slab, memory.slab_reclaimable + memory.slab_unreclaimable);
        assert_eq!(parsed.k_reclaimable, Some(memory.kernel_reclaimable));
        assert_eq!(parsed.kernel_stack, Some(memory.kernel_stack));
        assert_eq!(parsed.page_tables, Some(memory.page_tables));
        assert_eq!(parsed.hugepagesize, Some(2 << 20));
        assert_eq!((parsed.vmalloc_used, parsed.direct_map_2M), (0, Some(0)));
        assert_eq!(parsed.commit_limit, Some(memory.total / 2 + swap.total));
    }

    #[test]
    fn huge_page_pools_do_not_count_for_the_commit_limit() {
        let mut view = fixture::view();
        (view.memory.total, view.memory.huge_only, view.swap.total) = (1 << 30, 256 << 20, 0);
        let text = fixture::render(&MEMINFO, &view);
        assert!(text.contains("\nCommitLimit:      393216 kB\n"), "{text}");
    }

    #[test]
    fn nothing_of_the_machine_shows() {
        let mut lines: Vec<u8> = Vec::new();
        let labels = fixture::meminfo_labels().chain(["Unaccepted", "CmaTotal", "FromTheFuture"]);
        for label in labels {
            lines.extend_from_slice(format!("{label}: 987654321 kB\n").as_bytes());
        }
        let mut view = fixture::view();
        view.host = Arc::new(Host::parse(HostTexts { meminfo: &lines, ..HostTexts::default() }));
        let text = fixture::render(&MEMINFO, &view);
        let shown: Vec<_> = text.lines().filter(|line| line.contains("987654321")).collect();
        assert_eq!(shown.len(), 2, "{shown:?}");
        assert!(shown[0].starts_with("VmallocTotal") && shown[1].starts_with("Hugepagesize"));
        assert!(text.contains("FromTheFuture:         0 kB\n"));
    }

    #[test]
    fn huge_pages_are_counted_in_pages_and_summed_in_kib() {
        let mut view = fixture::view();
        (view.memory.huge_total, view.memory.huge_free, view.memory.huge_reserved) = (6, 4, 1);
        view.memory.huge_bytes = 1 << 30 | 12 << 20;
        let text = fixture::render(&MEMINFO, &view);
        let parsed = Parsed::from_buf_read(text.as_bytes()).unwrap();
        assert_eq!((parsed.hugepages_total, parsed.hugepages_free), (Some(6), Some(4)));
        assert_eq!((parsed.hugepages_rsvd, parsed.hugepages_surp), (Some(1), Some(0)));
        assert!(
            text.contains("\nHugepagesize:       2048 kB\nHugetlb:         1060864 kB\n"),
            "{text}"
        );
    }

    /// The lines of every recorded kernel: no number of the machine is shown but its constants.
    #[test]
    fn nothing_of_any_recorded_machine_shows() {
        let fixtures = concat!(env!("CARGO_MANIFEST_DIR"), "/../tests/fixtures");
        let mut kernels = 0;
        for folder in std::fs::read_dir(fixtures).unwrap().flatten() {
            let Ok(text) = std::fs::read_to_string(folder.path().join("proc/meminfo")) else {
                continue;
            };
            kernels += 1;
            // Replaces the machine's numbers by recognizable ones.
            let marked: String = text
                .lines()
                .filter_map(|line| line.split_once(':'))
                .map(|(label, rest)| {
                    format!("{label}: 98765432{}\n", if rest.ends_with("kB") { " kB" } else { "" })
                })
                .collect();
            let mut view = fixture::view();
            view.memory.huge_total = 0;
            let texts = HostTexts { meminfo: marked.as_bytes(), ..HostTexts::default() };
            view.host = Arc::new(Host::parse(texts));
            let shown = fixture::render(&MEMINFO, &view);
            let labels = |text: &str| -> Vec<String> {
                text.lines().map(|line| line.split_once(':').unwrap().0.to_owned()).collect()
            };
            assert_eq!(
                labels(&shown),
                labels(&text),
                "{folder:?}: the kernel's lines in its order"
            );
            let leaks = shown.lines().filter(|line| line.contains("98765432"));
            let leaks: Vec<_> = leaks.map(|line| line.split_once(':').unwrap().0).collect();
            let constants = ["VmallocTotal", "Hugepagesize"];
            assert!(leaks.iter().all(|label| constants.contains(label)), "{folder:?}: {leaks:?}");
        }
        assert!(kernels >= 9, "{kernels}");
    }

    #[test]
    fn every_line_has_the_kernels_layout() {
        // The same label and a number of the same width give the same bytes.
        let longest = "HardwareCorrupted:     0 kB\nHugePages_Total:       3\n";
        for line in fixture::MEMINFO.lines().chain(longest.lines()) {
            let (label, rest) = line.split_once(':').unwrap();
            let value = rest.trim_end_matches("kB").trim().parse().unwrap();
            let mut out = Text::new();
            row(label, value, rest.ends_with("kB"), 0, &mut out);
            assert_eq!(std::str::from_utf8(out.as_bytes()).unwrap(), format!("{line}\n"));
        }
    }

    proptest! {
        #[test]
        fn sums_are_sums_of_what_is_printed(a: u32, b: u32, c: u32, d: u32) {
            let mut view = fixture::view();
            view.memory.active_anon = a.into();
            view.memory.active_file = b.into();
            view.memory.slab_reclaimable = c.into();
            view.memory.slab_unreclaimable = d.into();
            let text = fixture::render(&MEMINFO, &view);
            let parsed = Parsed::from_buf_read(text.as_bytes()).unwrap();
            let active = parsed.active_anon.unwrap() + parsed.active_file.unwrap();
            prop_assert_eq!(parsed.active, active);
            let slab = parsed.s_reclaimable.unwrap() + parsed.s_unreclaim.unwrap();
            prop_assert_eq!(parsed.slab, slab);
        }
    }
}
