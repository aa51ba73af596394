//! Inside `ambit run --memory 256M --cpus 1` every program shows the same: 256 MiB, one processor,
//! started a moment ago.
//!
//! All programs run once, in one sandbox; each test checks a part of their output.

use std::sync::OnceLock;

use crate::harness::daemon::Daemon;
use crate::harness::machine;
use crate::harness::sandbox::{Questions, Survey};
use crate::harness::text::{close, count, cpu_lines, first_number, free, kb, list_length, number};

const TOTAL_KB: u64 = 256 * 1024;
/// What the container may allocate between two questions.
const MEANWHILE_KB: u64 = 8 * 1024;

const QUESTIONS: Questions<'_> = &[
    ("meminfo", "cat /proc/meminfo"),
    ("sysinfo", "/mnt/sysinfo"),
    ("sysinfo-musl", "/mnt/sysinfo-musl"),
    ("sysinfo-32", "/mnt/sysinfo-32"),
    ("sysinfo-bad", "/mnt/sysinfo bad"),
    ("free", "free -k"),
    ("busybox-free", "busybox free -k"),
    (
        "physical-pages",
        "python3 -c 'import os; print(os.sysconf(\"SC_PHYS_PAGES\") * os.sysconf(\"SC_PAGE_SIZE\"))'",
    ),
    ("affinity", "/mnt/affinity"),
    ("affinity-musl", "/mnt/affinity-musl"),
    ("affinity-32", "/mnt/affinity-32"),
    ("nproc", "nproc"),
    ("busybox-nproc", "busybox nproc"),
    ("getconf", "getconf _NPROCESSORS_ONLN"),
    ("python-cpus", "python3 -c 'import os; print(os.cpu_count(), len(os.sched_getaffinity(0)))'"),
    ("lscpu", "lscpu"),
    ("cpuinfo", "cat /proc/cpuinfo"),
    ("stat", "cat /proc/stat"),
    ("online", "cat /sys/devices/system/cpu/online"),
    ("top", "top -b -n 1 -1 -w 200"),
    ("uptime-file", "cat /proc/uptime"),
    ("uptime", "uptime"),
    ("uptime-pretty", "uptime -p"),
    ("busybox-uptime", "busybox uptime"),
    ("age", "echo $(( $(date +%s) - $(date -d \"$(uptime -s)\" +%s) ))"),
    ("loadavg", "cat /proc/loadavg"),
    ("swaps", "cat /proc/swaps"),
    ("vmstat", "vmstat 1 2"),
    (
        "hidden",
        // Which of them there are depends on the kernel.
        "(cat /proc/buddyinfo /proc/schedstat /proc/mtrr /sys/kernel/vmcoreinfo; cd /sys; find firmware kernel/debug kernel/slab \
         kernel/tracing kernel/mm/ksm kernel/irq kernel/boot_params devices/virtual/powercap devices/virtual/bdi \
         devices/virtual/dmi devices/system/memory devices/system/clockevents bus/cpu bus/memory class/bdi/ block/ \
         class/block/ dev/block/ devices/virtual/block fs/ext4 fs/xfs /proc/fs /proc/irq -mindepth 1; \
         find /sys/devices -name block -not -path /sys/devices/virtual/block) 2>/dev/null | cat",
    ),
    (
        "tmpfs",
        "stat -c %d /tmp /run /dev/shm /dev /sys/firmware | sort -u | wc -l; df -k --output=size,itotal /tmp | tail -n 1",
    ),
    (
        "clocks",
        "python3 -c 'import time; print(*(int(time.clock_gettime(clock)) for clock in (1, 4, 6, 7)))'",
    ),
];

fn survey() -> &'static Survey {
    static SURVEY: OnceLock<Survey> = OnceLock::new();
    SURVEY.get_or_init(|| {
        machine::needs(&["free", "busybox", "python3", "lscpu", "top", "vmstat"]);
        machine::program("sysinfo-32");
        let daemon = Daemon::start();
        Survey::run(&daemon, &["--memory", "256M", "--cpus", "1"], QUESTIONS)
    })
}

