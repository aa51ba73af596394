//! Many containers that read at once: no container sees the numbers of another one, no read fails,
//! and the daemon's memory does not grow.

use std::time::Duration;

use rustix::process::{Pid, Signal, kill_process};

use crate::harness::cgroup::{Cgroup, Limits};
use crate::harness::command::{quiet, start};
use crate::harness::daemon::{Daemon, Place};
use crate::harness::text::{kb, number};
use crate::harness::{machine, sandbox};

const CONTAINERS: u64 = 200;
/// As many sandboxes as are started at once.
const STARTS: u64 = 8;

#[test]
fn two_hundred_containers_read_at_once() {
    let daemon = Daemon::start();
    let seconds = if machine::slowness() > 1 { 10 } else { 30 };
    let meminfo = daemon.file("proc/meminfo");
    // Asked now: an emulated processor has no time for it later.
    let server = daemon.server_pid();
    let cgroups: Vec<_> = (0..CONTAINERS)
        .map(|n| {
            let memory = Some((32 + n) << 20);
            Cgroup::new(&format!("crowd-{n}"), Limits { memory, ..Limits::default() })
        })
        .collect();
    let program = machine::program("reader");
    let readers: Vec<_> = (0..CONTAINERS)
        .zip(&cgroups)
        .map(|(n, cgroup)| {
            let mut reader = quiet(program.to_str().unwrap());
            reader.arg(seconds.to_string()).arg(((32 + n) * 1024).to_string());
            start(reader.arg(&meminfo).args(cgroup.dirs()))
        })
        .collect();
    // Where processors are emulated, not all readers have begun by now: each costs a little when
    // it is seen, and what it reads must cost nothing.
    std::thread::sleep(Duration::from_secs(seconds / 2));
    let early = machine::resident_kb(server);
    let mut reads = 0;
    for reader in readers {
        let output = reader.finish(machine::patience(60 + seconds));
        assert_eq!(output.status, 0, "{} {}", output.stdout, output.stderr);
        reads += number(&output.stdout, "reads");
    }
    let late = machine::resident_kb(server);
    assert!(late <= early + early / 10 + 3 * 1024, "grew from {early} to {late} kB");
    assert!(late <= 24 * 1024, "{late} kB for {CONTAINERS} small containers");
    assert!(reads >= CONTAINERS, "{reads}");
    eprintln!("{reads} reads by {CONTAINERS} containers, daemon {late} kB");
}

/// A new server knows no numbers of them yet: each has its files opened for the status.
#[test]
fn the_status_of_a_new_server_lists_more_containers_than_it_may_open_files_for() {
    const LISTED: usize = 150;
    let place = Place::new();
    let config = place.config().display().to_string();
    let mut few = quiet("sh");
    few.args(["-c", "ulimit -n 1000; exec \"$@\"", "sh", machine::AMBIT]);
    let daemon = Daemon::start_below(place, few.args(["serve", "--config", &config]));
    let cgroup = Cgroup::new("listed", Limits { memory: Some(256 << 20), ..Limits::default() });
    let loadavg = daemon.file("proc/loadavg");
    let script = format!("read load <{}; echo ready; exec sleep 1000", loadavg.display());
    let mut running: Vec<_> = (0..LISTED).map(|_| start(&mut cgroup.script(&script))).collect();
    running.iter_mut().for_each(|one| one.wait_for("ready", machine::patience(60)));
    let listed = || {
        let status = daemon.status();
        let containers = status["containers"].as_array().unwrap().iter();
        containers.filter(|one| one["pid_namespace"] != 0).count()
    };
    assert_eq!(listed(), LISTED);
    let server = Pid::from_raw(daemon.server_pid().cast_signed()).unwrap();
    kill_process(server, Signal::KILL).unwrap();
    assert_eq!(listed(), LISTED);
}

/// What one start looks up is shared with the others: the host's root, the overlay, the control
/// groups. The first to use a daemon look every name up for the first time.
#[test]
fn sandboxes_that_start_at_the_same_time_do_not_fail() {
    for _ in 0..2 {
        let daemon = Daemon::start();
        let starts: Vec<_> = (0..STARTS)
            .map(|n| {
                let memory = format!("{}M", 64 + n);
                start(&mut sandbox::command(&daemon, &["--memory", &memory], "cat /proc/meminfo"))
            })
            .collect();
        for (n, sandbox) in (0..STARTS).zip(starts) {
            let meminfo = sandbox.finish(machine::patience(60)).ok();
            assert_eq!(kb(&meminfo, "MemTotal"), (64 + n) << 10);
        }
    }
}

/// A container may make any number of pid namespaces. Their first visits wait for each other, and the
/// memory that they took is given back.
#[test]
fn a_burst_of_pid_namespaces_leaves_other_readers_right_and_no_memory_behind() {
    const NAMESPACES: u32 = 1500;
    // The overlay keeps some hundred buffers for texts of open files.
    const BUFFERS_KB: u64 = 6 << 10;
    let daemon = Daemon::start();
    let read = |memory: &str| {
        let meminfo = sandbox::run(&daemon, &["--memory", memory], "cat /proc/meminfo").ok();
        kb(&meminfo, "MemTotal") >> 10
    };
    assert_eq!(read("64M"), 64);
    let (server, places) = (daemon.server_pid(), format!("/mnt/namespaces {NAMESPACES}"));
    let early = machine::resident_kb(server);
    let mut burst = sandbox::command(&daemon, &["--memory", "1G"], &places);
    burst.stdin(std::process::Stdio::piped());
    let mut burst = start(&mut burst);
    for memory in [65, 66, 67] {
        assert_eq!(read(&format!("{memory}M")), memory);
    }
    burst.wait_for(&format!("read {NAMESPACES}"), machine::patience(60));
    burst.signal_group(Signal::KILL);
    drop(burst);
    let until = std::time::Instant::now() + machine::patience(30);
    loop {
        let late = machine::resident_kb(server);
        if late <= early + BUFFERS_KB {
            break;
        }
        assert!(std::time::Instant::now() < until, "grew from {early} to {late} kB");
        // The load sampler forgets containers that have ended.
        std::thread::sleep(Duration::from_millis(200));
    }
    daemon.stop().0.ok();
}
