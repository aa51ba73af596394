//! `/proc/partitions`: the block devices with I/O of the container, with their sizes.
//!
//! Other disks of the machine are not shown. Layout of `show_partition` in `block/genhd.c`: blocks
//! of 1024 bytes.

use ambit_sysinfo::{StatSet, View};

use crate::overlay::OverlayFile;
use crate::text::Text;

/// `/proc/partitions`.
pub static PARTITIONS: OverlayFile = OverlayFile {
    // A container can use any number of devices.
    longest: |_| 64 << 10,
    ..OverlayFile::new("proc/partitions", StatSet::IO, render)
};

fn render(view: &View, out: &mut Text) {
    out.put("major minor  #blocks  name").newline().newline();
    for device in view.stats.devices.iter().filter(|device| device.size > 0) {
        out.right(device.major.into(), 4).space().space().right(device.minor.into(), 7).space();
        out.right(device.size >> 10, 10).space().put(device.name.as_bytes()).newline();
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::fixture;

    #[test]
    fn lists_the_devices_in_the_kernels_columns() {
        assert_eq!(
            fixture::render(&PARTITIONS, &fixture::view()),
            "major minor  #blocks  name\n\n 254        0  268435456 vda\n"
        );
    }
}
