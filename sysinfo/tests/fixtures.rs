//! Derives the numbers of recorded kernels from their files: three containers of every fixture (see
//! tests/fixtures/README.md for their limits).
#![allow(clippy::unwrap_used, reason = "a test fails where something is missing")]

use std::path::{Path, PathBuf};

use ambit_sysinfo::cpu;
use ambit_sysinfo::hierarchy::Hierarchies;
use ambit_sysinfo::host::{Host, HostTexts};
use ambit_sysinfo::membership::Membership;
use ambit_sysinfo::policy::SwapPolicy;
use ambit_sysinfo::sample::Sample;
use ambit_sysinfo::source::Source;
use ambit_sysinfo::view::{Memory, Swap};
use ambit_sysinfo::{CpuSet, Options, StatSet, derive};

const LIMITED: &str = "100";
const CHILD: &str = "101";
const UNLIMITED: &str = "102";

struct World {
    name: String,
    root: PathBuf,
    host: Host,
    hierarchies: Hierarchies,
}

fn worlds() -> Vec<World> {
    let dir = Path::new(env!("CARGO_MANIFEST_DIR")).join("../tests/fixtures");
    let mut worlds: Vec<World> = std::fs::read_dir(dir)
        .unwrap()
        .map(|entry| entry.unwrap().path())
        .filter(|path| path.is_dir())
        .map(World::open)
        .collect();
    worlds.sort_by(|a, b| a.name.cmp(&b.name));
    assert!(worlds.len() >= 9, "the recorded kernels are there");
    worlds
}

impl World {
    fn open(root: PathBuf) -> Self {
        let read = |path: &str| std::fs::read(root.join(path)).unwrap_or_default();
        let host = Host::parse(HostTexts {
            meminfo: &read("proc/meminfo"),
            cpuinfo: &read("proc/cpuinfo"),
            stat: &read("proc/stat"),
            online: &read("sys/devices/system/cpu/online"),
        });
        let mountinfo = read("proc/self/mountinfo");
        let hierarchies = Hierarchies::from_mountinfo(&mountinfo, &root).unwrap();
        let name = root.file_name().unwrap().to_string_lossy().into_owned();
        Self { name, root, host, hierarchies }
    }

    fn sample(&self, pid: &str) -> Sample {
        let cgroup = std::fs::read(self.root.join("proc").join(pid).join("cgroup")).unwrap();
        let membership = Membership::parse(&cgroup);
        assert!(!self.hierarchies.has_at_root(&membership), "{}: {pid} is in a cgroup", self.name);
        let mut source = Source::new(&self.hierarchies, &membership, &Options::default());
        let mut sample = Sample::default();
        let mut buffer = Vec::new();
        source.sample(StatSet::BASE, &mut sample, &mut buffer).unwrap();
        let mut again = Sample::default();
        source.close();
        source.sample(StatSet::BASE, &mut again, &mut buffer).unwrap();
        assert_eq!(sample, again, "{}: the same files give the same sample", self.name);
        sample
    }

    fn memory(&self, pid: &str) -> Memory {
        derive::memory(&self.sample(pid), &self.host)
    }

    fn swap(&self, pid: &str) -> Swap {
        derive::swap(&self.sample(pid), &self.host, SwapPolicy::Limit)
    }

    fn processors(&self, pid: &str) -> CpuSet {
        cpu::visible(&self.sample(pid), &self.host, &Options::default())
    }

    fn has(&self, text: &str) -> bool {
        self.name.contains(text)
    }
}

#[test]
fn the_host_files_are_parsed() {
    for world in worlds() {
        let count = world.name.rsplit('-').next().unwrap().trim_end_matches("cpu");
        let count: usize = count.parse().unwrap();
        assert_eq!(world.host.online.len(), count, "{}", world.name);
        assert_eq!(world.host.cpuinfo.blocks().count(), count, "{}", world.name);
        assert!(world.host.memory_total > 0 && world.host.boot_time > 0, "{}", world.name);
        let layout = ["-v1-", "-v2-", "-hybrid-"].into_iter().find(|layout| world.has(layout));
        let layout = layout.unwrap().trim_matches('-');
        assert_eq!(world.hierarchies.layout(), layout, "{}", world.name);
    }
}

#[test]
fn memory_is_the_tightest_limit_of_all_ancestors() {
    for world in worlds() {
        let (limited, child) = (world.memory(LIMITED), world.memory(CHILD));
        assert_eq!(limited.total, 256 << 20, "{}", world.name);
        let tightest = if world.has("-v2-") { 256 << 20 } else { 200 << 20 };
        assert_eq!(child.total, tightest, "{}", world.name);
        let unlimited = world.memory(UNLIMITED);
        assert_eq!(unlimited.total, world.host.memory_total, "{}", world.name);
        for memory in [limited, child, unlimited] {
            assert!(memory.free <= memory.available && memory.available <= memory.total);
            assert!(memory.used > 0, "{}: something runs in it", world.name);
            assert!(memory.used < 256 << 20, "{}: its own usage, not the host's", world.name);
        }
    }
}

#[test]
fn swap_is_the_limit_where_the_machine_has_swap() {
    for world in worlds() {
        let swap = world.swap(LIMITED);
        let limit = (64u64 << 20).min(world.host.swap_total);
        assert!(swap.total == limit || swap.total == 0, "{}: {swap:?}", world.name);
        assert!(swap.free <= swap.total);
        if world.host.swap_total == 0 {
            assert_eq!(world.swap(UNLIMITED).total, 0, "{}", world.name);
        }
    }
}

#[test]
fn processors_are_the_cpuset_capped_by_the_quota() {
    for world in worlds() {
        let limited = world.processors(LIMITED);
        let has_cpuset = world.sample(LIMITED).cpus.is_some();
        // 1.5 processors, and processor 0 where there is a cpuset controller.
        let count = if has_cpuset { 1 } else { 2.min(world.host.online.len()) };
        assert_eq!(limited.len(), count, "{}: {limited}", world.name);
        assert!(!has_cpuset || limited.contains(0), "{}: {limited}", world.name);
        assert_eq!(world.processors(UNLIMITED), world.host.online, "{}", world.name);
        assert_eq!(world.sample(CHILD).quota, world.sample(LIMITED).quota, "{}", world.name);
    }
}

#[test]
fn usage_is_the_containers_own() {
    for world in worlds() {
        let sample = world.sample(UNLIMITED);
        let busy = &sample.busy;
        assert!(busy.user + busy.system > 0, "{}", world.name);
        assert!(busy.user + busy.system < 3600 * 1_000_000_000, "{}", world.name);
        assert!(sample.threads.is_some_and(|threads| threads < 100), "{}", world.name);
    }
}
