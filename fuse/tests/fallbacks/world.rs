//! A machine of plain files, with cgroup v2 or v1 and two containers, in which any file can be
//! missing or fail. All numbers differ, so that a number identifies its origin.

use std::fs;
use std::os::unix::fs::symlink;
use std::path::{Path, PathBuf};
use std::sync::{Arc, LazyLock};

use ambit_fuse::Overlay;
use ambit_sysinfo::KernelFiles;
use ambit_sysinfo::hierarchy::Hierarchies;
use ambit_sysinfo::{Accounting, Options};

use crate::kernel::Kernel;
use crate::machine;

pub(crate) const OURS: u32 = 100;
/// A thread of the other container.
pub(crate) const THEIRS: u32 = 200;
/// KiB of the machine.
pub(crate) const MACHINE: u64 = 1 << 20;

/// Numbers of the other container or the machine that must not be shown.
pub(crate) const SECRETS: [&str; 4] = ["49152", "7654321", "3333333", "4242424"];

pub(crate) struct World {
    root: tempfile::TempDir,
    legacy: bool,
    pub(crate) accounting: Arc<Accounting>,
    kernel: Kernel,
    overlay: Overlay,
}

impl World {
    pub(crate) fn v2() -> Self {
        Self::new(false)
    }

    pub(crate) fn v1() -> Self {
        Self::new(true)
    }

    /// Creates a world with a `/sys` that can be changed; the others share one.
    pub(crate) fn with_own_sys() -> Self {
        Self::with_sys(false, build_sys)
    }

    fn new(legacy: bool) -> Self {
        static SYS: LazyLock<tempfile::TempDir> = LazyLock::new(|| {
            let sys = tempfile::tempdir().unwrap();
            build_sys(sys.path());
            sys
        });
        Self::with_sys(legacy, |sys| symlink(SYS.path(), sys).unwrap())
    }

    fn with_sys(legacy: bool, sys: impl FnOnce(&Path)) -> Self {
        let root = tempfile::tempdir().unwrap();
        sys(&root.path().join("sys"));
        build_proc(&root.path().join("proc"));
        let mounts = if legacy { legacy_groups(root.path()) } else { groups(root.path()) };
        let hierarchies = Hierarchies::from_mountinfo(mounts.as_bytes(), root.path()).unwrap();
        let proc = KernelFiles::at(&root.path().join("proc")).unwrap();
        let options = Options { age_bound: 0, kept_files: 0, ..Options::default() };
        let sys = root.path().join("sys");
        let accounting =
            Accounting::over(options, hierarchies, proc, KernelFiles::at(&sys).unwrap()).unwrap();
        let (kernel, overlay) = Kernel::start(accounting.clone(), 1);
        let world = Self { root, legacy, accounting, kernel, overlay };
        world.is_in(OURS, "c");
        world.is_in(THEIRS, "other");
        world
    }

    /// Moves a thread to this control group.
    pub(crate) fn is_in(&self, thread: u32, cgroup: &str) {
        let text = match self.legacy {
            false => format!("0::/{cgroup}\n"),
            true => ["memory", "cpu,cpuacct", "cpuset", "blkio", "pids"]
                .iter()
                .map(|names| format!("1:{names}:/{cgroup}\n"))
                .collect(),
        };
        put(&self.root.path().join(format!("proc/{thread}/cgroup")), &text);
    }

    /// A file of the container's control group, or any other below the root.
    pub(crate) fn path(&self, file: &str) -> PathBuf {
        let controller = |file: &str| match file.split('.').next().unwrap() {
            "cpu" | "cpuacct" => "cpu,cpuacct".to_owned(),
            other => other.to_owned(),
        };
        match file.contains('/') {
            true => self.root.path().join(file),
            false if self.legacy => {
                self.root.path().join("cg").join(controller(file)).join("c").join(file)
            }
            false => self.root.path().join("cg/c").join(file),
        }
    }

    pub(crate) fn write(&self, file: &str, text: &str) {
        put(&self.path(file), text);
    }

    #[track_caller]
    pub(crate) fn remove(&self, file: &str) {
        fs::remove_file(self.path(file)).unwrap();
    }

