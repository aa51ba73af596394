//! A container 64 levels deep on a machine of 4 TiB and 1024 processors, made of plain files:
//! limits of every level count, and a sample reads a few files for each level.
#![allow(clippy::unwrap_used, reason = "a test fails where something is missing")]

use std::fs;
use std::path::Path;

use ambit_sysinfo::cpu;
use ambit_sysinfo::hierarchy::Hierarchies;
use ambit_sysinfo::host::{Host, HostTexts};
use ambit_sysinfo::membership::Membership;
use ambit_sysinfo::policy::{MemoryLimit, SwapPolicy};
use ambit_sysinfo::sample::Sample;
use ambit_sysinfo::source::Source;
use ambit_sysinfo::{Options, StatSet, derive};

const LEVELS: usize = 64;
const V2: &[u8] = b"30 1 0:26 / /sys/fs/cgroup rw - cgroup2 cgroup2 rw\n";

fn host() -> Host {
    let cpus = (0..1024).map(|cpu| format!("processor\t: {cpu}\n\n")).collect::<String>();
    Host::parse(HostTexts {
        meminfo: b"MemTotal:       4294967296 kB\nSwapTotal:      4294967296 kB\n",
        cpuinfo: cpus.as_bytes(),
        online: b"0-1023\n",
        ..HostTexts::default()
    })
}

/// Nested folders; the limits of the last one are absent.
fn tree(root: &Path) -> Vec<String> {
    let top = "sys/fs/cgroup".to_owned();
    let levels: Vec<String> = (0..LEVELS)
        .scan(top, |path, level| {
            *path += &format!("/level-{level}");
            Some(path.clone())
        })
        .collect();
    fs::create_dir_all(root.join(levels.last().unwrap())).unwrap();
    fs::write(root.join("sys/fs/cgroup/cgroup.controllers"), "cpuset cpu memory pids\n").unwrap();
    for level in &levels {
        let put = |file: &str, text: &str| fs::write(root.join(level).join(file), text).unwrap();
        put("memory.current", "2199023255552\n");
        put("memory.max", "max\n");
        put("memory.swap.current", "1099511627776\n");
        put("memory.swap.max", "max\n");
        put("memory.stat", "anon 1099511627776\nfile 549755813888\ninactive_file 549755813888\n");
        put("cpu.max", "max 100000\n");
        put("cpu.stat", "usage_usec 3\nuser_usec 2\nsystem_usec 1\n");
        put("cpuset.cpus.effective", "0-1023\n");
        put("pids.current", "50000\n");
    }
    levels
}

#[test]
fn limits_of_sixty_four_levels_count() {
    let dir = tempfile::tempdir().unwrap();
    let (levels, host) = (tree(dir.path()), host());
    let hierarchies = Hierarchies::from_mountinfo(V2, dir.path()).unwrap();
    let path = levels.last().unwrap().strip_prefix("sys/fs/cgroup").unwrap();
    let membership = Membership::parse(format!("0::{path}\n").as_bytes());
    let take = || {
        let mut sample = Sample::default();
        let options = Options { memory_limit: MemoryLimit::High, ..Options::default() };
        let mut source = Source::new(&hierarchies, &membership, &options);
        source.sample(StatSet::BASE, &mut sample, &mut Vec::new()).unwrap();
        sample
    };
    let sample = take();
    let memory = derive::memory(&sample, &host);
    assert_eq!((memory.total, memory.free, memory.available), (4 << 40, 2 << 40, 5 << 39));
    let swap = derive::swap(&sample, &host, SwapPolicy::Limit);
    assert_eq!((swap.total, swap.free), (4 << 40, 3 << 40));
    assert_eq!(cpu::visible(&sample, &host, &Options::default()).len(), 1024);
    assert_eq!(sample.threads, Some(50_000));

    // The lowest limit counts at any level.
    for level in [0, 31, LEVELS - 1] {
        let put = |file: &str, text: &str| {
            fs::write(dir.path().join(&levels[level]).join(file), text).unwrap();
        };
        put("memory.max", "3298534883328\n");
        put("memory.swap.max", "2199023255552\n");
        put("cpu.max", "70000000 100000\n");
        let sample = take();
        let memory = derive::memory(&sample, &host);
        assert_eq!((memory.total, memory.free), (3 << 40, 1 << 40), "level {level}");
        let swap = derive::swap(&sample, &host, SwapPolicy::Limit);
        assert_eq!((swap.total, swap.free), (2 << 40, 1 << 40), "level {level}");
        let cpus = cpu::visible(&sample, &host, &Options::default());
        assert_eq!(cpus.len(), 700, "level {level}");
        put("memory.max", "max\n");
        put("memory.swap.max", "max\n");
        put("cpu.max", "max 100000\n");
    }
}
