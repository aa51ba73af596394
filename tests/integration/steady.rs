//! Containers come and go, and readers stop in the middle of a read: the daemon's memory and
//! descriptors do not grow, and readers do not wait for each other.

use std::fs;
use std::time::{Duration, Instant};

use rustix::process::Signal;

use crate::harness::command::{quiet, run, start};
use crate::harness::daemon::Daemon;
use crate::harness::{machine, text};

/// What a process holds: resident memory in kB, and descriptors.
pub(crate) fn held(pid: u32) -> (u64, usize) {
    let status = fs::read_to_string(format!("/proc/{pid}/status")).unwrap();
    (text::kb(&status, "VmRSS"), fs::read_dir(format!("/proc/{pid}/fd")).unwrap().count())
}

/// Containers as far as accounting is concerned: first processes of pid namespaces of their own.
fn come_and_go(daemon: &Daemon, count: usize) {
    for _ in 0..count {
        let mut container = quiet("unshare");
        container.args(["--pid", "--fork", "cat"]).arg(daemon.file("proc/meminfo"));
        assert!(run(&mut container).ok().contains("MemTotal"));
    }
}

#[test]
fn ended_containers_are_removed() {
    let daemon = Daemon::start();
    come_and_go(&daemon, 20);
    // Ended containers are removed when the status is asked for.
    let pids = [daemon.server_pid(), daemon.pid()];
    let early = pids.map(held);
    come_and_go(&daemon, 200);
    let until = Instant::now() + machine::patience(20);
    loop {
        assert_eq!(daemon.server_pid(), pids[0], "the server was replaced");
        let late = pids.map(held);
        let is_flat = early
            .iter()
            .zip(&late)
            .all(|(early, late)| late.0 <= early.0 + early.0 / 8 + 2048 && late.1 <= early.1 + 2);
        if is_flat {
            break;
        }
        assert!(Instant::now() < until, "kB and descriptors went from {early:?} to {late:?}");
        std::thread::sleep(Duration::from_millis(200));
    }
}

#[test]
fn readers_that_are_stopped_do_not_delay_others() {
    let daemon = Daemon::start();
    let script = format!("echo ready; while :; do cat {}; done", daemon.file("proc/*").display());
    let mut readers: Vec<_> = (0..4)
        .map(|_| start(quiet("sh").args(["-c", &format!("exec 2>/dev/null; {script}")])))
        .collect();
    readers.iter_mut().for_each(|one| one.wait_for("ready", machine::patience(20)));
    for turn in 0..20u64 {
        std::thread::sleep(Duration::from_millis(turn * 7 % 30));
        readers.iter().for_each(|one| one.signal_group(Signal::STOP));
        let others = run(quiet("cat").arg(daemon.file("proc/meminfo"))).ok();
        assert!(text::kb(&others, "MemTotal") > 0);
        readers.iter().for_each(|one| one.signal_group(Signal::CONT));
    }
    for one in readers {
        one.signal_group(Signal::KILL);
        one.finish(machine::patience(20));
    }
}
