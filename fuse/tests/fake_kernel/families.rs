//! Families over a socket pair: directories whose entries differ between callers. Callers with
//! different views list, look up and read the same directories, and none may see a processor or
//! node of another. Start reading at `every_caller_lists_its_own_processors`.

#![allow(clippy::unwrap_used, reason = "what fails here fails the test")]

use std::collections::BTreeSet;
use std::sync::Arc;

use ambit_fuse::{Overlay, bind_points};
use ambit_sysinfo::host::RawFiles;
use ambit_sysinfo::view::Origin;
use ambit_sysinfo::{CpuSet, Error, Host, Topology, View, Views};

use crate::container;
use crate::kernel::{EINVAL, EISDIR, ENOENT, Kernel, READDIR, READDIRPLUS};

#[path = "../../../tests/fixtures/machine.rs"]
mod machine;

const CPU: &str = "sys/devices/system/cpu";
const NODE: &str = "sys/devices/system/node";

/// Thread 1 has one thread of each of two cores, thread 2 both sockets, thread 3 is the host's.
struct Two(Arc<Topology>);

struct Raw;

impl RawFiles for Raw {
    fn read(&self, path: &str, text: &mut Vec<u8>) -> std::io::Result<()> {
        text.extend_from_slice(path.as_bytes());
        Ok(())
    }
}

impl Views for Two {
    fn view(&self, tid: u32) -> Result<Arc<View>, Error> {
        let mut view = container::view();
        let raw = Some(Arc::new(Raw) as _);
        let topology = Arc::clone(&self.0);
        view.host = Arc::new(Host { topology, raw, ..(*view.host).clone() });
        let online: &[u8] = match tid {
            1 => b"1-2",
            2 => b"3-4,11",
            _ => b"0-15",
        };
        view.cpu.online = CpuSet::parse(online).unwrap();
        if tid == 3 {
            view.origin = Origin::Host;
        }
        Ok(Arc::new(view))
    }
}

fn start() -> (Kernel, Overlay) {
    Kernel::start(Arc::new(Two(Arc::new(machine::topology()))), 1)
}

fn names(kernel: &mut Kernel, path: &str, opcode: u32, size: u32) -> Vec<String> {
    let node = kernel.walk(path).unwrap().ino;
    kernel.list(node, opcode, size).into_iter().skip(2).map(|(name, ..)| name).collect()
}

fn numbered(names: &[String], prefix: &str) -> Vec<String> {
    let is = |name: &&String| {
        name.strip_prefix(prefix).is_some_and(|rest| rest.bytes().all(|b| b.is_ascii_digit()))
    };
    names.iter().filter(is).cloned().collect()
}

#[test]
fn every_caller_lists_its_own_processors() {
    let (mut kernel, _overlay) = start();
    for (opcode, size) in [(READDIR, 4096), (READDIR, 48), (READDIRPLUS, 4096), (READDIRPLUS, 180)]
    {
        for (thread, cpus, nodes) in [
            (1, &["cpu1", "cpu2"][..], &["node0"][..]),
            (2, &["cpu3", "cpu4", "cpu11"][..], &["node0", "node1"][..]),
        ] {
            kernel.thread = thread;
            assert_eq!(numbered(&names(&mut kernel, CPU, opcode, size), "cpu"), cpus);
            assert_eq!(numbered(&names(&mut kernel, NODE, opcode, size), "node"), nodes);
        }
        kernel.thread = 3;
        assert_eq!(numbered(&names(&mut kernel, CPU, opcode, size), "cpu").len(), 16);
    }
}

