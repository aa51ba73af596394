//! Which files of a container's cgroup a read of each overlay file reads when nothing is recent:
//! exactly those that are listed here. Counted by inotify(7) on a copy of the layout.
#![allow(clippy::unwrap_used, reason = "a test fails where something is missing")]

use std::collections::BTreeSet;
use std::fs;
use std::mem::MaybeUninit;
use std::os::fd::OwnedFd;
use std::path::Path;
use std::sync::Arc;

use ambit_fuse::{FAMILIES, FILES};
use ambit_sysinfo::hierarchy::Hierarchies;
use ambit_sysinfo::{Accounting, KernelFiles, Options, StatSet, Views, sysinfo};
use rustix::fs::inotify;

/// A cgroup version: its mounts, the cgroups of the container, and the files of each group.
struct Version {
    mounts: &'static [u8],
    cgroup: &'static str,
    /// Folder and name of a file, and its text.
    files: &'static [(&'static str, &'static str)],
    memory: &'static [&'static str],
    processors: &'static [&'static str],
    usage: &'static [&'static str],
    threads: &'static [&'static str],
    io: &'static [&'static str],
    events: &'static [&'static str],
}

const PRESSURE: &[&str] = &["cpu.pressure", "io.pressure", "memory.pressure"];

const V2: Version = Version {
    mounts: b"30 1 0:26 / /c rw - cgroup2 cgroup2 rw\n",
    cgroup: "0::/a\n",
    files: &[
        ("c/cgroup.controllers", "cpuset cpu io memory pids\n"),
        ("c/a/memory.current", "8388608\n"),
        ("c/a/memory.stat", "anon 4194304\nfile 2097152\n"),
        ("c/a/memory.max", "67108864\n"),
        ("c/a/memory.swap.current", "0\n"),
        ("c/a/memory.swap.max", "max\n"),
        ("c/a/memory.events", "oom_kill 0\n"),
        ("c/a/cpu.max", "max 100000\n"),
        ("c/a/cpuset.cpus.effective", "0\n"),
        ("c/a/cpu.stat", "usage_usec 30\nuser_usec 20\nsystem_usec 10\n"),
        ("c/a/pids.current", "3\n"),
        ("c/a/io.stat", "8:0 rbytes=4096 wbytes=0 rios=1 wios=0 dbytes=0 dios=0\n"),
        ("c/a/cpu.pressure", "some avg10=0.00 avg60=0.00 avg300=0.00 total=0\n"),
        ("c/a/io.pressure", "some avg10=0.00 avg60=0.00 avg300=0.00 total=0\n"),
        ("c/a/memory.pressure", "some avg10=0.00 avg60=0.00 avg300=0.00 total=0\n"),
    ],
    memory: &[
        "memory.current",
        "memory.stat",
        "memory.max",
        "memory.swap.current",
        "memory.swap.max",
    ],
    processors: &["cpu.max", "cpuset.cpus.effective"],
    usage: &["cpu.stat"],
    threads: &["pids.current"],
    io: &["io.stat"],
    events: &["memory.stat", "memory.events"],
};

