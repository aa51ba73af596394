//! Samples the statistics of one container that only a few files show (`stats.rs`). It never lets a
//! counter decrease (`steady.rs`), also when the container moves to another cgroup. Start reading at
//! [`StatSampler::sample`].

use std::sync::Arc;

use ambit_kernel::text::scan;

use crate::context::Context;
use crate::host::RawFiles;
use crate::source::stats::{RawStats, StatFiles};
use crate::stats::{Device, Io, StatSet, Stats, VmEvents};
use crate::steady::Steady;

/// Reads the statistics of one container and keeps its counters from decreasing.
#[derive(Debug)]
pub(crate) struct StatSampler {
    files: StatFiles,
    raw: RawStats,
    devices: Vec<DeviceCounters>,
    events: [Steady; VmEvents::NAMES.len()],
    last: Stats,
    text: Vec<u8>,
}

#[derive(Debug)]
struct DeviceCounters {
    number: (u32, u32),
    counts: [Steady; 6],
}

impl StatSampler {
    pub(crate) fn new(files: StatFiles) -> Self {
        Self {
            files,
            raw: RawStats::default(),
            devices: Vec::new(),
            events: [Steady::default(); VmEvents::NAMES.len()],
            last: Stats::default(),
            text: Vec::new(),
        }
    }

    /// Switches to the files of another cgroup.
    pub(crate) fn follow(&mut self, files: StatFiles) {
        self.files = files;
    }

    pub(crate) fn close(&mut self) {
        self.files.close();
    }

    /// Samples these kinds of statistics. A kind that cannot be read keeps its last values.
    pub(crate) fn sample(&mut self, wanted: StatSet, now: u64, context: &Context) -> Stats {
        self.last.taken = self.last.taken.with(wanted, now);
        if StatSet::BASE.contains(wanted) {
            return self.last.clone();
        }
        let host = context.host.snapshot();
        let kernel = host.raw.as_deref();
        if wanted.contains(StatSet::IO) && self.files.io(&mut self.raw).is_ok() {
            self.count_io();
            self.last.devices = self.devices(kernel, wanted.contains(StatSet::VM_EVENTS));
        }
        if wanted.contains(StatSet::VM_EVENTS) {
            if self.files.events(&mut self.raw).is_ok() {
                for (counter, raw) in self.events.iter_mut().zip(self.raw.events) {
                    counter.advance(raw);
                }
                self.last.events = VmEvents(self.events.map(Steady::total));
            }
            self.last.vmstat = context.names.vmstat(kernel);
        }
        if wanted.contains(StatSet::PRESSURE)
            && let Ok(pressure) = self.files.pressure(&mut self.raw)
        {
            self.last.pressure = Arc::new(pressure);
        }
        if wanted.contains(StatSet::INTERRUPTS) {
            self.last.interrupts = context.names.interrupts(kernel);
        }
        self.last.clone()
    }

    fn count_io(&mut self) {
        for &(number, io) in &self.raw.io {
            let at = match self.devices.iter().position(|known| known.number == number) {
                Some(at) => at,
                None => {
                    self.devices.push(DeviceCounters { number, counts: Default::default() });
                    self.devices.len() - 1
                }
            };
            let Io { read_bytes, written_bytes, discarded_bytes, reads, writes, discards } = io;
            let raw = [read_bytes, written_bytes, discarded_bytes, reads, writes, discards];
            for (counter, raw) in self.devices[at].counts.iter_mut().zip(raw) {
                counter.advance(raw);
            }
        }
    }

    /// Returns the devices that exist, with their names.
    fn devices(&mut self, kernel: Option<&dyn RawFiles>, slaves: bool) -> Arc<[Device]> {
        let text = &mut self.text;
        let device = |counted: &DeviceCounters| {
            let (major, minor) = counted.number;
            let (name, size) = name_and_size(kernel?, major, minor, text)?;
            let [read_bytes, written_bytes, discarded_bytes, reads, writes, discards] =
                counted.counts.map(Steady::total);
            let io = Io { read_bytes, written_bytes, discarded_bytes, reads, writes, discards };
            let has_slaves = slaves && has_slaves(kernel?, major, minor);
            Some(Device { major, minor, name, size, io, has_slaves })
        };
        self.devices.iter().filter_map(device).collect()
    }
}

