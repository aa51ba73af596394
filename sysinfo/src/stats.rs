//! The groups of numbers in a view, and the statistics that only a few files show: block I/O by
//! device, vm events, pressure, and the names of the running kernel's interrupts and vmstat keys.
//!
//! A file names the groups that it shows, and only those are read for it: `/proc/uptime` does not
//! pay for `memory.stat`. [`Stats::taken`] says when each group of a view was read. `container.rs`
//! samples the groups, `stat_sampler.rs` the statistics. Start reading at [`StatSet`].

use std::ops::BitOr;
use std::sync::Arc;

/// A set of groups of numbers.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct StatSet(u16);

impl StatSet {
    /// No group: clocks, load averages and the machine's constants, which cost no read.
    pub const NONE: Self = Self(0);
    /// Input and output by device.
    pub const IO: Self = Self(1);
    /// Events of memory management (`/proc/vmstat`).
    pub const VM_EVENTS: Self = Self(2);
    /// Pressure stall information.
    pub const PRESSURE: Self = Self(4);
    /// Names of the interrupts that belong to no device.
    pub const INTERRUPTS: Self = Self(8);
    /// Memory, swap, huge pages, and the memory nodes of the cpuset.
    pub const MEMORY: Self = Self(16);
    /// The visible processors: cpuset and quota.
    pub const PROCESSORS: Self = Self(32);
    /// Processor time used, not divided among processors.
    pub(crate) const USAGE: Self = Self(64);
    /// Processor time of each visible processor. It is divided among those that are visible when
    /// it is read, so that both are read together.
    pub const TIMES: Self = Self(64 | 32);
    /// The number of threads.
    pub const THREADS: Self = Self(128);
    /// Names of the rows of ZFS's `arcstats`.
    pub const ARC: Self = Self(256);
    /// The groups that every view has. The others are empty before their first reader.
    pub const BASE: Self = Self(16 | 32 | 64 | 128);

    const COUNT: usize = 9;

    /// True if the set contains all of these.
    pub fn contains(self, others: Self) -> bool {
        self.0 & others.0 == others.0
    }

    /// Returns the groups of both sets, as `|` does.
    #[must_use]
    pub const fn and(self, others: Self) -> Self {
        Self(self.0 | others.0)
    }

    /// Returns the groups that are not in the other set.
    #[must_use]
    pub const fn without(self, others: Self) -> Self {
        Self(self.0 & !others.0)
    }

    fn positions(self) -> impl Iterator<Item = usize> {
        (0..Self::COUNT).filter(move |at| self.0 >> at & 1 == 1)
    }
}

impl std::ops::BitOrAssign for StatSet {
    fn bitor_assign(&mut self, other: Self) {
        *self = *self | other;
    }
}

impl BitOr for StatSet {
    type Output = Self;

    fn bitor(self, other: Self) -> Self {
        Self(self.0 | other.0)
    }
}

/// When each group of a view was read, in nanoseconds after boot; 0 for never.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct Taken([u64; StatSet::COUNT]);

impl Taken {
    /// Returns the time of the group that was read first; `u64::MAX` for no group.
    pub fn oldest(&self, groups: StatSet) -> u64 {
        groups.positions().map(|at| self.0[at]).min().unwrap_or(u64::MAX)
    }

    /// Sets the time of these groups.
    #[must_use]
    pub fn with(mut self, groups: StatSet, now: u64) -> Self {
        groups.positions().for_each(|at| self.0[at] = now);
        self
    }
}

/// Statistics of a container.
#[derive(Debug, Clone, Default)]
pub struct Stats {
    /// When each group of the view was read. The others are of an earlier sample.
    pub taken: Taken,
    /// Devices with I/O of the container, in the order of their first use.
    pub devices: Arc<[Device]>,
    /// Counts of vm events.
    pub events: VmEvents,
    /// Texts of the pressure files.
    pub pressure: Arc<Pressure>,
    /// The keys of the running kernel's `/proc/vmstat`, in its order.
    pub vmstat: Arc<[Box<str>]>,
    /// The rows of `/proc/spl/kstat/zfs/arcstats`, in the order of the module; none without ZFS.
    pub arc: Arc<[Box<str>]>,
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
///
/// `None` before the first reader: most containers have none.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct VmEvents(pub(crate) Option<Arc<[u64; VmEvents::NAMES.len()]>>);

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
    pub fn get(&self, name: &str) -> Option<u64> {
        let at = Self::index(name.as_bytes())?;
        Some(self.0.as_ref().map_or(0, |counts| counts[at]))
    }

    /// Sets a count, for tests and examples.
    #[must_use]
    pub fn with(mut self, name: &str, count: u64) -> Self {
        if let Some(at) = Self::index(name.as_bytes()) {
            Arc::make_mut(self.0.get_or_insert_with(|| Arc::new([0; Self::NAMES.len()])))[at] =
                count;
        }
        self
    }

    pub(crate) fn index(name: &[u8]) -> Option<usize> {
        Self::NAMES.iter().position(|known| known.as_bytes() == name)
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

#[cfg(test)]
mod tests {
    use super::*;

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
        assert!(StatSet::BASE.contains(StatSet::TIMES));
    }

    #[test]
    fn a_set_is_as_old_as_its_oldest_group() {
        let taken = Taken::default().with(StatSet::BASE, 5).with(StatSet::PROCESSORS, 9);
        assert_eq!(taken.oldest(StatSet::PROCESSORS), 9);
        assert_eq!(taken.oldest(StatSet::TIMES), 5, "times are those of the processors");
        assert_eq!(taken.oldest(StatSet::BASE | StatSet::IO), 0, "never read");
        assert_eq!(taken.oldest(StatSet::NONE), u64::MAX);
    }
}
