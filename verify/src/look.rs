//! One look at everything that is read. What changes by itself is read twice, at the beginning and at
//! the end, so that what is read between can be judged without a tolerance.

use std::collections::{BTreeMap, BTreeSet};

use crate::files::{Reading, Root, Unread};
use crate::kernel::{self, Sysinfo};
use crate::text::{self, Cpus};

/// Sizes by their labels, in bytes.
pub(crate) type Meminfo = BTreeMap<String, u64>;

/// `/proc/loadavg`.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Loadavg {
    pub(crate) loads: [f64; 3],
    pub(crate) tasks: u64,
}

/// What is read twice.
#[derive(Debug)]
pub(crate) struct Edge {
    pub(crate) uptime: Reading<f64>,
    /// CLOCK_BOOTTIME and CLOCK_REALTIME; `None` for a root that is not this machine's.
    pub(crate) clocks: Option<(f64, f64)>,
    pub(crate) loadavg: Reading<Loadavg>,
    pub(crate) meminfo: Reading<Meminfo>,
    /// Bytes that the container's control group uses.
    pub(crate) usage: Option<u64>,
    /// Microseconds of `some` and `full` in the control group's own files, as [`PRESSURE`].
    pub(crate) pressure: [Option<Stalled>; 3],
}

/// Microseconds that tasks were stalled: `some` and `full`.
pub(crate) type Stalled = (u64, u64);

pub(crate) const PRESSURE: [&str; 3] = ["cpu", "io", "memory"];

/// A memory node.
#[derive(Debug)]
pub(crate) struct Node {
    pub(crate) meminfo: Reading<Meminfo>,
    pub(crate) cpus: Reading<Cpus>,
}

/// What system calls answer.
#[derive(Debug)]
pub(crate) struct Calls {
    pub(crate) sysinfo: Sysinfo,
    pub(crate) affinity: Result<Cpus, String>,
}

/// Everything, in the order in which it is read.
#[derive(Debug)]
pub(crate) struct Look {
    pub(crate) before: Edge,
    pub(crate) calls: Option<Calls>,
    pub(crate) vmstat: Reading<BTreeMap<String, u64>>,
    /// Managed and free pages.
    pub(crate) zoneinfo: Reading<(u64, u64)>,
    /// Size and used bytes.
    pub(crate) swaps: Reading<(u64, u64)>,
    /// The processors, and when the machine or the container booted.
    pub(crate) stat: Reading<(Cpus, f64)>,
    pub(crate) pressure: [Reading<Stalled>; 3],
    pub(crate) nodes: Vec<Node>,
    pub(crate) after: Edge,
    pub(crate) cpuinfo: Reading<Cpus>,
    pub(crate) interrupts: Reading<Cpus>,
    pub(crate) partitions: Reading<BTreeSet<String>>,
    pub(crate) diskstats: Reading<BTreeSet<String>>,
    pub(crate) cpu: CpuFolder,
    /// The kernel's own mask of this thread, from `/proc/self/status`, which no overlay changes.
    pub(crate) mask: Reading<Cpus>,
}

pub(crate) const CPU: &str = "/sys/devices/system/cpu";
pub(crate) const NODE: &str = "/sys/devices/system/node";

/// `/sys/devices/system/cpu`.
#[derive(Debug)]
pub(crate) struct CpuFolder {
    pub(crate) online: Reading<Cpus>,
    pub(crate) present: Reading<Cpus>,
    pub(crate) possible: Reading<Cpus>,
    /// Folders `cpuN`.
    pub(crate) folders: Cpus,
    /// Those of them whose own file `online` says 0.
    pub(crate) offline: Cpus,
}