/// Reads name and size of a block device from sysfs.
fn name_and_size(
    kernel: &dyn RawFiles,
    major: u32,
    minor: u32,
    text: &mut Vec<u8>,
) -> Option<(Box<str>, u64)> {
    text.clear();
    kernel.read(&format!("sys/dev/block/{major}:{minor}/uevent"), text).ok()?;
    let name = scan::lines(text).find_map(|line| line.strip_prefix(b"DEVNAME="))?;
    let name = std::str::from_utf8(name).ok()?.into();
    text.clear();
    kernel.read(&format!("sys/dev/block/{major}:{minor}/size"), text).ok()?;
    // Counted in 512 bytes, whatever the block size of the device.
    Some((name, scan::decimal(text)?.saturating_mul(512)))
}

/// True for a stacked device. The folder `slaves` of other devices is empty, partitions have none.
fn has_slaves(kernel: &dyn RawFiles, major: u32, minor: u32) -> bool {
    kernel.is_populated(&format!("sys/dev/block/{major}:{minor}/slaves")).unwrap_or(false)
}

#[cfg(any(test, feature = "fuzzing"))]
pub(crate) fn parse(kernel: &dyn RawFiles) {
    let _ = name_and_size(kernel, 8, 0, &mut Vec::new());
}

#[cfg(test)]
mod tests {
    use std::io;

    use super::*;

    #[derive(Debug)]
    struct Sysfs;

    impl RawFiles for Sysfs {
        fn read(&self, path: &str, text: &mut Vec<u8>) -> io::Result<()> {
            let content: &[u8] = match path {
                "sys/dev/block/254:0/uevent" => b"MAJOR=254\nMINOR=0\nDEVNAME=vda\nDEVTYPE=disk\n",
                "sys/dev/block/254:0/size" | "sys/dev/block/253:0/size" => b"2048\n",
                "sys/dev/block/253:0/uevent" => b"DEVNAME=dm-0\n",
                _ => return Err(io::ErrorKind::NotFound.into()),
            };
            text.extend_from_slice(content);
            Ok(())
        }

        fn is_populated(&self, path: &str) -> io::Result<bool> {
            Ok(path == "sys/dev/block/253:0/slaves")
        }
    }

    #[test]
    fn stacked_devices_have_slaves() {
        let mut sampler = StatSampler::new(StatFiles::default());
        let io = Io { read_bytes: 1, ..Io::default() };
        sampler.raw.io = vec![((254, 0), io), ((253, 0), io)];
        sampler.count_io();
        let devices = sampler.devices(Some(&Sysfs), true);
        let found: Vec<_> = devices.iter().map(|dev| (&*dev.name, dev.has_slaves)).collect();
        assert_eq!(found, [("vda", false), ("dm-0", true)]);
    }

    #[test]
    fn devices_have_the_kernels_names_and_steady_counters() {
        let mut sampler = StatSampler::new(StatFiles::default());
        let io = |read_bytes| Io { read_bytes, reads: 1, ..Io::default() };
        sampler.raw.io = vec![((254, 0), io(4096)), ((8, 0), io(1))];
        sampler.count_io();
        // The container was moved to a cgroup with fewer reads.
        sampler.raw.io = vec![((254, 0), io(512))];
        sampler.count_io();
        let devices = sampler.devices(Some(&Sysfs), false);
        assert_eq!(devices.len(), 1, "a device that is gone has no name");
        let vda = &devices[0];
        assert_eq!((vda.major, vda.minor, &*vda.name, vda.size), (254, 0, "vda", 1 << 20));
        assert_eq!((vda.io.read_bytes, vda.io.reads), (4608, 1));
    }
}
