//! The whole program on folders in the place of `/`: recorded machines, and what hostile or broken
//! containers show.

use std::fs;
use std::path::{Path, PathBuf};

use crate::limits::{Bounds, Given};
use crate::text::Cpus;
use crate::verdict::{Mark, Row, Rows};
use crate::{report, verify};

/// A recorded machine that can be changed.
struct Scene(tempfile::TempDir);

fn fixtures() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("../tests/fixtures")
}

fn copy(from: &Path, to: &Path) {
    fs::create_dir_all(to).unwrap();
    for entry in fs::read_dir(from).unwrap().flatten() {
        let (path, to) = (entry.path(), to.join(entry.file_name()));
        if path.is_dir() { copy(&path, &to) } else { fs::copy(&path, &to).map(drop).unwrap() }
    }
}

const V2: &str = "linux-6.12-v2-2cpu";

impl Scene {
    fn new(fixture: &str) -> Self {
        let folder = tempfile::tempdir().unwrap();
        copy(&fixtures().join(fixture), folder.path());
        Self(folder)
    }

    /// The process with this number of the recording is the one that asks.
    fn inside(self, pid: u32) -> Self {
        let group = fs::read_to_string(self.0.path().join(format!("proc/{pid}/cgroup"))).unwrap();
        self.with("proc/self/cgroup", &group)
    }

    fn with(self, path: &str, text: &str) -> Self {
        let path = self.0.path().join(path);
        fs::create_dir_all(path.parent().unwrap()).unwrap();
        fs::write(path, text).unwrap();
        self
    }

    fn without(self, path: &str) -> Self {
        let path = self.0.path().join(path);
        if path.is_dir() { fs::remove_dir_all(path) } else { fs::remove_file(path) }.unwrap();
        self
    }

    fn judge(&self, given: &Given) -> (Rows, Bounds) {
        verify(Some(self.0.path().to_str().unwrap()), given)
    }

    fn rows(&self) -> Rows {
        self.judge(&Given::default()).0
    }

    /// The only contradiction.
    #[track_caller]
    fn contradiction(&self) -> Row {
        let all = contradictions(&self.rows());
        assert_eq!(all.len(), 1, "{all:#?}");
        all.into_iter().next().unwrap()
    }
}

fn contradictions(rows: &Rows) -> Vec<Row> {
    rows.0.iter().filter(|row| row.mark == Mark::Contradicts).cloned().collect()
}

#[track_caller]
fn row<'a>(rows: &'a Rows, subject: &str, reader: &str) -> &'a Row {
    let is = |row: &&Row| row.subject == subject && row.reader.starts_with(reader);
    rows.0.iter().find(is).unwrap_or_else(|| panic!("no {subject}, {reader}: {rows:#?}"))
}

#[test]
fn recorded_machines_are_consistent() {
    let mut machines = 0;
    for entry in fs::read_dir(fixtures()).unwrap().flatten().filter(|e| e.path().is_dir()) {
        let rows = verify(entry.path().to_str(), &Given::default()).0;
        assert_eq!(contradictions(&rows), [], "{entry:?}");
        assert!(rows.count(Mark::Agrees) > 8, "{rows:#?}");
        machines += 1;
    }
    assert!(machines >= 9, "{machines}");
}

#[test]
fn a_container_that_nothing_covers_shows_the_machine() {
    for (fixture, file) in [
        (V2, "memory.max"),
        ("linux-6.12-v2-64cpu", "memory.max"),
        ("linux-6.18-hybrid-2cpu", "memory.limit_in_bytes"),
        ("linux-6.1-v1-1cpu", "memory.limit_in_bytes"),
    ] {
        let rows = Scene::new(fixture).inside(100).rows();
        let Row { mark, reason, .. } = row(&rows, "memory size", "/proc/meminfo");
        assert_eq!(*mark, Mark::Contradicts, "{fixture}: {rows:#?}");
        assert!(reason.starts_with("/proc/meminfo shows the machine's "), "{reason}");
        let end = format!(", the limit is 256 MiB ({file}): nothing covers it");
        assert!(reason.ends_with(&end), "{fixture}: {reason}");
        let processors = row(&rows, "processors", "/proc/stat");
        let expected = if fixture.ends_with("1cpu") { Mark::Agrees } else { Mark::Contradicts };
        assert_eq!(processors.mark, expected, "{fixture}: {processors:?}");
    }
}

