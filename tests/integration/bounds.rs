//! The limits that are shown: none, a parent's, a quota, a cpuset, swap.

use crate::harness::cgroup::{Cgroup, Limits};
use crate::harness::command::run;
use crate::harness::daemon::Daemon;
use crate::harness::machine;
use crate::harness::sandbox::{Questions, Survey};
use crate::harness::text::{count, cpu_lines, free, kb, list_length, number};

const MIB: u64 = 1 << 20;

const QUESTIONS: Questions<'_> = &[
    ("meminfo", "cat /proc/meminfo"),
    ("sysinfo", "/mnt/sysinfo"),
    ("free", "free -k"),
    ("busybox-free", "busybox free -k"),
    ("nproc", "nproc"),
    ("cpuinfo", "cat /proc/cpuinfo"),
    ("stat", "cat /proc/stat"),
    ("online", "cat /sys/devices/system/cpu/online"),
];

fn ask(args: &[&str]) -> Survey {
    let daemon = Daemon::start();
    Survey::run(&daemon, args, QUESTIONS)
}

#[track_caller]
fn sees_memory(survey: &Survey, total_kb: u64) {
    assert_eq!(kb(survey.get("meminfo"), "MemTotal"), total_kb);
    assert_eq!(number(survey.get("sysinfo"), "total_kb"), total_kb);
    assert_eq!(free(survey.get("free"), "Mem", "total"), total_kb);
    assert_eq!(free(survey.get("busybox-free"), "Mem", "total"), total_kb);
}

#[track_caller]
fn sees_swap(survey: &Survey, total_kb: u64) {
    assert_eq!(kb(survey.get("meminfo"), "SwapTotal"), total_kb);
    assert_eq!(number(survey.get("sysinfo"), "swap_total_kb"), total_kb);
    assert_eq!(free(survey.get("free"), "Swap", "total"), total_kb);
    assert_eq!(free(survey.get("busybox-free"), "Swap", "total"), total_kb);
}

#[track_caller]
fn sees_processors(survey: &Survey, wanted: usize) {
    assert_eq!(survey.get("nproc").trim(), wanted.to_string());
    assert_eq!(count(survey.get("cpuinfo"), "processor"), wanted, "{}", survey.get("cpuinfo"));
    assert_eq!(cpu_lines(survey.get("stat")).len(), wanted, "{}", survey.get("stat"));
    if std::path::Path::new("/sys/devices/system/cpu/online").exists() {
        assert_eq!(list_length(survey.get("online")), wanted);
    }
}

#[test]
fn without_limits_the_machines_size_and_the_containers_usage_are_shown() {
    let survey = ask(&[]);
    sees_memory(&survey, machine::memory_kb());
    sees_processors(&survey, machine::processors());
    let meminfo = |label| kb(survey.get("meminfo"), label);
    // A shell and a few small programs: the machine uses more than this.
    let used = meminfo("AnonPages") + meminfo("Cached");
    assert!(used < 64 * 1024, "{used} kB used by a sandbox that just started");
    // What others use is not there for it.
    assert!(meminfo("MemFree") <= meminfo("MemAvailable"));
    assert!(meminfo("MemAvailable") < meminfo("MemTotal"));
}

#[test]
fn a_child_shows_the_limit_of_its_parent() {
    let daemon = Daemon::start();
    let parent = Cgroup::new("parent", Limits { memory: Some(192 * MIB), ..Limits::default() });
    let looser = parent.child("looser", Limits { memory: None, ..Limits::default() });
    let script = format!("cat {}", daemon.file("proc/meminfo").display());
    let total = |cgroup: &Cgroup| kb(&run(&mut cgroup.script(&script)).ok(), "MemTotal");
    assert_eq!(total(&looser), 192 * 1024);
    let tighter = parent.child("tighter", Limits { memory: Some(96 * MIB), ..Limits::default() });
    assert_eq!(total(&tighter), 96 * 1024);
    let deep = looser.child("deep", Limits::default());
    let deeper = deep.child("deeper", Limits::default());
    assert_eq!(total(&deeper), 192 * 1024);
}