#[test]
fn what_is_another_callers_is_not_there() {
    let (mut kernel, _overlay) = start();
    kernel.thread = 2;
    let cpu = kernel.walk(CPU).unwrap().ino;
    let node = kernel.walk(NODE).unwrap().ino;
    let foreign = kernel.lookup_own(cpu, "cpu3").unwrap().ino;
    let file = kernel.walk("sys/devices/system/cpu/cpu3/topology/core_id").unwrap().ino;
    let link = kernel.walk("sys/devices/system/cpu/cpu3/node0").unwrap().ino;
    let node1 = kernel.lookup_own(node, "node1").unwrap().ino;
    let meminfo = kernel.walk("sys/devices/system/node/node1/meminfo").unwrap().ino;
    let handle = kernel.open(file, 0).unwrap();
    assert_eq!(kernel.open(foreign, 0), Err(EISDIR));
    assert_eq!(kernel.readlink(file), Err(EINVAL));

    kernel.thread = 1;
    for (directory, name) in [(cpu, "cpu3"), (cpu, "cpu15"), (node, "node1"), (foreign, "topology")]
    {
        assert_eq!(kernel.lookup_own(directory, name), Err(ENOENT), "{name}");
    }
    for id in [foreign, file, link, node1, meminfo] {
        assert_eq!(kernel.getattr(id), Err(ENOENT));
        assert_eq!(kernel.open(id, 0), Err(ENOENT));
        assert_eq!(kernel.readlink(id), Err(ENOENT));
    }
    // A read from the start of an open file does not render hidden processors.
    assert!(kernel.read(file, handle, 0, 100).is_ok(), "rendered for its opener");
    assert_eq!(kernel.read(file, handle, 0, 100), Err(ENOENT));
}

#[test]
fn only_what_is_listed_can_be_looked_up() {
    let (mut kernel, _overlay) = start();
    kernel.thread = 1;
    let mut seen = BTreeSet::new();
    walk_all(&mut kernel, CPU, &mut seen);
    walk_all(&mut kernel, NODE, &mut seen);
    for path in [
        "cpu/kernel_max",
        "cpu/cpu1/online",
        "cpu/cpu1/node0",
        "cpu/cpu2/topology/thread_siblings_list",
        "cpu/cpu2/cache/index3/shared_cpu_map",
        "node/possible",
        "node/node0/cpu2",
        "node/node0/distance",
    ] {
        assert!(seen.contains(&format!("sys/devices/system/{path}")), "{path}");
    }
    for path in [
        "cpu/cpu01",
        "cpu/cpu",
        "cpu/cpufreq",
        "cpu/cpu8192",
        "cpu/cpu4294967297",
        "cpu/cpu1/crash_notes",
        "cpu/cpu1/topology/cluster_id",
        "cpu/cpu1/cache/index1",
        "cpu/cpu1/cache/index3/id",
        "cpu/cpu1/node1",
        "node/node0/cpu4",
        "node/node0/cpu1/topology",
        "node/node0/vmstat",
        "node/node00",
        "node/node1",
        "node/has_generic_initiator",
    ] {
        assert_eq!(kernel.walk(&format!("sys/devices/system/{path}")), Err(ENOENT), "{path}");
    }
    // Ids that were never returned.
    for id in (0..1 << 24).step_by(4099).map(|id| 0xFF00_0000 + id) {
        if let Ok(attr) = kernel.getattr(id) {
            assert_eq!(attr.ino, id);
        }
    }
}

/// Looks up, and reads, everything that is listed.
fn walk_all(kernel: &mut Kernel, path: &str, seen: &mut BTreeSet<String>) {
    let directory = kernel.walk(path).unwrap().ino;
    for (name, id, kind) in kernel.list(directory, READDIR, 4096).into_iter().skip(2) {
        let path = format!("{path}/{name}");
        let attr = kernel.walk(&path).unwrap();
        assert_eq!(attr.ino, id, "{path}");
        assert_eq!(attr.mode >> 12, kind, "{path}");
        match kind {
            4 => {
                assert_eq!((attr.mode & 0o7777, attr.size), (0o555, 0));
                walk_all(kernel, &path, seen);
            }
            8 => {
                assert_eq!((attr.mode & 0o7777, attr.size), (0o444, 4096));
                let text = kernel.cat(&path).unwrap();
                assert!(text.ends_with('\n') || path.ends_with("/uevent"), "{path}");
            }
            _ => {
                // The target of a link exists.
                let target = kernel.readlink(id).unwrap();
                let target = format!("sys/devices/system/{}", &target["../../".len()..]);
                assert_eq!(kernel.walk(&target).unwrap().mode >> 12, 4, "{target}");
            }
        }
        assert!(seen.insert(path.clone()), "{path} is listed twice");
    }
}