/// What an overlay shows under the recording's limits: 256 MiB, 64 MiB of swap, processor 0.
fn covered() -> Scene {
    let cpu = "sys/devices/system/cpu";
    Scene::new(V2)
        .inside(100)
        .with(
            "proc/meminfo",
            "MemTotal: 262144 kB\nMemFree: 200000 kB\nMemAvailable: 210000 kB\n\
             SwapTotal: 65536 kB\nSwapFree: 65536 kB\n",
        )
        .with("proc/swaps", "Filename Type Size Used Priority\nnone virtual 65536 0 0\n")
        .with("proc/stat", "cpu  1 2\ncpu0 1 2\nbtime 5\n")
        .with("proc/cpuinfo", "processor\t: 0\n")
        .with(&format!("{cpu}/online"), "0\n")
        .with(&format!("{cpu}/present"), "0\n")
}

#[test]
fn a_container_that_is_covered_agrees_with_its_limits() {
    let (rows, bounds) = covered().judge(&Given::default());
    assert_eq!(contradictions(&rows), []);
    for (subject, reader) in [
        ("memory size", "/proc/meminfo"),
        ("swap size", "/proc/swaps"),
        ("processors", "/proc/cpuinfo"),
    ] {
        assert_eq!(row(&rows, subject, reader).reason, "the limit");
    }
    assert_eq!(bounds.container().memory.as_ref().unwrap().value, 256 << 20);
    assert!((bounds.container().quota.as_ref().unwrap().value - 1.5).abs() < 1e-9);
}

#[test]
fn options_are_exact() {
    let given = |memory| Given { memory: Some(memory), swap: Some(64 << 20), ..Given::default() };
    let marks = |given| contradictions(&covered().judge(&given).0);
    assert_eq!(marks(given(256 << 20)), []);
    let less = marks(given(512 << 20));
    assert_eq!(less[0].reason, "less than 512 MiB (--memory)");
    let given = Given { quota: Some(0.5), cpuset: Some(Cpus::from([1])), ..Given::default() };
    let outside = marks(given);
    assert_eq!(outside.len(), 4, "{outside:#?}");
    assert_eq!(outside[0].reason, "0 is not in 1 (--cpuset)");
}

#[test]
fn a_process_that_entered_from_outside_is_judged_by_the_container() {
    let scene = covered()
        .with("proc/self/cgroup", "0::/../../other\n")
        .with("sys/fs/cgroup/memory.max", "268435456\n");
    let rows = scene.rows();
    assert_eq!(row(&rows, "memory size", "/proc/meminfo").reason, "the limit");
}

#[test]
fn hostile_control_group_files_are_no_limits() {
    let scene = Scene::new(V2)
        .with("proc/self/mountinfo", "1 0 0:1 / / rw - cgroup2 cgroup2 rw\n")
        .with("proc/self/cgroup", "0::/a//b\n")
        .with("a/memory.max", "-5\n")
        .with("a/cpu.max", "nan 100000\n")
        .with("cpu.max", "1e999 0\n")
        .with("cpuset.cpus.effective", "5-1\n");
    assert_eq!(contradictions(&scene.rows()), []);
}

#[test]
fn a_service_is_shown_its_own_limit_or_its_containers() {
    let scene = covered()
        .with("proc/self/cgroup", "0::/limited/child/service\n")
        .with("sys/fs/cgroup/limited/child/service/memory.max", "1048576\n")
        .with("proc/1/cgroup", "0::/limited/init.scope\n");
    let rows = scene.rows();
    assert_eq!(row(&rows, "memory size", "/proc/meminfo").reason, "the limit");
    let meminfo = "MemTotal: 1024 kB\nMemFree: 24 kB\nSwapTotal: 0 kB\nSwapFree: 0 kB\n";
    let rows = scene.with("proc/meminfo", meminfo).rows();
    assert_eq!(row(&rows, "memory size", "/proc/meminfo").reason, "the limit");
}

#[test]
fn without_proc_nothing_is_right() {
    let rows = Scene::new(V2).without("proc").rows();
    let missing: Vec<_> = contradictions(&rows).into_iter().map(|row| row.reader).collect();
    let expected =
        ["/proc/meminfo", "/proc/stat", "/proc/cpuinfo", "/proc/uptime", "/proc/loadavg"];
    assert_eq!(missing, expected);
}

#[test]
fn empty_files_and_garbage_contradict() {
    for (file, reader) in [
        ("proc/meminfo", "/proc/meminfo"),
        ("proc/cpuinfo", "/proc/cpuinfo"),
        ("proc/uptime", "/proc/uptime"),
        ("proc/loadavg", "/proc/loadavg"),
        ("proc/swaps", "/proc/swaps"),
        ("proc/vmstat", "/proc/vmstat"),
        ("proc/zoneinfo", "/proc/zoneinfo"),
        ("proc/interrupts", "/proc/interrupts"),
        ("proc/pressure/io", "/proc/pressure/io"),
        ("sys/devices/system/cpu/possible", "/sys/devices/system/cpu/possible"),
    ] {
        let found = Scene::new(V2).with(file, "").contradiction();
        assert_eq!((&*found.reader, &*found.reason), (reader, "the file is empty"));
        let huge = "9".repeat(100);
        for garbage in ["\u{0}\u{ffff}\n", "no such thing: -1\n", &huge] {
            let rows = Scene::new(V2).with(file, garbage).rows();
            let found = contradictions(&rows);
            assert!(found.iter().any(|row| row.reader == reader), "{file} {garbage}: {found:#?}");
        }
    }
}

