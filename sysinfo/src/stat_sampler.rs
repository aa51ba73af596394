//! Samples the statistics of one container that only a few files show (`stats.rs`). It never lets a
//! counter decrease (`steady.rs`), also when the container moves to another cgroup. Start reading at
//! [`StatSampler::sample`].

use std::sync::Arc;

use ambit_kernel::text::scan;

use crate::context::Context;
use crate::host::RawFiles;
use crate::membership::Membership;
use crate::source::stats::{RawStats, StatFiles};
use crate::stats::{Device, Io, StatSet, Stats, VmEvents};
use crate::steady::Steady;

/// Reads the statistics of one container and keeps its counters from decreasing.
#[derive(Debug, Default)]
pub(crate) struct StatSampler {
    last: Stats,
    /// `None` before the first reader.
    counters: Option<Box<Counters>>,
}

#[derive(Debug)]
struct Counters {
    /// `None` while they are closed.
    files: Option<StatFiles>,
    raw: RawStats,
    devices: Vec<DeviceCounters>,
    events: [Steady; VmEvents::NAMES.len()],
    text: Vec<u8>,
}

#[derive(Debug)]
struct DeviceCounters {
    number: (u32, u32),
    counts: [Steady; 6],
}

impl StatSampler {
    /// Closes the files; the next sample opens those of the cgroup that the container is in then.
    pub(crate) fn close(&mut self) {
        if let Some(counters) = &mut self.counters {
            counters.files = None;
        }
    }

    /// Samples these kinds of statistics. A kind that cannot be read keeps its last values.
    pub(crate) fn sample(
        &mut self,
        wanted: StatSet,
        now: u64,
        membership: &Membership,
        context: &Context,
    ) -> Stats {
        let Self { last, counters } = self;
        last.taken = last.taken.with(wanted, now);
        if StatSet::BASE.contains(wanted) {
            return last.clone();
        }
        let counters = counters.get_or_insert_with(Box::default);
        let host = context.host.snapshot();
        let kernel = host.raw.as_deref();
        let Counters { files, raw, .. } = &mut **counters;
        let files = files.get_or_insert_with(|| StatFiles::new(&context.hierarchies, membership));
        let io = wanted.contains(StatSet::IO).then(|| files.io(raw));
        let events = wanted.contains(StatSet::VM_EVENTS).then(|| files.events(raw));
        if wanted.contains(StatSet::PRESSURE)
            && let Ok(pressure) = files.pressure(raw)
        {
            last.pressure = Arc::new(pressure);
        }
        if let Some(Ok(())) = io {
            counters.count_io();
            last.devices = counters.devices(kernel, wanted.contains(StatSet::VM_EVENTS));
        }
        if let Some(Ok(())) = events {
            for (counter, raw) in counters.events.iter_mut().zip(counters.raw.events) {
                counter.advance(raw);
            }
            last.events = VmEvents(Some(Arc::new(counters.events.map(Steady::total))));
        }
        if wanted.contains(StatSet::VM_EVENTS) {
            last.vmstat = context.names.vmstat(kernel);
        }
        if wanted.contains(StatSet::ARC) {
            last.arc = context.names.arc(kernel);
        }
        if wanted.contains(StatSet::INTERRUPTS) {
            last.interrupts = context.names.interrupts(kernel);
        }
        last.clone()
    }
}

impl Default for Counters {
    fn default() -> Self {
        Self {
            files: None,
            raw: RawStats::default(),
            devices: Vec::new(),
            events: [Steady::default(); VmEvents::NAMES.len()],
            text: Vec::new(),
        }
    }
}

impl Counters {
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
        let mut counters = Counters::default();
        let io = Io { read_bytes: 1, ..Io::default() };
        counters.raw.io = vec![((254, 0), io), ((253, 0), io)];
        counters.count_io();
        let devices = counters.devices(Some(&Sysfs), true);
        let found: Vec<_> = devices.iter().map(|dev| (&*dev.name, dev.has_slaves)).collect();
        assert_eq!(found, [("vda", false), ("dm-0", true)]);
    }

    #[test]
    fn devices_have_the_kernels_names_and_steady_counters() {
        let mut counters = Counters::default();
        let io = |read_bytes| Io { read_bytes, reads: 1, ..Io::default() };
        counters.raw.io = vec![((254, 0), io(4096)), ((8, 0), io(1))];
        counters.count_io();
        // The container was moved to a cgroup with fewer reads.
        counters.raw.io = vec![((254, 0), io(512))];
        counters.count_io();
        let devices = counters.devices(Some(&Sysfs), false);
        assert_eq!(devices.len(), 1, "a device that is gone has no name");
        let vda = &devices[0];
        assert_eq!((vda.major, vda.minor, &*vda.name, vda.size), (254, 0, "vda", 1 << 20));
        assert_eq!((vda.io.read_bytes, vda.io.reads), (4608, 1));
    }
}
