//! `/proc/spl/kstat/zfs/arcstats`: ZFS's cache, of which a container has nothing.
//!
//! The cache is charged to no cgroup, and programs (htop, btop, glances) subtract its size from the
//! used memory of `/proc/meminfo`: the machine's size makes the container's use negative. The rows are
//! those of the running module, each 0: programs show no cache then, and those that need a row find
//! it. The kernel has this file only where ZFS is loaded. Layout of `kstat_seq_show` in
//! `module/os/linux/spl/spl-kstat.c` of OpenZFS.

use ambit_sysinfo::{StatSet, View};

use crate::overlay::OverlayFile;
use crate::text::Text;

/// The size of `kstat_named_t`.
const ROW: u64 = 272;

/// `/proc/spl/kstat/zfs/arcstats`.
pub static ARCSTATS: OverlayFile = OverlayFile {
    // 150 rows of OpenZFS 2.3.
    longest: |_| 16 << 10,
    ..OverlayFile::new("proc/spl/kstat/zfs/arcstats", StatSet::ARC, render)
};

fn render(view: &View, out: &mut Text) {
    let count = view.stats.arc.len() as u64;
    out.put("0 1 0x01 ").dec(count).space().dec(count * ROW).put(" 0 0").newline();
    row("name", "type data", out);
    for name in view.stats.arc.iter() {
        row(name, "4    0", out);
    }
}

/// As wide as the column of names.
const BLANKS: &str = "                               ";

fn row(name: &str, rest: &str, out: &mut Text) {
    out.put(name).put(BLANKS.get(name.len()..).unwrap_or_default()).space();
    out.put(rest).newline();
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::fixture;

    #[test]
    fn the_rows_are_those_of_the_module_without_its_numbers() {
        let mut view = fixture::view();
        view.stats.arc =
            ["hits", "size", "a_name_of_more_than_thirty_letters"].map(Into::into).into();
        assert_eq!(
            fixture::render(&ARCSTATS, &view),
            "0 1 0x01 3 816 0 0\n\
             name                            type data\n\
             hits                            4    0\n\
             size                            4    0\n\
             a_name_of_more_than_thirty_letters 4    0\n"
        );
    }
}