const V1: Version = Version {
    mounts: b"31 1 0:1 / /memory rw - cgroup cgroup rw,memory\n\
              32 1 0:2 / /cpu rw - cgroup cgroup rw,cpu,cpuacct\n\
              33 1 0:3 / /cpuset rw - cgroup cgroup rw,cpuset\n\
              34 1 0:4 / /pids rw - cgroup cgroup rw,pids\n\
              35 1 0:5 / /blkio rw - cgroup cgroup rw,blkio\n\
              36 1 0:6 / /unified rw - cgroup2 cgroup2 rw\n",
    cgroup: "5:memory:/a\n4:cpu,cpuacct:/a\n3:cpuset:/a\n2:pids:/a\n1:blkio:/a\n0::/a\n",
    files: &[
        ("unified/cgroup.controllers", ""),
        ("memory/a/memory.usage_in_bytes", "8388608\n"),
        ("memory/a/memory.stat", "hierarchical_memory_limit 67108864\ntotal_rss 4194304\n"),
        ("memory/a/memory.kmem.usage_in_bytes", "4096\n"),
        ("memory/a/memory.memsw.usage_in_bytes", "8388608\n"),
        ("memory/a/memory.swappiness", "60\n"),
        ("memory/a/memory.oom_control", "oom_kill 0\n"),
        ("cpu/a/cpu.cfs_quota_us", "200000\n"),
        ("cpu/a/cpu.cfs_period_us", "100000\n"),
        ("cpu/a/cpuacct.usage_all", "cpu user system\n0 20 10\n"),
        ("cpu/a/cpuacct.usage_percpu", "30 \n"),
        ("cpuset/a/cpuset.effective_cpus", "0\n"),
        ("pids/a/pids.current", "3\n"),
        ("blkio/a/blkio.bfq.io_service_bytes_recursive", "8:0 Read 4096\n"),
        ("blkio/a/blkio.bfq.io_serviced_recursive", "8:0 Read 1\n"),
        ("blkio/a/blkio.throttle.io_service_bytes_recursive", "8:0 Read 4096\n"),
        ("blkio/a/blkio.throttle.io_serviced_recursive", "8:0 Read 1\n"),
        ("unified/a/cpu.pressure", "some avg10=0.00 avg60=0.00 avg300=0.00 total=0\n"),
        ("unified/a/io.pressure", "some avg10=0.00 avg60=0.00 avg300=0.00 total=0\n"),
        ("unified/a/memory.pressure", "some avg10=0.00 avg60=0.00 avg300=0.00 total=0\n"),
    ],
    memory: &[
        "memory.usage_in_bytes",
        "memory.stat",
        "memory.kmem.usage_in_bytes",
        "memory.memsw.usage_in_bytes",
        "memory.swappiness",
    ],
    processors: &["cpu.cfs_quota_us", "cpu.cfs_period_us", "cpuset.effective_cpus"],
    usage: &["cpuacct.usage_all", "cpuacct.usage_percpu"],
    threads: &["pids.current"],
    io: &[
        "blkio.bfq.io_service_bytes_recursive",
        "blkio.bfq.io_serviced_recursive",
        "blkio.throttle.io_service_bytes_recursive",
        "blkio.throttle.io_serviced_recursive",
    ],
    events: &["memory.stat", "memory.oom_control"],
};

impl Version {
    /// The files of a cgroup that each file of the overlay shows.
    fn listed(&self, path: &str) -> BTreeSet<&'static str> {
        let Self { memory, processors, usage, threads, io, events, .. } = *self;
        let groups: &[&[&str]] = match path {
            "proc/meminfo" | "proc/swaps" | "proc/zoneinfo" => &[memory],
            "proc/stat" | "proc/uptime" => &[processors, usage],
            "proc/loadavg" => &[threads],
            "proc/cpuinfo" | "proc/interrupts" | "proc/softirqs" => &[processors],
            "proc/diskstats" | "proc/partitions" => &[io],
            "proc/vmstat" => &[memory, io, events],
            "proc/pressure/cpu" | "proc/pressure/io" | "proc/pressure/memory" => &[PRESSURE],
            "proc/slabinfo"
            | "proc/spl/kstat/zfs/arcstats"
            | "sys/devices/system/cpu/isolated"
            | "sys/devices/system/cpu/kernel_max"
            | "sys/devices/system/cpu/uevent" => &[],
            "sys/devices/system/cpu/online"
            | "sys/devices/system/cpu/possible"
            | "sys/devices/system/cpu/present"
            | "sys/devices/system/cpu/offline"
            | "sys/devices/system/cpu" => &[processors],
            "sys/devices/system/node" => &[memory, processors],
            "sysinfo(2)" => &[memory, threads],
            "sched_getaffinity(2)" => &[processors],
            path => panic!("{path} is not listed: what does it read?"),
        };
        groups.iter().copied().flatten().copied().collect()
    }
}

