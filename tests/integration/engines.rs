//! runc, crun and LXC show the same numbers, with the overlay bound by hand and the daemon's
//! sockets as their listeners.

use crate::harness::daemon::Daemon;
use crate::harness::machine;
use crate::harness::sandbox::{Questions, Survey, script};
use crate::harness::text::{close, count, cpu_lines, first_number, free, kb, number};
use crate::harness::{lxc, oci};

const MIB: u64 = 1 << 20;

const QUESTIONS: Questions<'_> = &[
    ("meminfo", "cat /proc/meminfo"),
    ("sysinfo", "/mnt/sysinfo"),
    ("sysinfo-32", "/mnt/sysinfo-32"),
    ("free", "free -k"),
    ("busybox-free", "busybox free -k"),
    ("nproc", "nproc"),
    ("busybox-nproc", "busybox nproc"),
    ("cpuinfo", "cat /proc/cpuinfo"),
    ("stat", "cat /proc/stat"),
    ("uptime", "cat /proc/uptime"),
];

#[track_caller]
fn tells_one_story(survey: &Survey, memory: u64) {
    let (total, meminfo) = (memory / 1024, survey.get("meminfo"));
    assert_eq!(kb(meminfo, "MemTotal"), total);
    for name in ["free", "busybox-free"] {
        assert_eq!(free(survey.get(name), "Mem", "total"), total, "{name}");
        close(name, free(survey.get(name), "Mem", "free"), kb(meminfo, "MemFree"), 8 * 1024);
    }
    for name in machine::runnable(&["sysinfo", "sysinfo-32"]) {
        assert_eq!(number(survey.get(name), "total_kb"), total, "{name}");
    }
    for name in ["nproc", "busybox-nproc"] {
        assert_eq!(survey.get(name).trim(), "1", "{name}");
    }
    assert_eq!(count(survey.get("cpuinfo"), "processor"), 1);
    assert_eq!(cpu_lines(survey.get("stat")).len(), 1);
    assert!(first_number(survey.get("uptime")) < machine::patience(60).as_secs_f64());
}

#[track_caller]
fn oci(engine: &str, userns: bool) {
    machine::program("sysinfo-32");
    let daemon = Daemon::start();
    let script = script(QUESTIONS);
    let container = oci::Container { memory: 160 * MIB, quota: 100_000, userns, script: &script };
    let output = oci::run(engine, &daemon, container);
    tells_one_story(&Survey::of(&output.ok()), 160 * MIB);
}

/// Runtimes touch the files while they build a container, before they limit it: nothing read
/// then may be shown to the container itself.
#[test]
fn the_first_read_of_a_container_shows_its_limits() {
    let daemon = Daemon::start();
    for _ in 0..5 {
        let script = "read -r line </proc/meminfo; echo \"$line\"";
        let container = oci::Container { memory: 160 * MIB, quota: 100_000, userns: false, script };
        let output = oci::run("runc", &daemon, container).ok();
        assert_eq!(kb(&output, "MemTotal"), 160 * 1024);
    }
}

#[test]
fn runc() {
    oci("runc", false);
}

#[test]
fn runc_with_a_user_namespace() {
    oci("runc", true);
}

#[test]
fn crun() {
    oci("crun", false);
}

#[test]
fn crun_with_a_user_namespace() {
    oci("crun", true);
}

#[test]
fn lxc_with_an_id_map() {
    machine::program("sysinfo-32");
    let daemon = Daemon::start();
    let output = lxc::run(&daemon, 144 * MIB, 100_000, &script(QUESTIONS));
    tells_one_story(&Survey::of(&output.ok()), 144 * MIB);
}
