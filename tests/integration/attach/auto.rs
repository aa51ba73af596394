//! `[attach] auto = true`: containers of engines show their own bounds soon after their start, with
//! no option of the engine, and nothing else is touched.

use std::fs;
use std::io::Write;
use std::time::{Duration, Instant};

use rustix::mount::{UnmountFlags, unmount};

use crate::harness::cgroup::{Cgroup, Limits};
use crate::harness::command::{quiet, run, start};
use crate::harness::daemon::{Daemon, Place, mounts};
use crate::harness::machine;
use crate::harness::text::{count, cpu_lines, kb};

use super::container::{Container, FRESH, MEMORY_KB, Unshared, mounts_of};

/// A daemon that attaches containers when they start, with further settings.
#[track_caller]
pub(super) fn daemon(settings: &str) -> Daemon {
    Daemon::start_at(place(settings))
}

pub(super) fn place(settings: &str) -> Place {
    Place::intercepting(&format!("[attach]\nauto = true\n{settings}"))
}

/// A cgroup whose name is that of Docker's, in which containers are made.
pub(super) fn docker() -> Cgroup {
    Cgroup::new("docker", Limits::default())
}

/// Waits until a container shows its own memory.
#[track_caller]
pub(super) fn wait_for(daemon: &mut Daemon, pid: u32) {
    let until = Instant::now() + machine::patience(20);
    while !is_attached(pid) {
        assert!(Instant::now() < until, "{}\n{}", mounts_of(pid), daemon.log());
        std::thread::sleep(Duration::from_millis(5));
    }
}

fn is_attached(pid: u32) -> bool {
    // The last target.
    let mounts = mounts_of(pid);
    mounts.contains(" /proc/meminfo ") && mounts.contains(" /sys/devices/system/cpu ")
}

/// Asserts that a process sees nothing of the overlay in its `/proc` and `/sys`.
#[track_caller]
pub(super) fn is_untouched(pid: u32) {
    let mounts = mounts_of(pid);
    let mut files = mounts.lines().filter(|line| line.contains(" fuse.ambit "));
    let is_seen = |line: &str| line.contains(" /proc/") || line.contains(" /sys/");
    assert!(!files.any(is_seen), "{mounts}");
}

/// Waits until the daemon has found the cgroups that exist, by a container that starts after them.
#[track_caller]
pub(super) fn pass(daemon: &mut Daemon) {
    let last = runc();
    wait_for(daemon, last.pid());
}

/// Waits until the daemon has attached this many containers.
#[track_caller]
pub(super) fn attached(daemon: &Daemon, count: u64) {
    let until = Instant::now() + machine::patience(10);
    loop {
        let auto = daemon.status()["auto"].clone();
        if auto["attached"] == count {
            return;
        }
        assert!(Instant::now() < until, "{auto}");
        std::thread::sleep(Duration::from_millis(10));
    }
}

const SLEEP: &str = "exec sleep 1000";

pub(super) fn runc() -> Container {
    Container::oci_in("runc", "docker", SLEEP)
}

/// Writes how long it took from its start to the last mount, in nanoseconds. Another process reads
/// meanwhile, and notes a read that fails.
const TIMED: &str = "\
    last=/sys/devices/system/node; [ -d $last ] || last=/sys/devices/system/cpu; \
    { while [ ! -e /dev/took ]; do read -r line </proc/meminfo && read -r line </proc/stat && \
      read -r line </sys/devices/system/cpu/online || echo failed >>/dev/failed; done; } & \
    /mnt/mounted $last /dev/took; exec sleep 1000";

/// Returns what a container of [`TIMED`] has written.
#[track_caller]
fn time_to_attach(pid: u32) -> Duration {
    let until = Instant::now() + machine::patience(20);
    loop {
        let took = fs::read_to_string(format!("/proc/{pid}/root/dev/took"));
        if let Some(took) = took.ok().and_then(|text| text.trim().parse().ok()) {
            return Duration::from_nanos(took);
        }
        assert!(Instant::now() < until, "{}", mounts_of(pid));
        std::thread::sleep(Duration::from_millis(5));
    }
}

#[track_caller]
pub(super) fn is_right(container: &Container) {
    assert_eq!(kb(&container.exec("cat /proc/meminfo").ok(), "MemTotal"), MEMORY_KB);
    assert_eq!(cpu_lines(&container.exec("cat /proc/stat").ok()).len(), 1);
    assert_eq!(count(&container.exec("cat /proc/cpuinfo").ok(), "processor"), 1);
    let free = container.exec("free -k").ok();
    assert!(free.contains(&format!(" {MEMORY_KB} ")), "{free}");
    assert_eq!(container.exec("ls -d /sys/devices/system/cpu/cpu[0-9]*").ok().lines().count(), 1);
}

#[test]
fn containers_of_each_engine_are_attached_when_they_start() {
    let mut daemon = daemon("");
    let _docker = docker();
    let machine = mounts();
    for engine in ["runc", "crun"] {
        let container = Container::oci_in(engine, "docker", SLEEP);
        wait_for(&mut daemon, container.pid());
        is_right(&container);
        assert_eq!(mounts_of(container.pid()).matches(" /proc/meminfo ").count(), 1);
    }
    let container = Container::lxc();
    wait_for(&mut daemon, container.pid());
    is_right(&container);
    assert_eq!(mounts(), machine);
    attached(&daemon, 3);
    let status = daemon.place().ambit(&["status"]).ok();
    assert!(
        status.contains("attach at start: on, containers attached: 3, failed: 0\n"),
        "{status}"
    );
}

