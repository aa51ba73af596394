//! Tests the table of docs/fallbacks.md, row by row: what is shown if something is missing, fails
//! or ends, and that it is never a number of another container or the usage of the machine.
#![allow(clippy::unwrap_used, reason = "what fails here fails the test")]

use std::collections::BTreeSet;
use std::fs;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::Duration;

use ambit_sysinfo::CpuSet;
use kernel::{EIO, ESRCH};
use world::{MACHINE, OURS, SECRETS, THEIRS, World};

#[path = "../fake_kernel/kernel.rs"]
mod kernel;
#[path = "../../../tests/fixtures/machine.rs"]
mod machine;
mod world;

/// The test of a row.
enum Proof {
    Here(fn()),
    /// A test in this file, because it needs other processes, descriptors or memory nodes.
    In(&'static str),
}

/// The table: the first words of each row.
const ROWS: &[(&str, Proof)] = &[
    ("no memory controller in the container's cgroup", Proof::Here(no_memory_controller)),
    ("no limit, or one above the machine's memory", Proof::Here(no_limit)),
    ("a controller that is enabled later", Proof::Here(a_controller_is_enabled_later)),
    (
        "no `cpuset.mems`, or one that names no node with memory",
        Proof::In("sysinfo/src/source/nodes.rs"),
    ),
    (
        "the root of the container's cgroup namespace cannot be found",
        Proof::In("sysinfo/src/membership.rs"),
    ),
    ("no swap accounting", Proof::Here(no_swap_accounting)),
    (
        "no cpuset controller, an empty cpuset, or none of its processors online",
        Proof::Here(no_cpuset),
    ),
    ("no cpu controller", Proof::Here(no_cpu_controller)),
    ("no CPU weight, with `cpu_view = \"weight\"`", Proof::In("sysinfo/src/cpu/tests.rs")),
    (
        "no count of throttled time, with `steal = \"throttled\"`",
        Proof::In("sysinfo/src/source/throttled.rs"),
    ),
    ("no processor accounting", Proof::Here(no_processor_accounting)),
    (
        "no io controller; on v1 since Linux 6.10 a disk that nothing throttles",
        Proof::Here(no_io_controller),
    ),
    ("no pressure accounting (`psi=0`), or no cgroup2 tree", Proof::Here(no_pressure)),
    ("an event or field that the kernel does not account by container", Proof::Here(no_account)),
    ("no hugetlb controller, or nothing it accounts for", Proof::Here(no_hugetlb)),
    ("no pids controller", Proof::Here(no_pids)),
    ("no memory nodes in the machine's kernel", Proof::Here(no_nodes)),
    ("no ZFS on the machine, so that containers have no such file", Proof::Here(no_zfs)),
    ("no list of possible processors in the machine's `/sys`", Proof::Here(no_possible)),
    ("no arrangement of a processor in the machine's `/sys`", Proof::Here(no_arrangement)),
    (
        "a kernel without the ioctl for numbers of threads (before Linux 6.11)",
        Proof::In("intercept/src/thread_id.rs"),
    ),
    (
        "a kernel whose time namespaces do not shift start times (before Linux 5.11)",
        Proof::In("tests/integration/older_kernel.rs"),
    ),
    (
        "a kernel where only root writes to `/proc/pressure` (before Linux 5.13)",
        Proof::In("tests/integration/pressure.rs"),
    ),
    ("a file that is empty or has nonsense", Proof::Here(nonsense)),
    (
        "a file that fails (EIO, ENODEV), or a cgroup that was removed, while the container is known",
        Proof::Here(what_fails_leaves_the_last_good_numbers),
    ),
    ("the same for a container that was never seen", Proof::Here(what_fails_at_first_is_an_error)),
    (
        "a file that fails and that few files show (io, events, pressure)",
        Proof::Here(what_few_files_show_fails),
    ),
    (
        "a file that does not answer, while another thread waits for it",
        Proof::In("fuse/tests/fake_kernel/hanging.rs"),
    ),
    (
        "the same, for the reader on whose behalf it is read",
        Proof::In("fuse/tests/fake_kernel/hanging.rs"),
    ),
    (
        "the same in more containers than there are threads for",
        Proof::In("fuse/tests/fake_kernel/hanging.rs"),
    ),
    ("the first process is gone, and with it the pid namespace", Proof::Here(a_reader_is_gone)),
    (
        "a container, with all that it nests, or a user of the host has used up its part of what the \
         daemon can hold",
        Proof::In("tests/integration/accounts.rs"),
    ),
    ("the same for texts of open files", Proof::In("fuse/src/handles.rs")),
    ("the daemon itself has no descriptor left", Proof::In("tests/integration/accounts.rs")),
    (
        "a file still open, in the hands of a process outside",
        Proof::In("tests/integration/fallbacks.rs"),
    ),
    ("a process that moved to another cgroup of the host", Proof::Here(a_process_moves)),
    ("the cgroup of a pressure trigger is removed", Proof::In("tests/integration/pressure.rs")),
    ("the machine's own files cannot be read", Proof::Here(the_machines_files_fail)),
    ("a request whose code panics", Proof::In("fuse/tests/fake_kernel/main.rs")),
];

const TABLE: &str = include_str!("../../../docs/fallbacks.md");

#[test]
fn the_table_is_true_row_by_row() {
    let written: Vec<&str> = TABLE
        .lines()
        .filter_map(|line| line.strip_prefix("| ")?.split(" | ").next())
        .filter(|row| *row != "what")
        .collect();
    let known: Vec<&str> = ROWS.iter().map(|(row, _)| *row).collect();
    assert_eq!(written, known, "docs/fallbacks.md and this test have the same rows");
    for (row, proof) in ROWS {
        println!("{row}");
        match proof {
            Proof::Here(holds) => holds(),
            Proof::In(file) => {
                let place = format!("{}/../{file}", env!("CARGO_MANIFEST_DIR"));
                assert!(fs::exists(place).unwrap(), "{file} is gone");
            }
        }
    }
}

/// Every file is in a row of the table.
#[test]
fn every_file_has_a_row() {
    let named: BTreeSet<&str> = TABLE
        .lines()
        .filter(|line| line.starts_with("| "))
        .filter_map(|line| line.trim_end_matches(" |").rsplit(" | ").next())
        .flat_map(|files| files.split([',', ' ', '`']))
        .collect();
    for path in ambit_fuse::FILES.iter().map(|file| file.path) {
        let name = path.rsplit('/').next().unwrap();
        let group = path.strip_prefix("proc/").and_then(|path| path.split('/').next());
        let is_there = named.contains(name)
            || group.is_some_and(|group| named.contains(group))
            || path.starts_with("sys/devices/system/cpu/")
                && named.contains("/sys/devices/system/cpu");
        assert!(is_there, "{path} is in no row of docs/fallbacks.md");
    }
}

/// Asserts that the container is shown no number of the other container nor of the machine's usage.
#[track_caller]
fn shows_own_numbers_only(world: &mut World) {
    for (path, text) in world.everything() {
        let text = text.unwrap_or_default();
        for secret in SECRETS {
            let mut words = text.split(|c: char| !c.is_ascii_digit());
            assert!(!words.any(|word| word == secret), "{path} shows {secret}:\n{text}");
        }
    }
}

fn swap_of(world: &mut World) -> [u64; 2] {
    let swaps = world.cat("proc/swaps");
    let area = swaps.lines().nth(1).and_then(|line| line.split_whitespace().nth(2));
    [world.kib("SwapTotal"), area.map_or(0, |size| size.parse().unwrap())]
}

fn zone(world: &mut World) -> u64 {
    let text = world.cat("proc/zoneinfo");
    let line = text.lines().find_map(|line| line.trim().strip_prefix("managed"));
    line.unwrap().trim().parse::<u64>().unwrap() * 4
}

/// KiB of all nodes that are shown.
fn nodes(world: &mut World) -> u64 {
    let node = |node: u32| format!("sys/devices/system/node/node{node}/meminfo");
    let texts = [0, 1].map(|number| world.try_cat(OURS, &node(number)).unwrap_or_default());
    let total = |text: &String| -> Option<u64> {
        text.split_once("MemTotal:")?.1.split_whitespace().next()?.parse().ok()
    };
    texts.iter().filter_map(total).sum()
}

#[track_caller]
fn has_memory(world: &mut World, kib: u64) {
    let all = [world.kib("MemTotal"), zone(world), nodes(world)];
    assert_eq!(all, [kib; 3], "meminfo, zoneinfo, nodes");
    shows_own_numbers_only(world);
}

/// Asserts that this many of these processors are shown, the same ones in all files.
#[track_caller]
fn has_processors(world: &mut World, count: usize, of: &str) {
    let list = world.cat("sys/devices/system/cpu/online");
    let shown = CpuSet::parse(list.as_bytes()).unwrap();
    let allowed = CpuSet::parse(of.as_bytes()).unwrap();
    assert!(
        shown.len() == count && shown.intersection(&allowed) == shown,
        "{count} of {of}: {list}"
    );
    assert_eq!(world.cat("sys/devices/system/cpu/present"), list);
    assert_eq!(world.cat("sys/devices/system/cpu/possible"), "0-15\n");
    assert_eq!(world.cat("proc/cpuinfo").matches("processor\t:").count(), count);
    assert_eq!(world.cat("proc/stat").matches("cpu").count(), count + 1);
    for file in ["proc/softirqs", "proc/interrupts"] {
        assert_eq!(world.cat(file).lines().next().unwrap().matches("CPU").count(), count, "{file}");
    }
    shows_own_numbers_only(world);
}

/// If nothing is missing, the numbers are those that the rows are compared with.
#[test]
fn with_everything_there_the_numbers_are_the_containers_own() {
    for mut world in [World::v2(), World::v1()] {
        has_memory(&mut world, 64 << 10);
        has_processors(&mut world, 2, "1-3");
        assert_eq!(swap_of(&mut world), [16 << 10; 2]);
        assert!(world.cat("proc/loadavg").contains("/3 "));
    }
    let mut world = World::v2();
    assert!(world.cat("proc/diskstats").contains(" sda 9 0 2048 "));
    assert!(world.cat("proc/partitions").contains("sda"));
    assert_eq!(world.kib("HugePages_Total"), 2);
    assert!(world.cat("proc/pressure/cpu").contains("avg10=1.25"));
    // The other container is shown the numbers that this one must not be shown.
    for (file, secret) in [("proc/meminfo", SECRETS[0]), ("proc/diskstats", SECRETS[1])] {
        assert!(world.try_cat(THEIRS, file).unwrap().contains(secret), "{file}");
    }
}

fn no_memory_controller() {
    let mut world = World::v2();
    world.write("cg/above/memory.max", "83886080\n");
    world.write("cg/above/memory.current", "1048576\n");
    world.write("cg/above/memory.stat", "anon 1048576\n");
    fs::create_dir(world.path("cg/above/plain")).unwrap();
    world.is_in(OURS, "above/plain");
    has_memory(&mut world, 80 << 10);
    assert_eq!(world.kib("MemFree"), 79 << 10);
    // No ancestor has a controller either: the numbers are those of the machine.
    fs::create_dir_all(world.path("cg/none/plain")).unwrap();
    world.is_in(OURS, "none/plain");
    std::thread::sleep(Duration::from_millis(30));
    has_memory(&mut world, MACHINE);
}

fn a_controller_is_enabled_later() {
    let mut world = World::v2();
    fs::create_dir(world.path("cg/late")).unwrap();
    world.is_in(OURS, "late");
    has_memory(&mut world, MACHINE);
    world.write("cg/late/memory.max", "67108864\n");
    world.write("cg/late/memory.current", "8388608\n");
    world.write("cg/late/memory.stat", "anon 4194304\n");
    std::thread::sleep(Duration::from_millis(600));
    has_memory(&mut world, 64 << 10);
}

fn no_limit() {
    for limit in ["max\n", "9223372036854771712\n"] {
        let mut world = World::v2();
        world.write("memory.max", limit);
        has_memory(&mut world, MACHINE);
        // 8 MiB are used, and 16 MiB are in huge page pools.
        assert_eq!(world.kib("MemFree"), MACHINE - (24 << 10));
    }
    let mut world = World::v1();
    world.write("memory.stat", "hierarchical_memory_limit 9223372036854771712\n");
    has_memory(&mut world, MACHINE);
}

fn no_swap_accounting() {
    let mut world = World::v2();
    world.remove("memory.swap.current");
    world.remove("memory.swap.max");
    assert_eq!(swap_of(&mut world), [0, 0]);
    let mut world = World::v1();
    world.remove("memory.memsw.usage_in_bytes");
    assert_eq!(swap_of(&mut world), [0, 0]);
    shows_own_numbers_only(&mut world);
}

fn no_cpuset() {
    for how in [None, Some("\n"), Some("40-41\n")] {
        for (mut world, file) in
            [(World::v2(), "cpuset.cpus.effective"), (World::v1(), "cpuset.effective_cpus")]
        {
            match how {
                None => world.remove(file),
                Some(text) => world.write(file, text),
            }
            if file == "cpuset.effective_cpus" {
                world.remove("cpuset.cpus");
            }
            has_processors(&mut world, 2, "0-15");
        }
    }
}

fn no_cpu_controller() {
    let mut world = World::v2();
    world.remove("cpu.max");
    has_processors(&mut world, 3, "1-3");
    let mut world = World::v1();
    world.remove("cpu.cfs_quota_us");
    world.remove("cpu.cfs_period_us");
    has_processors(&mut world, 3, "1-3");
}

fn no_processor_accounting() {
    for (mut world, file) in [(World::v2(), "cpu.stat"), (World::v1(), "cpuacct.usage_all")] {
        world.remove(file);
        let stat = world.cat("proc/stat");
        let numbers: Vec<u64> = stat
            .lines()
            .next()
            .unwrap()
            .split_whitespace()
            .filter_map(|word| word.parse().ok())
            .collect();
        assert_eq!(numbers[..3], [0, 0, 0], "{stat}");
        assert!(numbers[3] > 0, "{stat}");
        let uptime = world.cat("proc/uptime");
        let clocks: Vec<f64> =
            uptime.split(' ').map(|clock| clock.trim().parse().unwrap()).collect();
        // Two idle processors.
        assert!(clocks[1] > 0.0 && clocks[1] <= 2.0 * clocks[0] + 0.1, "{uptime}");
        shows_own_numbers_only(&mut world);
    }
}

fn no_io_controller() {
    let world = World::v2();
    world.remove("io.stat");
    for mut world in [world, World::v1()] {
        assert_eq!(world.cat("proc/diskstats"), "");
        assert_eq!(world.cat("proc/partitions"), "major minor  #blocks  name\n\n");
        shows_own_numbers_only(&mut world);
    }
}

fn no_pressure() {
    let world = World::v2();
    for name in ["cpu", "io", "memory"] {
        world.remove(&format!("{name}.pressure"));
    }
    for mut world in [world, World::v1()] {
        for name in ["cpu", "io", "memory"] {
            let text = world.cat(&format!("proc/pressure/{name}"));
            let never = "avg10=0.00 avg60=0.00 avg300=0.00 total=0";
            assert_eq!(text, format!("some {never}\nfull {never}\n"));
        }
    }
}

fn no_account() {
    let mut world = World::v2();
    assert_eq!(world.kib("Cached"), 2 << 10);
    let vmstat = world.cat("proc/vmstat");
    assert!(vmstat.contains("\npgfault 77\n") && vmstat.ends_with("\nnuma_hit 0\n"), "{vmstat}");
    world.write("memory.stat", "anon 4194304\n");
    assert_eq!(world.kib("Cached"), 0);
    let slabs = world.cat("proc/slabinfo");
    assert!(slabs.lines().all(|line| line.starts_with(['#', 's'])), "{slabs}");
    let softirqs = world.cat("proc/softirqs");
    let counts = softirqs.lines().skip(1).flat_map(|line| line.split_whitespace().skip(1));
    assert!(counts.into_iter().all(|count| count == "0"), "{softirqs}");
    assert!(world.cat("proc/interrupts").contains("LOC:"), "lines without a device stay");
    shows_own_numbers_only(&mut world);
}

fn no_hugetlb() {
    let world = World::v2();
    world.remove("hugetlb.2MB.current");
    world.remove("hugetlb.2MB.max");
    for mut world in [world, World::v1()] {
        assert_eq!([world.kib("HugePages_Total"), world.kib("Hugetlb")], [0, 0]);
    }
}

fn no_pids() {
    let mut world = World::v2();
    world.remove("pids.current");
    world.write("cgroup.threads", "100\n200\n");
    assert!(world.cat("proc/loadavg").contains("/2 "));
}

fn no_nodes() {
    let mut world = World::with_own_sys();
    fs::remove_dir_all(world.path("sys/devices/system/node")).unwrap();
    // The topology is read again when processors come or go.
    world.write("sys/devices/system/cpu/online", "0-14\n");
    std::thread::sleep(Duration::from_millis(250));
    assert_eq!(world.kib("MemTotal"), 64 << 10);
    assert!(world.try_cat(OURS, "sys/devices/system/node/node0/meminfo").is_err());
    shows_own_numbers_only(&mut world);
}

/// With ZFS, the names of the rows are shown as OpenZFS 2.3 prints them, and none of the numbers.
fn no_zfs() {
    let arcstats = "proc/spl/kstat/zfs/arcstats";
    let mut world = World::v2();
    let heading = "name                            type data\n";
    assert_eq!(world.cat(arcstats), format!("0 1 0x01 0 0 0 0\n{heading}"), "no ZFS");
    let rows = |hits: u64, size: u64| {
        format!(
            "hits                            4    {hits}\nsize                            4    {size}\n"
        )
    };
    let text = format!("9 1 0x01 2 544 7654321 3333333\n{heading}{}", rows(4_242_424, 3_333_333));
    world.write(arcstats, &text);
    let shown = format!("0 1 0x01 2 544 0 0\n{heading}{}", rows(0, 0));
    assert_eq!(world.cat(arcstats), shown, "ZFS is loaded while containers run");
    world.remove(arcstats);
    assert_eq!(world.cat(arcstats), shown, "names are read once");
}

fn no_possible() {
    let mut world = World::with_own_sys();
    fs::remove_file(world.path("sys/devices/system/cpu/possible")).unwrap();
    world.write("sys/devices/system/cpu/online", "0-14\n");
    std::thread::sleep(Duration::from_millis(250));
    assert_eq!(world.cat("sys/devices/system/cpu/possible"), "0-14\n");
    shows_own_numbers_only(&mut world);
}

fn no_arrangement() {
    let mut world = World::with_own_sys();
    fs::remove_dir_all(world.path("sys/devices/system/cpu/cpu1")).unwrap();
    world.write("sys/devices/system/cpu/online", "0-14\n");
    std::thread::sleep(Duration::from_millis(250));
    world.write("cpu.max", "max 100000\n");
    has_processors(&mut world, 3, "1-3");
    assert!(world.try_cat(OURS, "sys/devices/system/cpu/cpu1/topology/core_id").is_err());
    assert!(world.try_cat(OURS, "sys/devices/system/cpu/cpu2/topology/core_id").is_ok());
}

fn nonsense() {
    for text in ["", "\n", "nonsense\n", "\u{fffd}\0 max -1\n"] {
        let mut world = World::v2();
        for file in ["memory.max", "cpu.max", "cpuset.cpus.effective", "memory.swap.current"] {
            world.write(file, text);
        }
        world.write("io.stat", text);
        has_memory(&mut world, MACHINE);
        has_processors(&mut world, 16, "0-15");
        assert_eq!(swap_of(&mut world), [0, 0]);
        assert_eq!(world.cat("proc/diskstats"), "");
    }
}

/// The files that each sample reads.
const READ: [&str; 9] = [
    "memory.current",
    "memory.max",
    "memory.stat",
    "memory.swap.current",
    "memory.swap.max",
    "cpu.max",
    "cpu.stat",
    "cpuset.cpus.effective",
    "pids.current",
];

fn what_fails_leaves_the_last_good_numbers() {
    for file in READ {
        let mut world = World::v2();
        let good = world.everything();
        world.fail(file);
        world.close_files();
        assert_eq!(world.everything(), good, "{file}");
    }
    let mut world = World::v2();
    let good = world.everything();
    fs::remove_dir_all(world.path("cg/c")).unwrap();
    world.close_files();
    assert_eq!(world.everything(), good, "the cgroup was removed");
}

fn what_fails_at_first_is_an_error() {
    for file in READ {
        let mut world = World::v2();
        world.fail(file);
        for (path, text) in world.everything() {
            // A member is looked up first, which fails without a view.
            assert_eq!(text, Err(EIO), "{path}, when {file} fails");
        }
        // Other containers are not affected.
        assert!(world.try_cat(THEIRS, "proc/meminfo").unwrap().contains(SECRETS[0]));
    }
    let mut world = World::v2();
    fs::remove_dir_all(world.path("cg/c")).unwrap();
    assert_eq!(world.try_cat(OURS, "proc/meminfo"), Err(EIO));
}

fn what_few_files_show_fails() {
    let mut world = World::v2();
    world.fail("io.stat");
    world.fail("cpu.pressure");
    assert_eq!(world.cat("proc/diskstats"), "");
    assert!(world.cat("proc/pressure/cpu").contains("avg10=0.00"));
    shows_own_numbers_only(&mut world);
    let mut world = World::v2();
    let files = ["proc/diskstats", "proc/partitions", "proc/vmstat", "proc/pressure/cpu"];
    let good = files.map(|file| world.cat(file));
    world.fail("io.stat");
    world.fail("cpu.pressure");
    world.close_files();
    assert_eq!(files.map(|file| world.cat(file)), good);
}

fn a_reader_is_gone() {
    let mut world = World::v2();
    for path in ambit_fuse::FILES.iter().map(|file| file.path) {
        assert_eq!(world.try_cat(4711, path), Err(ESRCH), "{path}");
    }
}

fn a_process_moves() {
    let mut world = World::v2();
    assert_eq!(world.kib("MemTotal"), 64 << 10);
    world.is_in(OURS, "other");
    std::thread::sleep(Duration::from_millis(30));
    assert_eq!(world.kib("MemTotal").to_string(), SECRETS[0]);
}

fn the_machines_files_fail() {
    let mut world = World::with_own_sys();
    let good = world.everything();
    for file in ["meminfo", "cpuinfo", "stat", "vmstat", "interrupts"] {
        world.fail(&format!("proc/{file}"));
    }
    world.fail("sys/devices/system/cpu/online");
    std::thread::sleep(Duration::from_millis(250));
    assert_eq!(world.everything(), good);
}

/// Counts what is logged.
struct Lines(AtomicUsize);

static LINES: Lines = Lines(AtomicUsize::new(0));

impl tracing::Subscriber for &'static Lines {
    fn enabled(&self, metadata: &tracing::Metadata<'_>) -> bool {
        *metadata.level() <= tracing::Level::INFO
    }
    fn new_span(&self, _: &tracing::span::Attributes<'_>) -> tracing::span::Id {
        tracing::span::Id::from_u64(1)
    }
    fn record(&self, _: &tracing::span::Id, _: &tracing::span::Record<'_>) {}
    fn record_follows_from(&self, _: &tracing::span::Id, _: &tracing::span::Id) {}
    fn event(&self, _: &tracing::Event<'_>) {
        self.0.fetch_add(1, Ordering::Relaxed);
    }
    fn enter(&self, _: &tracing::span::Id) {}
    fn exit(&self, _: &tracing::span::Id) {}
}

/// Containers choose how many reads fail, so the log must be rate limited.
#[test]
fn a_thousand_reads_that_fail_write_next_to_nothing_to_the_log() {
    let counts = tracing::subscriber::set_global_default(&LINES);
    assert!(counts.is_ok(), "no other subscriber is set in this program");
    tracing::info!("the first line is counted");
    assert_eq!(LINES.0.swap(0, Ordering::Relaxed), 1);
    let mut world = World::v2();
    world.fail("memory.current");
    for _ in 0..1000 {
        assert_eq!(world.try_cat(OURS, "proc/meminfo"), Err(EIO));
    }
    assert!(world.refused() >= 1000, "they are counted instead");
    let lines = LINES.0.load(Ordering::Relaxed);
    assert!(lines <= 5, "{lines} lines");
}