impl Look {
    /// `usage` and `pressure` are those of the container's control group.
    pub(crate) fn take(
        root: &Root,
        usage: Option<&str>,
        pressure: Option<&str>,
        calls: bool,
    ) -> Self {
        let edge = || Edge::take(root, usage, pressure, calls);
        Self {
            before: edge(),
            calls: calls.then(|| Calls {
                sysinfo: kernel::sysinfo(),
                affinity: kernel::affinity().map_err(|error| error.to_string()),
            }),
            vmstat: root.parse("/proc/vmstat", text::pairs),
            zoneinfo: root.parse("/proc/zoneinfo", text::zones),
            swaps: root.parse("/proc/swaps", text::swaps),
            stat: root.parse("/proc/stat", |text| {
                let booted = text.lines().find_map(|line| line.strip_prefix("btime "));
                Some((some(text::numbered(text.lines(), "cpu"))?, text::number(booted)?))
            }),
            pressure: PRESSURE.map(|what| root.parse(&format!("/proc/pressure/{what}"), stalled)),
            nodes: nodes(root),
            after: edge(),
            cpuinfo: root.parse("/proc/cpuinfo", |text| some(text::cpuinfo(text))),
            interrupts: root.parse("/proc/interrupts", |text| {
                some(text::numbered(text.lines().next()?.split_whitespace(), "CPU"))
            }),
            partitions: disks(root, "/proc/partitions", 3),
            diskstats: disks(root, "/proc/diskstats", 2),
            cpu: CpuFolder::take(root),
            mask: root.parse("/proc/self/status", |text| {
                text::list(text.lines().find_map(|line| line.strip_prefix("Cpus_allowed_list:"))?)
            }),
        }
    }
}

impl Edge {
    fn take(root: &Root, usage: Option<&str>, pressure: Option<&str>, calls: bool) -> Self {
        Self {
            uptime: root.parse("/proc/uptime", |text| text::number(text.split(' ').next())),
            clocks: calls.then(kernel::clocks),
            loadavg: root.parse("/proc/loadavg", loadavg),
            usage: usage.and_then(|file| root.parse(file, |text| text.trim().parse().ok()).ok()),
            pressure: PRESSURE
                .map(|what| root.parse(&format!("{}/{what}.pressure", pressure?), stalled).ok()),
            meminfo: root.parse("/proc/meminfo", text::meminfo),
        }
    }
}

impl CpuFolder {
    fn take(root: &Root) -> Self {
        let list = |file: &str| root.parse(&format!("{CPU}/{file}"), text::list);
        let names = root.names(CPU);
        let folders = numbered(&names, "cpu");
        let says_0 = |cpu: &u32| {
            root.read(&format!("{CPU}/cpu{cpu}/online")).is_ok_and(|text| text.trim() == "0")
        };
        Self {
            online: list("online"),
            present: list("present"),
            possible: list("possible"),
            offline: folders.iter().copied().filter(says_0).collect(),
            folders,
        }
    }
}

fn some(cpus: Cpus) -> Option<Cpus> {
    Some(cpus).filter(|cpus| !cpus.is_empty())
}

/// A container that used no disk has no line.
fn disks(root: &Root, path: &str, column: usize) -> Reading<BTreeSet<String>> {
    match root.parse(path, |text| Some(text::disks(text, column))) {
        Err(Unread::Empty) => Ok(BTreeSet::new()),
        read => read,
    }
}

fn nodes(root: &Root) -> Vec<Node> {
    let numbers = numbered(&root.names(NODE), "node");
    let node = |number| Node {
        meminfo: root.parse(&format!("{NODE}/node{number}/meminfo"), text::meminfo),
        cpus: root.parse(&format!("{NODE}/node{number}/cpulist"), text::list),
    };
    numbers.into_iter().map(node).collect()
}

/// The numbers of names such as `cpu0`; `cpuidle` is none of them.
fn numbered(names: &[String], word: &str) -> Cpus {
    names.iter().filter_map(|name| name.strip_prefix(word)?.parse().ok()).collect()
}

fn loadavg(text: &str) -> Option<Loadavg> {
    let mut words = text.split_whitespace();
    let mut load = || text::number(words.next());
    let loads = [load()?, load()?, load()?];
    let tasks = words.next()?.split_once('/')?.1.parse().ok()?;
    Some(Loadavg { loads, tasks })
}

fn stalled(text: &str) -> Option<Stalled> {
    let total = |word: &str| {
        let line = text.lines().find(|line| line.starts_with(word))?;
        line.split_once("total=")?.1.trim().parse().ok()
    };
    // Before Linux 5.13 there is no `full` of processors.
    Some((total("some")?, total("full").unwrap_or(0)))
}