    /// Replaces a file by a folder: reading it fails, as with EIO.
    #[track_caller]
    pub(crate) fn fail(&self, file: &str) {
        self.remove(file);
        fs::create_dir(self.path(file)).unwrap();
    }

    /// What a thread of the container is shown.
    #[track_caller]
    pub(crate) fn cat(&mut self, file: &str) -> String {
        self.try_cat(OURS, file).unwrap_or_else(|errno| panic!("{file}: {errno}"))
    }

    pub(crate) fn try_cat(&mut self, thread: u32, file: &str) -> Result<String, i32> {
        self.kernel.thread = thread;
        self.kernel.cat(file)
    }

    /// Closes the container's files, as for a container without recent requests.
    pub(crate) fn close_files(&self) {
        // No container may keep its files open.
        self.accounting.containers();
    }

    /// How many requests were refused.
    pub(crate) fn refused(&self) -> u64 {
        self.overlay.counters().refused
    }

    /// A number of the container's `/proc/meminfo`, in KiB.
    #[track_caller]
    pub(crate) fn kib(&mut self, label: &str) -> u64 {
        let text = self.cat("proc/meminfo");
        let line = text.lines().find(|line| line.split(':').next() == Some(label));
        line.and_then(|line| line.split_whitespace().nth(1)).unwrap().parse().unwrap()
    }

    /// Returns every file with its text for the container, without what time alone changes.
    pub(crate) fn everything(&mut self) -> Vec<(String, Result<String, i32>)> {
        let files = ambit_fuse::FILES.iter().map(|file| file.path.to_owned());
        let members = ["cpu/cpu1/online", "cpu/cpu1/topology/core_id", "node/node0/meminfo"];
        let members = members.map(|path| format!("sys/devices/system/{path}"));
        files
            .chain(members)
            .map(|path| {
                let idle = |line: &str| line.starts_with("cpu");
                let text = self.try_cat(OURS, &path).map(|text| match &*path {
                    "proc/uptime" => String::new(),
                    "proc/stat" => text.lines().filter(|line| !idle(line)).collect(),
                    _ => text,
                });
                (path, text)
            })
            .collect()
    }
}

fn put(path: &Path, text: &str) {
    fs::create_dir_all(path.parent().unwrap()).unwrap();
    fs::write(path, text).unwrap();
}

/// The machine's files, and those of the threads that ask.
fn build_proc(proc: &Path) {
    let cpuinfo: String =
        (0..machine::CPUS).map(|cpu| format!("processor\t: {cpu}\nmodel name\t: x\n\n")).collect();
    let meminfo = format!(
        "MemTotal:       {MACHINE:8} kB\nMemFree:         3333333 kB\nMemAvailable:    3333333 kB\n\
         Cached:          3333333 kB\nSwapTotal:        262144 kB\nSwapFree:         262144 kB\n\
         HugePages_Total:       8\nHugePages_Free:        8\nHugepagesize:       2048 kB\n\
         Hugetlb:           16384 kB\n"
    );
    put(&proc.join("meminfo"), &meminfo);
    put(&proc.join("cpuinfo"), &cpuinfo);
    put(&proc.join("stat"), "cpu  4242424 0 0 0\nbtime 1795476668\n");
    put(&proc.join("vmstat"), "nr_free_pages 4242424\npgfault 4242424\nnuma_hit 4242424\n");
    let interrupts = "           CPU0       CPU1\n  1:    4242424          0  secret\n\
                      LOC:    4242424          0   Local timer interrupts\n";
    put(&proc.join("interrupts"), interrupts);
    for pid in [std::process::id(), OURS, THEIRS] {
        fs::create_dir_all(proc.join(format!("{pid}/ns"))).unwrap();
        symlink("pid:[4026531836]", proc.join(format!("{pid}/ns/pid"))).unwrap();
        put(&proc.join(format!("{pid}/stat")), &format!("{pid} (x) S 1\n"));
        put(&proc.join(format!("{pid}/status")), &format!("Uid:\t0\t0\t0\t0\nNSpid:\t{pid}\n"));
    }
}

