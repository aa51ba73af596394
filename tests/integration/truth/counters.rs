//! Counters that a container reads never decrease: not when processors come and go with its
//! cpuset and its quota, not when processes end and take their times with them, not when limits
//! of memory change or the record is taken anew.
//!
//! AMBIT_TEST_WATCH sets for how many seconds they are watched; continuous integration (CI) takes
//! a minute on a real machine.

use std::fs;
use std::path::Path;
use std::time::{Duration, Instant};

use super::restarts::{TICK, used};
use crate::harness::cgroup::{Cgroup, Limits};
use crate::harness::command::start;
use crate::harness::daemon::Daemon;
use crate::harness::table::row;
use crate::harness::text::number;
use crate::harness::{machine, sandbox};

/// Processes that work a little, read something and end, as long as the watcher runs.
const CHURN: &str = "(while :; do \
        sh -c 'i=0; while [ $i -lt 2000 ]; do i=$((i+1)); done'; cat /proc/self/maps >/dev/null; \
    done) & churn=$!; (while :; do :; done) & busy=$!; sleep 0.5;";

fn seconds() -> u64 {
    let wanted = std::env::var("AMBIT_TEST_WATCH").ok().and_then(|text| text.parse().ok());
    let usual = match (machine::slowness(), std::env::var_os("CI")) {
        (1, Some(_)) => 60,
        (1, None) => 20,
        _ => 10,
    };
    wanted.unwrap_or(usual)
}

/// Changes the limits of a control group in circles until it is told to stop.
#[derive(Debug)]
struct Shaker {
    quotas: [&'static str; 3],
    memories: [u64; 2],
    cpusets: [&'static str; 3],
}

const SHAKER: Shaker = Shaker {
    quotas: ["50000", "150000", ""],
    memories: [192 << 20, 256 << 20],
    cpusets: ["0", "1", "0-1"],
};

impl Shaker {
    fn step(&self, number: usize, dirs: &[&Path]) {
        let write = |file: &str, value: &str| {
            for path in dirs.iter().map(|dir| dir.join(file)).filter(|path| path.exists()) {
                fs::write(&path, value)
                    .unwrap_or_else(|e| panic!("cannot write {value} to {}: {e}", path.display()));
            }
        };
        let quota = self.quotas[number % self.quotas.len()];
        write("cpu.cfs_quota_us", if quota.is_empty() { "-1" } else { quota });
        let wide = if quota.is_empty() { "max" } else { quota };
        write("cpu.max", &format!("{wide} 100000"));
        let memory = self.memories[number % self.memories.len()].to_string();
        write("memory.limit_in_bytes", &memory);
        write("memory.max", &memory);
        if machine::processors() > 1 {
            write("cpuset.cpus", self.cpusets[(number / 2) % self.cpusets.len()]);
        }
    }
}

#[test]
fn no_counter_decreases_whatever_changes() {
    let daemon = Daemon::start();
    let limits = Limits { memory: Some(256 << 20), ..Limits::default() };
    let cgroup = Cgroup::new("watched", limits);
    let watch = machine::program("watch");
    // The container's own proc, with the overlay's folder beside it.
    let script = format!(
        "{CHURN} {} {} {}; status=$?; kill $churn $busy; exit $status",
        watch.display(),
        seconds(),
        daemon.place().mount().display(),
    );
    let mut watching = start(&mut cgroup.script(&script));
    let dirs: Vec<_> = cgroup.dirs().collect();
    let began = Instant::now();
    let mut steps = 0;
    while !watching.ended() && began.elapsed() < machine::patience(seconds() + 30) {
        SHAKER.step(steps, &dirs);
        steps += 1;
        std::thread::sleep(Duration::from_millis(70));
    }
    let output = watching.finish(machine::patience(10));
    assert_eq!(output.status, 0, "{}\n{}", output.stdout, output.stderr);
    assert!(number(&output.stdout, "rounds") > 10, "{}", output.stdout);
    eprintln!("{steps} changes of limits\n{}", output.stdout);
    // The lines of processors did come and go.
    let (least, most) = (number(&output.stdout, "least_cpus"), number(&output.stdout, "most_cpus"));
    let wanted = if machine::processors() > 1 { (1, 2) } else { (1, 1) };
    assert_eq!((least, most), wanted, "{}", output.stdout);
}

#[test]
fn counters_of_a_sandbox_do_not_decrease_either() {
    let daemon = Daemon::start();
    let script = format!("{CHURN} /mnt/watch 5 /; status=$?; kill $churn $busy; exit $status");
    let output = sandbox::run(&daemon, &["--memory", "256M", "--cpus", "1"], &script);
    assert_eq!(output.status, 0, "{}\n{}", output.stdout, output.stderr);
    assert!(number(&output.stdout, "checks") > 1000, "{}", output.stdout);
}

/// What a process used stays used when it has ended. It uses a second, however long that takes: the
/// container's cgroup tells what was used, not the time of day.
#[test]
fn the_time_of_ended_processes_does_not_vanish() {
    let daemon = Daemon::start();
    let script = format!(
        "busy() {{ sh -c 'ulimit -t 1; while :; do :; done'; }}
         head -n 1 {stat}; busy 2>/dev/null; head -n 1 {stat}; sleep 0.5; head -n 1 {stat}",
        stat = daemon.file("proc/stat").display()
    );
    let cgroup = Cgroup::new("ended", Limits::default());
    let output = crate::harness::command::run(&mut cgroup.script(&script));
    let shown: Vec<u64> = output.stdout.lines().map(busy_ticks).collect();
    let [before, during, after] = shown[..] else { panic!("{output:?}") };
    let used = used(&cgroup) / TICK;
    assert!(used >= 90, "a second is {used} ticks");
    assert!(during >= before + 80, "a busy second is {before} to {during} ticks");
    assert!(after >= during, "{during} ticks became {after}");
    row("/proc/stat busy ticks", "a busy process has ended")
        .because("the end of what looked")
        .numbers(after as f64, used as f64, 20.0);
}

/// User and system ticks of the first line of `/proc/stat`.
pub(super) fn busy_ticks(line: &str) -> u64 {
    let mut ticks = line.split_whitespace().filter_map(|word| word.parse::<u64>().ok());
    let user = ticks.next().unwrap_or_else(|| panic!("no ticks in {line:?}"));
    user + ticks.nth(1).unwrap()
}
