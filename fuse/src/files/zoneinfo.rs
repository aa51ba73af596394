//! `/proc/zoneinfo`: the container's memory as one zone of one node.
//!
//! A container has no zones, but programs read this file for free pages and watermarks (psutil adds
//! up the `low` ones). The zone has the pages of `/proc/meminfo` and `/proc/vmstat`, and no
//! watermarks or reserves. Layout of `zoneinfo_show_print` in `mm/vmstat.c`.

use ambit_sysinfo::{StatSet, View};

use super::vmstat::pages;
use crate::overlay::OverlayFile;
use crate::text::Text;

/// Counters of a node.
const NODE: [&str; 17] = [
    "nr_inactive_anon",
    "nr_active_anon",
    "nr_inactive_file",
    "nr_active_file",
    "nr_unevictable",
    "nr_slab_reclaimable",
    "nr_slab_unreclaimable",
    "nr_anon_pages",
    "nr_mapped",
    "nr_file_pages",
    "nr_dirty",
    "nr_writeback",
    "nr_shmem",
    "nr_shmem_hugepages",
    "nr_file_hugepages",
    "nr_anon_transparent_hugepages",
    "nr_kernel_stack",
];
/// Counters of a zone.
const ZONE: [&str; 8] = [
    "nr_free_pages",
    "nr_zone_inactive_anon",
    "nr_zone_active_anon",
    "nr_zone_inactive_file",
    "nr_zone_active_file",
    "nr_zone_unevictable",
    "nr_zone_write_pending",
    "nr_mlock",
];

/// `/proc/zoneinfo`.
pub static ZONEINFO: OverlayFile = OverlayFile::new("proc/zoneinfo", StatSet::MEMORY, render);

fn render(view: &View, out: &mut Text) {
    out.put("Node 0, zone   Normal").newline().put("  per-node stats").newline();
    rows(&NODE, view, out);
    let total = view.memory.total.checked_div(view.host.page_size).unwrap_or(0);
    out.put("  pages free     ").dec(pages("nr_free_pages", view).unwrap_or(0)).newline();
    for (label, value) in [
        ("boost", 0),
        ("min", 0),
        ("low", 0),
        ("high", 0),
        ("spanned", total),
        ("present", total),
        ("managed", total),
        ("cma", 0),
    ] {
        out.put("        ").put(label).pad_to(17).dec(value).newline();
    }
    out.put("        protection: (0, 0, 0, 0, 0)").newline();
    rows(&ZONE, view, out);
    out.put("  pagesets").newline();
    out.put("  node_unreclaimable:  0").newline().put("  start_pfn:           0").newline();
}

fn rows(keys: &[&str], view: &View, out: &mut Text) {
    for key in keys {
        out.put("      ").put(key).pad_to(18).space();
        out.dec(pages(key, view).unwrap_or(0)).newline();
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::fixture;

    #[test]
    fn one_zone_with_the_pages_of_meminfo_and_no_watermarks() {
        let text = fixture::render(&ZONEINFO, &fixture::view());
        assert!(text.starts_with("Node 0, zone   Normal\n  per-node stats\n"), "{text}");
        for line in [
            "      nr_inactive_anon 3072\n",
            "      nr_mapped    4352\n",
            "  pages free     25600\n",
            "        low      0\n",
            "        managed  65536\n",
        ] {
            assert!(text.contains(line), "{line}{text}");
        }
        assert_eq!(text.matches("zone  ").count(), 1);
    }
}
