//! `/proc/vmstat`: the running kernel's own keys in its order, with the container's numbers.
//!
//! Keys that cgroups account have the container's numbers: pages from the same view as
//! `/proc/meminfo`, events of `memory.stat`, block I/O. Every other key is 0, so that an unknown
//! key of a future kernel shows nothing of the machine. Layout of `vmstat_show` in `mm/vmstat.c`.

use ambit_sysinfo::{StatSet, View};

use crate::overlay::OverlayFile;
use crate::text::Text;

/// `/proc/vmstat`.
pub static VMSTAT: OverlayFile = OverlayFile {
    // Two hundred keys of at most 32 letters, and numbers.
    longest: |_| 16 << 10,
    ..OverlayFile::new(
        "proc/vmstat",
        StatSet::MEMORY.and(StatSet::VM_EVENTS).and(StatSet::IO),
        render,
    )
};

fn render(view: &View, out: &mut Text) {
    for key in view.stats.vmstat.iter() {
        let value = pages(key, view).or_else(|| events(key, view)).unwrap_or(0);
        out.put(key.as_bytes()).space().dec(value).newline();
    }
}

/// Returns the current number of pages of a kind; kernel stacks are in KiB as on the machine.
pub(super) fn pages(key: &str, view: &View) -> Option<u64> {
    let memory = &view.memory;
    let bytes = match key {
        "nr_free_pages" => memory.free,
        "nr_inactive_anon" | "nr_zone_inactive_anon" => memory.inactive_anon,
        "nr_active_anon" | "nr_zone_active_anon" => memory.active_anon,
        "nr_inactive_file" | "nr_zone_inactive_file" => memory.inactive_file,
        "nr_active_file" | "nr_zone_active_file" => memory.active_file,
        "nr_unevictable" | "nr_zone_unevictable" => memory.unevictable,
        "nr_slab_reclaimable" => memory.slab_reclaimable,
        "nr_slab_unreclaimable" => memory.slab_unreclaimable,
        "nr_anon_pages" => memory.anon,
        "nr_mapped" => memory.mapped,
        "nr_file_pages" => memory.cached,
        "nr_dirty" => memory.dirty,
        "nr_writeback" => memory.writeback,
        "nr_shmem" => memory.shmem,
        // Cgroups account what cannot be reclaimed, which is locked but for rare cases.
        "nr_mlock" => memory.unevictable,
        "nr_zone_write_pending" => memory.dirty.saturating_add(memory.writeback),
        "nr_page_table_pages" => memory.page_tables,
        "nr_sec_page_table_pages" => memory.secondary_page_tables,
        "nr_swapcached" => view.swap.cached,
        "nr_kernel_stack" => return Some(memory.kernel_stack >> 10),
        "nr_anon_transparent_hugepages" => return Some(huge_pages(memory.anon_huge, view)),
        "nr_shmem_hugepages" => return Some(huge_pages(memory.shmem_huge, view)),
        "nr_file_hugepages" => return Some(huge_pages(memory.file_huge, view)),
        _ => return None,
    };
    bytes.checked_div(view.host.page_size)
}

/// The kernel counts transparent huge pages as such, not in small pages.
fn huge_pages(bytes: u64, view: &View) -> u64 {
    bytes.checked_div(view.host.transparent_page).unwrap_or(0)
}

/// Returns the count of an event. `pgpgin` and `pgpgout` count KiB, whatever their names say.
fn events(key: &str, view: &View) -> Option<u64> {
    // A stacked device and its slaves count the same bytes; the kernel counts each request once.
    let devices = view.stats.devices.iter().filter(|device| !device.has_slaves);
    match key {
        "pgpgin" => Some(devices.fold(0, |kib, d| d.io.read_bytes.saturating_add(kib)) >> 10),
        "pgpgout" => Some(devices.fold(0, |kib, d| d.io.written_bytes.saturating_add(kib)) >> 10),
        _ => view.stats.events.get(key),
    }
}

#[cfg(test)]
mod tests {
    use std::collections::HashMap;

    use super::*;
    use crate::fixture;

    fn shown() -> HashMap<String, u64> {
        shown_of(&fixture::view())
    }

    fn shown_of(view: &View) -> HashMap<String, u64> {
        let text = fixture::render(&VMSTAT, view);
        let pair = |line: &str| {
            let (key, value) = line.split_once(' ').unwrap();
            (key.to_owned(), value.parse().unwrap())
        };
        text.lines().map(pair).collect()
    }

    #[test]
    fn has_the_running_kernels_keys_in_its_order() {
        let text = fixture::render(&VMSTAT, &fixture::view());
        let keys = |text: &str| -> Vec<String> {
            text.lines().map(|line| line.split_once(' ').unwrap().0.to_owned()).collect()
        };
        assert_eq!(keys(&text), keys(fixture::VMSTAT));
    }

    #[test]
    fn numbers_are_the_containers() {
        let shown = shown();
        assert_eq!(shown["nr_free_pages"], (100 << 20) / 4096);
        assert_eq!(shown["nr_kernel_stack"], 24 << 10);
        assert_eq!((shown["pgfault"], shown["pgmajfault"]), (4242, 17));
        assert_eq!((shown["pgpgin"], shown["pgpgout"]), (3 << 10, 5 << 10));
    }

    #[test]
    fn page_counts_agree_with_meminfo() {
        let mut view = fixture::view();
        std::sync::Arc::make_mut(&mut view.host).transparent_page = 2 << 20;
        view.memory.anon_huge = 6 << 20;
        view.memory.file_huge = 4 << 20;
        view.memory.unevictable = 8192;
        view.stats.events = view.stats.events.with("oom_kill", 3);
        let shown = shown_of(&view);
        assert_eq!(shown["oom_kill"], 3);
        assert_eq!((shown["nr_mlock"], shown["nr_unevictable"]), (2, 2));
        assert_eq!((shown["nr_anon_transparent_hugepages"], shown["nr_file_hugepages"]), (3, 2));
        let meminfo = fixture::render(&crate::files::meminfo::MEMINFO, &view);
        assert!(meminfo.contains("\nMlocked:               8 kB\n"), "{meminfo}");
    }

    #[test]
    fn a_stacked_device_and_its_slaves_count_once() {
        let mut view = fixture::view();
        let mut mapped = view.stats.devices[0].clone();
        (mapped.name, mapped.has_slaves) = ("dm-0".into(), true);
        view.stats.devices = [view.stats.devices[0].clone(), mapped].into();
        assert_eq!(shown_of(&view)["pgpgin"], shown()["pgpgin"]);
    }

    #[test]
    fn pages_have_the_size_of_the_machines() {
        for size in [4096, 16_384, 65_536] {
            let mut view = fixture::view();
            let host = std::sync::Arc::make_mut(&mut view.host);
            host.page_size = size;
            assert_eq!(pages("nr_free_pages", &view), Some((100 << 20) / size));
            assert_eq!(pages("nr_kernel_stack", &view), Some(24 << 10), "in KiB");
        }
    }

    #[test]
    fn nothing_of_the_machine_is_shown() {
        let shown = shown();
        for key in ["numa_hit", "pgalloc_normal", "pgfree", "nr_dirtied", "nr_shmem_pmdmapped"] {
            assert_eq!(shown[key], 0, "{key}");
        }
    }
}