/// A machine of plain files, on which this process is in the cgroup `a`.
struct Machine {
    _root: tempfile::TempDir,
    accounting: Arc<Accounting>,
    accesses: OwnedFd,
}

impl Machine {
    fn new(version: &Version) -> Self {
        let root = tempfile::tempdir().unwrap();
        let write = |path: &str, text: &str| {
            let path = root.path().join(path);
            fs::create_dir_all(path.parent().unwrap()).unwrap();
            fs::write(path, text).unwrap();
        };
        let process = format!("proc/{}", std::process::id());
        write("proc/meminfo", "MemTotal: 1048576 kB\nMemFree: 524288 kB\n");
        write("proc/cpuinfo", "processor\t: 0\n\nprocessor\t: 1\n\n");
        write("proc/stat", "cpu0 1\ncpu1 1\nbtime 1700000000\n");
        write("sys/devices/system/cpu/online", "0-1\n");
        write(&format!("{process}/cgroup"), version.cgroup);
        write(&format!("{process}/status"), "Uid:\t0\t0\t0\t0\n");
        fs::create_dir(root.path().join(&process).join("ns")).unwrap();
        for kind in ["pid", "user"] {
            let link = root.path().join(&process).join("ns").join(kind);
            std::os::unix::fs::symlink(format!("{kind}:[4026531836]"), link).unwrap();
        }
        version.files.iter().for_each(|(path, text)| write(path, text));
        let accesses = inotify::init(inotify::CreateFlags::NONBLOCK).unwrap();
        let folders: BTreeSet<_> =
            version.files.iter().filter_map(|(path, _)| Path::new(path).parent()).collect();
        for folder in folders {
            let folder = root.path().join(folder);
            inotify::add_watch(&accesses, folder, inotify::WatchFlags::ACCESS).unwrap();
        }
        let files = |path: &str| KernelFiles::at(&root.path().join(path)).unwrap();
        let hierarchies = Hierarchies::from_mountinfo(version.mounts, root.path()).unwrap();
        let options = Options { age_bound: 0, ..Options::default() };
        let accounting = Accounting::over(options, hierarchies, files("proc"), files("sys"));
        let this = Self { accounting: accounting.unwrap(), accesses, _root: root };
        // The first sample of a container is of everything.
        this.reads(StatSet::BASE);
        this
    }

    /// Returns the names of the files that are read for these groups, each as often as it is read.
    fn reads(&self, groups: StatSet) -> Vec<String> {
        self.accounting.view_with(std::process::id(), groups).unwrap();
        let mut buffer = [MaybeUninit::uninit(); 16384];
        let mut events = inotify::Reader::new(&self.accesses, &mut buffer);
        let mut names = Vec::new();
        while let Ok(event) = events.next() {
            let name = event.file_name().map(|name| name.to_str().unwrap().to_owned());
            names.extend(name);
        }
        names
    }
}

#[test]
fn a_cold_read_reads_only_what_its_file_shows() {
    let of_calls = [("sysinfo(2)", sysinfo::NEEDS), ("sched_getaffinity(2)", StatSet::PROCESSORS)];
    let files = FILES.iter().map(|file| (file.path, file.needs));
    let families = FAMILIES.iter().map(|family| (family.directory(), family.needs()));
    let all: Vec<_> = files.chain(families).chain(of_calls).collect();
    for (name, version) in [("v1", V1), ("v2", V2)] {
        let machine = Machine::new(&version);
        let whole = machine.reads(StatSet::BASE).len();
        for (path, needs) in &all {
            let read = machine.reads(*needs);
            let mut wanted = version.listed(path);
            // Two groups that are read from one file read it twice.
            let twice = usize::from(*path == "proc/vmstat");
            assert_eq!(read.len(), wanted.len() + twice, "{name} {path}: {read:?}");
            wanted.retain(|file| !read.iter().any(|read| read == file));
            assert!(wanted.is_empty(), "{name} {path}: {wanted:?} were not read");
            eprintln!("{name} {path:<34} {:>2} files of {whole}", read.len());
        }
    }
}