fn build_sys(sys: &Path) {
    machine::build(sys);
    put(&sys.join("dev/block/8:0/uevent"), "DEVNAME=sda\n");
    put(&sys.join("dev/block/8:0/size"), "2048\n");
}

const PRESSURE: &str = "some avg10=1.25 avg60=0.50 avg300=0.10 total=123456\n";

/// 64 MiB, 16 MiB of swap, processors 1 to 3, two of them by quota.
fn groups(root: &Path) -> String {
    let cg = root.join("cg");
    put(&cg.join("cgroup.controllers"), "cpuset cpu io memory hugetlb pids\n");
    let ours = [
        ("memory.current", "8388608\n"),
        ("memory.max", "67108864\n"),
        ("memory.stat", "anon 4194304\nfile 2097152\npgfault 77\n"),
        ("memory.swap.current", "1048576\n"),
        ("memory.swap.max", "16777216\n"),
        ("hugetlb.2MB.current", "2097152\n"),
        ("hugetlb.2MB.max", "4194304\n"),
        ("cpu.max", "200000 100000\n"),
        ("cpu.stat", "usage_usec 30000000\nuser_usec 20000000\nsystem_usec 10000000\n"),
        ("cpuset.cpus.effective", "1-3\n"),
        ("io.stat", "8:0 rbytes=1048576 wbytes=0 rios=9 wios=0 dbytes=0 dios=0\n"),
        ("pids.current", "3\n"),
        ("cpu.pressure", PRESSURE),
        ("io.pressure", PRESSURE),
        ("memory.pressure", PRESSURE),
        ("cgroup.procs", "100\n"),
        ("cgroup.threads", "100\n"),
    ];
    for (file, text) in ours {
        put(&cg.join("c").join(file), text);
    }
    let theirs = [
        ("memory.current", "7654321\n"),
        ("memory.max", "50331648\n"),
        ("memory.stat", "anon 7654321\nfile 7654321\npgfault 7654321\n"),
        ("cpu.stat", "user_usec 765432100000\nsystem_usec 765432100000\n"),
        ("cpuset.cpus.effective", "7-8\n"),
        ("io.stat", "8:0 rbytes=7654321 wbytes=0 rios=7654321 wios=0 dbytes=0 dios=0\n"),
        ("pids.current", "7654321\n"),
        ("cpu.pressure", "some avg10=9.99 avg60=9.99 avg300=9.99 total=7654321\n"),
    ];
    for (file, text) in theirs {
        put(&cg.join("other").join(file), text);
    }
    "30 1 0:26 / /cg rw - cgroup2 cgroup2 rw\n".into()
}

/// The same limits with cgroup v1.
fn legacy_groups(root: &Path) -> String {
    let cg = root.join("cg");
    let ours = [
        ("memory/c/memory.usage_in_bytes", "8388608\n"),
        ("memory/c/memory.memsw.usage_in_bytes", "9437184\n"),
        (
            "memory/c/memory.stat",
            "hierarchical_memory_limit 67108864\nhierarchical_memsw_limit 83886080\n\
             total_cache 2097152\ntotal_rss 4194304\ntotal_pgfault 77\n",
        ),
        ("cpu,cpuacct/c/cpu.cfs_quota_us", "200000\n"),
        ("cpu,cpuacct/c/cpu.cfs_period_us", "100000\n"),
        ("cpu,cpuacct/c/cpuacct.usage_all", "cpu user system\n1 20000000000 10000000000\n"),
        ("cpuset/c/cpuset.effective_cpus", "1-3\n"),
        ("cpuset/c/cpuset.cpus", "1-3\n"),
        ("pids/c/pids.current", "3\n"),
        ("memory/other/memory.usage_in_bytes", "7654321\n"),
        ("memory/other/memory.stat", "hierarchical_memory_limit 50331648\ntotal_cache 7654321\n"),
    ];
    for (file, text) in ours {
        put(&cg.join(file), text);
    }
    fs::create_dir_all(cg.join("blkio/c")).unwrap();
    ["memory", "cpu,cpuacct", "cpuset", "blkio", "pids"]
        .map(|names| format!("30 1 0:26 / /cg/{names} rw - cgroup cgroup rw,{names}\n"))
        .concat()
}