#[test]
fn a_dead_mount_is_called_by_its_name() {
    let why = crate::files::Unread::from(std::io::Error::from_raw_os_error(libc::ENOTCONN));
    assert!(why.to_string().starts_with("the server of the mount that covers it has ended"));
}

#[test]
fn lies_are_found() {
    let cpu = "sys/devices/system/cpu";
    let found = covered().with("proc/cpuinfo", "processor : 1\n").contradiction();
    assert_eq!(found.reason, "1 is not in 0 (cpuset.cpus.effective)");
    let found = Scene::new(V2).with("proc/stat", "cpu  1\ncpu0 1\nbtime 5\n").contradiction();
    assert_eq!(found.reason, "/sys/devices/system/cpu/online lists 0-1: nothing covers it");
    let found = Scene::new(V2).with(&format!("{cpu}/possible"), "0\n").contradiction();
    assert!(found.reason.starts_with("1 is not in cpu/possible"), "{found:?}");
    let text = "MemTotal: 1024 kB\nMemFree: 2048 kB\nSwapTotal: 0 kB\nSwapFree: 0 kB\n";
    let found =
        contradictions(&Scene::new(V2).with("proc/meminfo", text).without("proc/swaps").rows());
    assert_eq!(found[0].reason, "MemFree 2 MiB is more than MemTotal 1 MiB");
    let text = "MemTotal: 1024 kB\nSwapTotal: 0 kB\nSwapFree: 18014398509481983 kB\n";
    let rows = Scene::new(V2).with("proc/meminfo", text).rows();
    assert!(row(&rows, "swap size", "/proc/meminfo").reason.starts_with("SwapFree is more"));
    let scene = Scene::new(V2)
        .with("proc/partitions", "major minor  #blocks  name\n\n 8 0 1 sda\n")
        .with("proc/diskstats", "");
    assert!(scene.contradiction().reason.starts_with("/proc/diskstats does not have sda"));
}

#[test]
fn a_processor_that_is_off_is_no_contradiction() {
    let cpu = "sys/devices/system/cpu";
    let scene = Scene::new(V2)
        .with(&format!("{cpu}/online"), "0\n")
        .with("proc/stat", "cpu  1\ncpu0 1\nbtime 5\n")
        .with("proc/cpuinfo", "processor : 0\n")
        .with(&format!("{cpu}/cpu0/online"), "1\n")
        .with(&format!("{cpu}/cpu1/online"), "0\n");
    assert_eq!(contradictions(&scene.rows()), []);
    // As overlays do that cover one file alone.
    let found = contradictions(&scene.with(&format!("{cpu}/cpu1/online"), "1\n").rows());
    let readers: Vec<_> = found.iter().map(|row| row.reader.rsplit('/').next().unwrap()).collect();
    assert_eq!(readers, ["present", "cpuN"]);
}

#[test]
fn the_table_fits_a_terminal() {
    let deep = "deeper/".repeat(20);
    let scene = Scene::new(V2)
        .with("proc/self/cgroup", &format!("0::/limited/{deep}\n"))
        .with(&format!("sys/fs/cgroup/limited/{deep}memory.max"), "4096\n");
    let (rows, bounds) = scene.judge(&Given::default());
    let table = report::table(&rows, &bounds);
    let longest = table.lines().map(|line| line.chars().count()).max().unwrap();
    assert!(longest <= 80, "{table}");
    assert!(table.contains("the limit is 4 KiB (memory.max):"), "{table}");
}

#[test]
fn json_and_junit_say_the_same() {
    let (rows, bounds) = Scene::new(V2).inside(100).judge(&Given::default());
    let json: serde_json::Value = serde_json::from_str(&report::json(&rows, &bounds)).unwrap();
    assert_eq!(json["consistent"], false);
    assert_eq!(json["rows"].as_array().unwrap().len(), rows.0.len());
    assert_eq!(json["rows"][0]["result"], "contradicts");
    let junit = report::junit(&rows);
    assert_eq!(junit.matches("<failure ").count(), rows.count(Mark::Contradicts));
    assert_eq!(junit.matches("<testcase ").count(), rows.0.len());
    let mut rows = Rows::default();
    rows.add("a", "<&\"\u{1}", "", None, (Mark::Agrees, String::new()));
    assert!(report::junit(&rows).contains("name=\"&lt;&amp;&quot;\u{fffd}\""));
}
