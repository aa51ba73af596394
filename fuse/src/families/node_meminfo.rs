//! `nodeN/meminfo`: the part of the container's memory that belongs to one node, in the lines and
//! columns of the running kernel (`drivers/base/node.c`). All shown nodes together are what
//! `/proc/meminfo` shows, unless that is more than they have.

use ambit_sysinfo::View;
use ambit_sysinfo::topology::NodeAttributes;

use crate::files::meminfo::number;
use crate::text::Text;

/// Writes the file.
pub(super) fn render(view: &View, node: &NodeAttributes, out: &mut Text) {
    let part = |number: u64| view.part_of(node.number, number);
    let kib = |label| number(label, view).unwrap_or(0);
    let total = part(kib("MemTotal"));
    let free = part(kib("MemFree")).min(total);
    for line in &node.meminfo {
        let value = match &*line.label {
            "MemTotal" => total,
            "MemFree" => free,
            "MemUsed" => total - free,
            // The kernel counts block device pages and the swap cache of a node among its file
            // pages.
            "FilePages" => part(kib("Cached").saturating_add(kib("SwapCached"))),
            label => part(kib(label)),
        };
        out.put("Node ").dec(node.number.into()).space().put(line.label.as_bytes()).byte(b':');
        out.right(value, line.width);
        if line.kib {
            out.put(" kB");
        }
        out.newline();
    }
}