/// Seconds the sandbox may have been up when a question was asked; emulated guests are slow.
fn young() -> f64 {
    machine::patience(60).as_secs_f64()
}

#[test]
fn every_program_sees_the_same_memory() {
    let survey = survey();
    assert_eq!(kb(survey.get("meminfo"), "MemTotal"), TOTAL_KB);
    for name in machine::runnable(&["sysinfo", "sysinfo-musl", "sysinfo-32"]) {
        assert_eq!(number(survey.get(name), "total_kb"), TOTAL_KB, "{name}");
    }
    for name in ["free", "busybox-free"] {
        assert_eq!(free(survey.get(name), "Mem", "total"), TOTAL_KB, "{name}");
    }
    assert_eq!(survey.get("physical-pages").trim(), (TOTAL_KB * 1024).to_string());
    if procps_knows_this_machine() {
        let top = survey.get("top");
        assert!(top.contains("256.0 total") || top.contains("262144 total"), "{top}");
    }
}

#[test]
fn free_memory_agrees_between_files_and_calls() {
    let survey = survey();
    let meminfo = survey.get("meminfo");
    let (free_kb, available) = (kb(meminfo, "MemFree"), kb(meminfo, "MemAvailable"));
    assert!(free_kb <= available && available <= TOTAL_KB, "{meminfo}");
    assert!(free_kb > 0, "{meminfo}");
    for name in machine::runnable(&["sysinfo", "sysinfo-musl", "sysinfo-32"]) {
        close(name, number(survey.get(name), "free_kb"), free_kb, MEANWHILE_KB);
        assert_eq!(number(survey.get(name), "high_total_kb"), 0, "{name}");
    }
    for name in ["free", "busybox-free"] {
        close(name, free(survey.get(name), "Mem", "free"), free_kb, MEANWHILE_KB);
        close(name, free(survey.get(name), "Mem", "available"), available, MEANWHILE_KB);
    }
}

#[test]
fn swap_agrees_between_files_and_calls() {
    let survey = survey();
    let total = kb(survey.get("meminfo"), "SwapTotal");
    assert!(total <= machine::swap_kb());
    for name in machine::runnable(&["sysinfo", "sysinfo-musl", "sysinfo-32"]) {
        assert_eq!(number(survey.get(name), "swap_total_kb"), total, "{name}");
    }
    for name in ["free", "busybox-free"] {
        assert_eq!(free(survey.get(name), "Swap", "total"), total, "{name}");
    }
    let entries = survey.get("swaps").lines().count() - 1;
    assert_eq!(entries, usize::from(total > 0), "{}", survey.get("swaps"));
}

#[test]
fn files_that_show_the_hosts_usage_are_hidden() {
    assert_eq!(survey().get("hidden"), "");
}

#[test]
fn what_is_in_memory_is_one_filesystem_of_half_the_limit() {
    let text = survey().get("tmpfs");
    let words: Vec<&str> = text.split_whitespace().collect();
    let (kib, files) = ((TOTAL_KB / 2).to_string(), (TOTAL_KB / 8).to_string());
    assert_eq!(words, ["1", &kib, &files], "{text}");
}

#[test]
fn every_clock_since_boot_starts_near_zero() {
    let text = survey().get("clocks");
    for seconds in text.split_whitespace() {
        let seconds: i64 = seconds.parse().expect("python prints whole seconds");
        assert!((0..6 * 3600).contains(&seconds), "{text}");
    }
    assert_eq!(text.split_whitespace().count(), 4, "{text}");
}

#[test]
fn every_program_sees_one_processor() {
    let survey = survey();
    for name in ["nproc", "busybox-nproc"] {
        assert_eq!(survey.get(name).trim(), "1", "{name}");
    }
    assert_eq!(survey.get("python-cpus").split_whitespace().last(), Some("1"));
    assert_eq!(count(survey.get("cpuinfo"), "processor"), 1, "{}", survey.get("cpuinfo"));
    assert_eq!(cpu_lines(survey.get("stat")).len(), 1, "{}", survey.get("stat"));
    if procps_knows_this_machine() {
        // It puts two processors into one line.
        let top = survey.get("top");
        assert_eq!(top.matches("%Cpu").count(), 1, "{top}");
    }
    if std::path::Path::new("/sys/devices/system/cpu/online").exists() {
        assert_eq!(list_length(survey.get("online")), 1);
        assert_eq!(survey.get("getconf").trim(), "1");
        let lscpu = survey.get("lscpu");
        let online =
            lscpu.lines().find_map(|line| line.trim().strip_prefix("On-line CPU(s) list:"));
        assert_eq!(online.map(list_length), Some(1), "{lscpu}");
    } else {
        machine::not_on_this_kernel("/sys/devices/system/cpu/online");
    }
}