#[test]
fn a_quota_rounds_up_to_processors() {
    if machine::processors() < 2 {
        return machine::not_on_this_kernel("a second processor");
    }
    sees_processors(&ask(&["--cpus", "1.5"]), 2);
    sees_processors(&ask(&["--cpus", "0.25"]), 1);
    sees_processors(&ask(&["--cpus", "64"]), machine::processors());
}

#[test]
fn a_cpuset_shows_its_processors() {
    if !machine::has_controller("cpuset") || machine::processors() < 2 {
        return machine::not_on_this_kernel("a cpuset of one processor among several");
    }
    let survey = ask(&["--cpuset", "1"]);
    sees_processors(&survey, 1);
    assert_eq!(survey.get("online").trim(), "1");
    assert!(cpu_lines(survey.get("stat"))[0].starts_with("cpu1 "), "{}", survey.get("stat"));
}

#[test]
fn swap_is_what_the_machine_has_and_the_limit_leaves() {
    let survey = ask(&["--memory", "128M", "--swap", "32M"]);
    sees_memory(&survey, 128 * 1024);
    sees_swap(&survey, machine::swap_kb().min(32 * 1024));
    let survey = ask(&["--memory", "128M", "--swap", "0"]);
    sees_swap(&survey, 0);
}

#[test]
fn swapped_out_memory_is_swap_and_not_memory() {
    if machine::swap_kb() == 0 {
        return machine::not_on_this_kernel("swap");
    }
    // 21 is MADV_PAGEOUT. v1 counts what was swapped out as memory until others need its pages.
    let script = "python3 -c '
import mmap, subprocess
kept = mmap.mmap(-1, 40 << 20, mmap.MAP_PRIVATE)
kept.write(b\"x\" * len(kept))
kept.madvise(21)
mmap.mmap(-1, 120 << 20, mmap.MAP_PRIVATE | mmap.MAP_POPULATE).close()
subprocess.run(\"cat /proc/meminfo; echo @@; free -k; echo @@; busybox free -k\", shell=True)'";
    let daemon = Daemon::start();
    let limits = ["--memory", "128M", "--swap", "64M"];
    let output = crate::harness::sandbox::run(&daemon, &limits, script).ok();
    let texts: Vec<_> = output.split("@@\n").collect();
    let [meminfo, procps, busybox] = texts[..] else { panic!("{output}") };
    let swapped = [
        kb(meminfo, "SwapTotal") - kb(meminfo, "SwapFree"),
        free(procps, "Swap", "used"),
        free(busybox, "Swap", "used"),
    ];
    let used = kb(meminfo, "MemTotal") - kb(meminfo, "MemFree");
    for swapped in swapped {
        assert!((16 * 1024..=64 * 1024).contains(&swapped), "{swapped} kB of swap\n{output}");
        assert!(kb(meminfo, "AnonPages") + swapped >= 40 * 1024, "{output}");
    }
    assert!(used + swapped[0] < (40 + 64) * 1024, "counted twice:\n{output}");
}

#[test]
fn usage_is_charged_to_the_container() {
    let daemon = Daemon::start();
    let script = "cat /proc/meminfo; echo @@; \
        python3 -c 'keep = bytearray(b\"x\") * (64 << 20); print(open(\"/proc/meminfo\").read())'";
    let output = crate::harness::sandbox::run(&daemon, &["--memory", "256M"], script).ok();
    let (before, during) = output.split_once("@@").unwrap();
    let less = kb(before, "MemAvailable").saturating_sub(kb(during, "MemAvailable"));
    assert!((60 * 1024..128 * 1024).contains(&less), "{less} kB less available:\n{output}");
    assert!(kb(during, "AnonPages") >= 64 * 1024, "{during}");
}
