//! `/proc/diskstats`: the block devices with I/O of the container.
//!
//! Layout of `diskstats_show` in `block/genhd.c` since Linux 5.5: 20 columns. Cgroups account
//! bytes and operations; merged requests, times, requests in flight and flushes are 0.

use ambit_sysinfo::stats::Device;
use ambit_sysinfo::{StatSet, View};

use crate::overlay::OverlayFile;
use crate::text::Text;

/// `/proc/diskstats`.
pub static DISKSTATS: OverlayFile = OverlayFile {
    // A container can use any number of devices.
    longest: |_| 64 << 10,
    ..OverlayFile::new("proc/diskstats", StatSet::IO, render)
};

fn render(view: &View, out: &mut Text) {
    for device in view.stats.devices.iter() {
        line(device, out);
    }
}

fn line(device: &Device, out: &mut Text) {
    let io = &device.io;
    out.right(device.major.into(), 4).space().right(device.minor.into(), 7).space();
    out.put(device.name.as_bytes());
    // Operations, merged ones, sectors of 512 bytes, milliseconds.
    let kinds = [
        (io.reads, io.read_bytes),
        (io.writes, io.written_bytes),
        (io.discards, io.discarded_bytes),
    ];
    for (at, (operations, bytes)) in kinds.into_iter().enumerate() {
        out.space().dec(operations).put(" 0 ").dec(bytes / 512).put(" 0");
        if at == 1 {
            // In flight, time busy, weighted time.
            out.put(" 0 0 0");
        }
    }
    out.put(" 0 0").newline();
}

#[cfg(test)]
mod tests {
    use procfs_core::DiskStat;

    use super::*;
    use crate::fixture;

    #[test]
    fn a_device_in_the_kernels_twenty_columns() {
        let text = fixture::render(&DISKSTATS, &fixture::view());
        assert_eq!(text, " 254       0 vda 30 0 6144 0 50 0 10240 0 0 0 0 7 0 2048 0 0 0\n");
        assert_eq!(text.split_whitespace().count(), 20);
    }

    #[test]
    fn procfs_reads_what_the_view_says() {
        let text = fixture::render(&DISKSTATS, &fixture::view());
        let parsed = DiskStat::from_line(text.trim_end()).unwrap();
        assert_eq!((parsed.major, parsed.minor, parsed.name.as_str()), (254, 0, "vda"));
        assert_eq!((parsed.reads, parsed.sectors_read), (30, 6144));
        assert_eq!((parsed.writes, parsed.sectors_written), (50, 10_240));
        assert_eq!((parsed.discards, parsed.sectors_discarded), (Some(7), Some(2048)));
        assert_eq!((parsed.flushes, parsed.time_flushing), (Some(0), Some(0)));
    }

    #[test]
    fn without_input_and_output_it_is_empty() {
        let mut view = fixture::view();
        view.stats.devices = std::sync::Arc::default();
        assert_eq!(fixture::render(&DISKSTATS, &view), "");
    }
}