#[test]
fn a_container_that_runs_before_the_daemon_is_attached() {
    let _docker = docker();
    let container = runc();
    let mut daemon = daemon("");
    wait_for(&mut daemon, container.pid());
    attached(&daemon, 1);
    is_right(&container);
    // It is off, and then on again.
    let place = daemon.place();
    let config = fs::read_to_string(place.config()).unwrap();
    fs::write(place.config(), config.replace("auto = true", "auto = false")).unwrap();
    place.ambit(&["reload"]).ok();
    let status = place.ambit(&["status"]).ok();
    assert!(status.contains("attach at start: off, containers attached: 1"), "{status}");
    let late = runc();
    place.ambit(&["detach", &container.pid().to_string()]).ok();
    fs::write(place.config(), config).unwrap();
    place.ambit(&["reload"]).ok();
    wait_for(&mut daemon, container.pid());
    wait_for(&mut daemon, late.pid());
}

#[test]
fn an_excluded_container_is_left_alone() {
    let mut daemon = daemon("exclude = [\"lxc-attach-*\", \"*/excluded/docker/*\"]\n");
    let _docker = docker();
    let _other = Cgroup::new("excluded", Limits::default());
    let _inner = Cgroup::new("excluded/docker", Limits::default());
    let by_path = Container::oci_in("runc", "excluded/docker", SLEEP);
    let by_name = Container::lxc();
    pass(&mut daemon);
    for container in [&by_path, &by_name] {
        is_untouched(container.pid());
    }
}

#[test]
fn pid_namespaces_that_no_engine_made_are_left_alone() {
    let mut daemon = daemon("");
    let _docker = docker();
    let mut sandbox = start(quiet("unshare").args([
        "--pid",
        "--fork",
        "--kill-child",
        "--mount-proc",
        "sh",
        "-c",
        "echo it runs; exec sleep 1000",
    ]));
    sandbox.wait_for("it runs", machine::patience(20));
    let other = Unshared::start("no-engine", FRESH);
    let pids = || run(quiet("pgrep").args(["-P", &sandbox.pid().to_string()])).ok();
    let inside: u32 = pids().trim().parse().unwrap();
    pass(&mut daemon);
    for pid in [inside, other.pid] {
        is_untouched(pid);
    }
}

/// Files whose connection was aborted are dead until the next server has mounted its own.
#[test]
fn dead_files_are_replaced_without_a_command() {
    let mut daemon = daemon("");
    let _docker = docker();
    let container = runc();
    wait_for(&mut daemon, container.pid());
    attached(&daemon, 1);
    let server = daemon.server_pid();
    // Ends the connection wherever it is bound, and fails, because other files lie upon these.
    let _ = unmount(daemon.place().mount(), UnmountFlags::FORCE);
    let until = Instant::now() + machine::patience(30);
    while daemon
        .try_status()
        .is_none_or(|status| status["server_pid"] == server || status["auto"]["attached"] != 1)
    {
        assert!(Instant::now() < until, "{:?}\n{}", daemon.try_status(), daemon.log());
        std::thread::sleep(Duration::from_millis(50));
    }
    is_right(&container);
}

/// A container may be started long after it was created. It has its mounts by then.
#[test]
fn a_container_that_is_created_and_started_later_is_attached() {
    let mut daemon = daemon("");
    let _docker = docker();
    let container = Container::created_in("runc", "docker");
    wait_for(&mut daemon, container.pid());
    container.tell("start");
    is_right(&container);
    attached(&daemon, 1);
}

/// How many containers there are; `AMBIT_TEST_STARTED` may ask for more.
fn how_many() -> usize {
    std::env::var("AMBIT_TEST_STARTED").ok().and_then(|text| text.parse().ok()).unwrap_or(30)
}

#[test]
fn the_machine_has_the_same_mounts_after_many_starts() {
    let mut daemon = daemon("");
    let _docker = docker();
    let before = mounts();
    let engines = ["runc", "crun", "lxc"];
    let mut times = [const { Vec::new() }; 3];
    for number in 0..how_many() {
        let engine = number % engines.len();
        let container = match engines[engine] {
            "lxc" => Container::lxc_with(TIMED),
            runtime => Container::oci_in(runtime, "docker", TIMED),
        };
        wait_for(&mut daemon, container.pid());
        times[engine].push(time_to_attach(container.pid()));
        let failed = format!("/proc/{}/root/dev/failed", container.pid());
        assert!(!fs::exists(&failed).unwrap(), "a read failed in container {number}");
        assert_eq!(kb(&container.exec("cat /proc/meminfo").ok(), "MemTotal"), MEMORY_KB);
    }
    assert_eq!(mounts(), before);
    for (engine, times) in engines.iter().zip(&mut times) {
        times.sort();
        let _ = writeln!(
            std::io::stderr(),
            "\n    {} starts of {engine}, from the first execve to the last mount: \
             median {:.1?}, most {:.1?}",
            times.len(),
            times.get(times.len() / 2).copied().unwrap_or_default(),
            times.last().copied().unwrap_or_default()
        );
    }
    attached(&daemon, how_many() as u64);
    assert_eq!(daemon.status()["auto"]["failed"], 0);
}