#[test]
fn sched_getaffinity_fails_as_the_kernels_does() {
    for name in machine::runnable(&["affinity", "affinity-musl", "affinity-32"]) {
        let answer = survey().get(name);
        let has =
            |line: &str| assert!(answer.lines().any(|l| l == line), "{name}: {line}\n{answer}");
        has("count=1");
        has("beyond=untouched");
        has("by_pid=same");
        has("odd_length=-1 errno=22");
        has("no_length=-1 errno=22");
        has("bad_pointer=-1 errno=14");
        has("no_process=-1 errno=3");
        // The length of the kernel's own masks, which it tells by its return value.
        assert_eq!(number(answer, "bytes"), number(&own_affinity(), "bytes"), "{name}");
    }
}

/// What the same program says outside.
fn own_affinity() -> String {
    let mut command = std::process::Command::new(machine::program("affinity"));
    crate::harness::command::run(&mut command).ok()
}

#[test]
fn a_bad_pointer_is_efault() {
    let answer = survey().get("sysinfo-bad");
    assert!(answer.contains("return=-1") && answer.contains("errno=14"), "{answer}");
}

#[test]
fn uptime_starts_with_the_sandbox() {
    let survey = survey();
    let file = first_number(survey.get("uptime-file"));
    assert!(file < young(), "{file}");
    for name in machine::runnable(&["sysinfo", "sysinfo-musl", "sysinfo-32"]) {
        let call = number(survey.get(name), "uptime") as f64;
        assert!(call < young() && (call - file).abs() <= young() / 4.0, "{name}: {call}, {file}");
    }
    let age: f64 = survey.get("age").trim().parse().unwrap();
    assert!((-2.0..young()).contains(&age), "uptime -s is {age} s ago");
    for name in ["uptime", "busybox-uptime"] {
        let text = survey.get(name);
        assert!(text.contains("load average:") && !text.contains("day"), "{name}: {text}");
    }
    assert!(survey.get("uptime-pretty").starts_with("up"), "{}", survey.get("uptime-pretty"));
}

#[test]
fn load_is_the_sandbox_own() {
    let survey = survey();
    let words: Vec<_> = survey.get("loadavg").split_whitespace().collect();
    assert_eq!(words.len(), 5, "{words:?}");
    // Something new cannot have a long average of its own.
    let fifteen: f64 = words[2].parse().unwrap();
    let call: f64 = crate::harness::text::value(survey.get("sysinfo"), "load2").parse().unwrap();
    assert!((fifteen - call).abs() < 0.5, "{fifteen} in the file, {call} by the call");
    let (running, total) = words[3].split_once('/').unwrap();
    let (running, total): (u64, u64) = (running.parse().unwrap(), total.parse().unwrap());
    assert!(1 <= running && running <= total && total < 20, "{words:?}");
}

/// procps finds no processors on User-Mode Linux: there neither `vmstat` nor the head of `top`
/// work, with or without us.
fn procps_knows_this_machine() -> bool {
    let works = crate::harness::command::runs(&mut std::process::Command::new("vmstat"));
    if !works {
        machine::not_on_this_kernel("vmstat of procps");
    }
    works
}

#[test]
fn vmstat_runs() {
    if !procps_knows_this_machine() {
        return;
    }
    let text = survey().get("vmstat");
    assert_eq!(text.lines().count(), 4, "{text}");
    let words = |line: usize| text.lines().nth(line).unwrap().split_whitespace().count();
    assert_eq!(words(1), words(3), "{text}");
}
