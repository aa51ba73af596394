//! `/proc/slabinfo`: no caches.
//!
//! The kernel accounts slab of a cgroup as two sums only (`Slab:` of `/proc/meminfo`). The
//! machine's list shows the work of other containers and is for root on the host: it is never
//! shown. This file has the mode of the kernel's. Layout of `print_slabinfo_header` in
//! `mm/slab_common.c`.

use ambit_sysinfo::{StatSet, View};

use crate::overlay::OverlayFile;
use crate::text::Text;

/// `/proc/slabinfo`.
pub static SLABINFO: OverlayFile =
    OverlayFile { mode: 0o400, ..OverlayFile::new("proc/slabinfo", StatSet::NONE, render) };

fn render(_: &View, out: &mut Text) {
    out.put("slabinfo - version: 2.1").newline();
    out.put("# name            <active_objs> <num_objs> <objsize> <objperslab> <pagesperslab>");
    out.put(" : tunables <limit> <batchcount> <sharedfactor>");
    out.put(" : slabdata <active_slabs> <num_slabs> <sharedavail>").newline();
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::fixture;

    #[test]
    fn is_the_heading_alone_and_for_root_alone() {
        let text = fixture::render(&SLABINFO, &fixture::view());
        assert_eq!(text.lines().count(), 2);
        assert!(text.starts_with("slabinfo - version: 2.1\n# name  "));
        assert_eq!(SLABINFO.mode, 0o400);
    }
}