#[test]
fn names_of_other_processors_are_cut_to_the_callers() {
    let (mut kernel, _overlay) = start();
    let cat = |kernel: &mut Kernel, path: &str| kernel.cat(&format!("sys/devices/system/{path}"));
    for (thread, path, text) in [
        (1, "cpu/online", "1-2\n"),
        (1, "cpu/possible", "0-15\n"),
        (1, "cpu/present", "1-2\n"),
        (1, "cpu/offline", "0,3-15\n"),
        (1, "node/possible", "0-1\n"),
        (1, "cpu/kernel_max", "8191\n"),
        (1, "cpu/cpu1/online", "1\n"),
        (1, "cpu/cpu1/topology/core_id", "1\n"),
        (1, "cpu/cpu1/topology/thread_siblings_list", "1\n"),
        (1, "cpu/cpu1/topology/thread_siblings", "0002\n"),
        (1, "cpu/cpu1/topology/package_cpus_list", "1-2\n"),
        (1, "cpu/cpu2/cache/index3/shared_cpu_map", "0006\n"),
        (1, "cpu/cpu2/cache/index0/size", "32K\n"),
        (1, "node/online", "0\n"),
        (1, "node/has_memory", "0\n"),
        (1, "node/node0/cpulist", "1-2\n"),
        (1, "node/node0/cpumap", "0006\n"),
        (1, "node/node0/distance", "10\n"),
        (1, "node/node0/numastat", "numa_hit 0\nnuma_miss 0\n"),
        (2, "cpu/cpu11/topology/thread_siblings_list", "3,11\n"),
        (2, "cpu/cpu4/topology/physical_package_id", "1\n"),
        (2, "node/possible", "0-1\n"),
        (2, "node/node1/distance", "21 10\n"),
        (3, "cpu/cpu11/topology/core_id", "sys/devices/system/cpu/cpu11/topology/core_id"),
        (3, "node/node1/meminfo", "sys/devices/system/node/node1/meminfo"),
        (3, "node/has_cpu", "sys/devices/system/node/has_cpu"),
    ] {
        kernel.thread = thread;
        assert_eq!(cat(&mut kernel, path).as_deref(), Ok(text), "{thread} {path}");
    }
}

#[test]
fn the_nodes_add_up_to_the_containers_memory() {
    let (mut kernel, _overlay) = start();
    let number = |text: &str, label: &str| -> u64 {
        let line = text.lines().find(|line| line.contains(label)).unwrap();
        line.split_whitespace()
            .find_map(|word| word.parse().ok().filter(|_| word.len() > 1))
            .unwrap()
    };
    kernel.thread = 1;
    let text = kernel.cat("sys/devices/system/node/node0/meminfo").unwrap();
    assert_eq!(
        text,
        "Node 0 MemTotal:         262144 kB\nNode 0 MemFree:          102400 kB\n\
         Node 0 MemUsed:          159744 kB\nNode 0 SwapCached:         1024 kB\n\
         Node 0 Active:            24576 kB\nNode 0 FilePages:         62464 kB\n\
         Node 0 HugePages_Total:     0\n"
    );
    kernel.thread = 2;
    let meminfo = kernel.cat("proc/meminfo").unwrap();
    let nodes = [0, 1]
        .map(|node| kernel.cat(&format!("sys/devices/system/node/node{node}/meminfo")).unwrap());
    for label in ["MemTotal:", "MemFree:", "Active:"] {
        let sum: u64 = nodes.iter().map(|text| number(text, label)).sum();
        assert_eq!(sum, number(&meminfo, label), "{label}");
    }
}

#[test]
fn directories_are_bound_whole() {
    let points: Vec<_> = bind_points().collect();
    assert!(points.contains(&CPU) && points.contains(&NODE) && points.contains(&"proc/stat"));
    assert!(points.iter().all(|point| point.starts_with("proc/") || [CPU, NODE].contains(point)));
}
