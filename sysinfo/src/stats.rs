//! Statistics that only a few files show: block I/O by device, vm events, pressure, and the names
//! of the running kernel's interrupts and vmstat keys.
//!
//! They are sampled only for a reader of such a file, so that a read of `/proc/meminfo` does not
//! pay for them; [`Stats::sampled`] says which of them are as recent as the rest of the view.
//! Counters never decrease (`steady.rs`). Start reading at [`StatSet`].

use std::ops::BitOr;
use std::sync::Arc;

use ambit_kernel::text::scan;

use crate::context::Context;
use crate::host::RawFiles;
use crate::source::stats::{RawStats, StatFiles};
use crate::steady::Steady;

/// A set of kinds of statistics.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct StatSet(u8);

impl StatSet {
    /// No statistics: what most files need.
    pub const NONE: Self = Self(0);
    /// Input and output by device.
    pub const IO: Self = Self(1);
    /// Events of memory management (`/proc/vmstat`).
    pub const VM_EVENTS: Self = Self(2);
    /// Pressure stall information.
    pub const PRESSURE: Self = Self(4);
    /// Names of the interrupts that belong to no device.
    pub const INTERRUPTS: Self = Self(8);

    /// True if the set contains all of these.
    #[must_use]
    pub fn contains(self, others: Self) -> bool {
        self.0 & others.0 == others.0
    }
}

impl BitOr for StatSet {
    type Output = Self;

    fn bitor(self, other: Self) -> Self {
        Self(self.0 | other.0)
    }
}

/// Statistics of a container.
#[derive(Debug, Clone, Default)]
pub struct Stats {
    /// Which kinds were sampled with the rest of the view. The others are empty or from an earlier
    /// sample.
    pub sampled: StatSet,
    /// Devices with I/O of the container, in the order of their first use.
    pub devices: Arc<[Device]>,
    /// Counts of vm events.
    pub events: VmEvents,
    /// Texts of the pressure files.
    pub pressure: Arc<Pressure>,
    /// The keys of the running kernel's `/proc/vmstat`, in its order.
    pub vmstat: Arc<[Box<str>]>,
    /// The lines of the running kernel's `/proc/interrupts` that belong to no device.
    pub interrupts: Arc<[Interrupt]>,
}

/// A block device and the container's I/O on it since it started.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Device {
    /// Device number.
    pub major: u32,
    /// Device number.
    pub minor: u32,
    /// The kernel's name, such as `vda`.
    pub name: Box<str>,
    /// Its size in bytes.
    pub size: u64,
    /// The counters.
    pub io: Io,
    /// True for a stacked device (LVM, dm-crypt, md): its slaves count the same bytes. Known if
    /// [`StatSet::VM_EVENTS`] were sampled.
    pub has_slaves: bool,
}

/// Input and output since the container started. Times and merged requests are not accounted
/// by cgroups.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
#[allow(missing_docs, reason = "the names say it")]
pub struct Io {
    pub read_bytes: u64,
    pub written_bytes: u64,
    pub discarded_bytes: u64,
    pub reads: u64,
    pub writes: u64,
    pub discards: u64,
}

/// Events that `/proc/vmstat` counts under the same name as `memory.stat` or, the kills,
/// `memory.events` (`memory.oom_control` on cgroup v1).
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct VmEvents([u64; VmEvents::NAMES.len()]);

impl VmEvents {
    /// Their names, sorted.
    pub const NAMES: [&'static str; 47] = [
        "numa_hint_faults",
        "numa_pages_migrated",
        "numa_pte_updates",
        "numa_task_migrated",
        "numa_task_swapped",
        "oom_kill",
        "pgactivate",
        "pgdeactivate",
        "pgdemote_direct",
        "pgdemote_khugepaged",
        "pgdemote_kswapd",
        "pgdemote_proactive",
        "pgfault",
        "pglazyfree",
        "pglazyfreed",
        "pgmajfault",
        "pgpromote_success",
        "pgrefill",
        "pgscan_direct",
        "pgscan_khugepaged",
        "pgscan_kswapd",
        "pgscan_proactive",
        "pgsteal_direct",
        "pgsteal_khugepaged",
        "pgsteal_kswapd",
        "pgsteal_proactive",
        "pswpin",
        "pswpout",
        "swpin_zero",
        "swpout_zero",
        "thp_collapse_alloc",
        "thp_fault_alloc",
        "thp_swpout",
        "thp_swpout_fallback",
        "workingset_activate",
        "workingset_activate_anon",
        "workingset_activate_file",
        "workingset_nodereclaim",
        "workingset_refault",
        "workingset_refault_anon",
        "workingset_refault_file",
        "workingset_restore",
        "workingset_restore_anon",
        "workingset_restore_file",
        "zswpin",
        "zswpout",
        "zswpwb",
    ];

    /// Returns a count; `None` for an event that cgroups do not account.
    #[must_use]
    pub fn get(&self, name: &str) -> Option<u64> {
        Self::index(name.as_bytes()).map(|at| self.0[at])
    }

    /// Sets a count, for tests and examples.
    #[must_use]
    pub fn with(mut self, name: &str, count: u64) -> Self {
        if let Some(at) = Self::index(name.as_bytes()) {
            self.0[at] = count;
        }
        self
    }

    pub(crate) fn index(name: &[u8]) -> Option<usize> {
        Self::NAMES.iter().position(|known| known.as_bytes() == name)
    }
}

impl Default for VmEvents {
    fn default() -> Self {
        Self([0; Self::NAMES.len()])
    }
}

/// The kernel's text of each pressure file of the container's cgroup; `None` if there is no such
/// file.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
#[allow(missing_docs, reason = "the fields carry the kernel's own names")]
pub struct Pressure {
    pub cpu: Option<Box<[u8]>>,
    pub io: Option<Box<[u8]>>,
    pub memory: Option<Box<[u8]>>,
}

/// A line of `/proc/interrupts` that belongs to no device, such as `LOC`.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Interrupt {
    /// The text before the colon.
    pub label: Box<str>,
    /// The text after the counts.
    pub description: Box<str>,
    /// True if it has a count for each processor. Some, such as `ERR`, have one for the machine.
    pub per_cpu: bool,
}

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
    pub(crate) fn sample(&mut self, wanted: StatSet, context: &Context) -> Stats {
        self.last.sampled = wanted;
        if wanted == StatSet::NONE {
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

    #[test]
    fn events_are_found_by_name() {
        let events = VmEvents::default().with("pgfault", 7);
        assert_eq!(events.get("pgfault"), Some(7));
        assert_eq!(events.get("pgmajfault"), Some(0));
        assert_eq!(events.get("pgalloc_normal"), None);
    }

    #[test]
    fn a_set_contains_its_parts() {
        let both = StatSet::IO | StatSet::VM_EVENTS;
        assert!(both.contains(StatSet::IO) && both.contains(StatSet::NONE));
        assert!(!StatSet::IO.contains(both));
    }
}
