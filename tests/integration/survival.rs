//! The server dies, is replaced, is stopped and started: nothing inside a container notices.

use std::fs;
use std::time::{Duration, Instant};

use rustix::process::{Pid, Signal, kill_process};

use crate::harness::daemon::Daemon;
use crate::harness::{command, machine, sandbox, text};

/// Before Linux 6.9 the kernel does not send again what a dead server had read.
fn resends() -> bool {
    let release = rustix::system::uname().release().to_string_lossy().into_owned();
    let mut numbers = release.split(['.', '-']).map(|part| part.parse::<u32>().unwrap_or(0));
    let version = (numbers.next().unwrap_or(0), numbers.next().unwrap_or(0));
    if version < (6, 9) {
        eprintln!("not on this kernel: requests in flight are not sent again ({release})");
    }
    version >= (6, 9)
}

fn kill_server(daemon: &Daemon) -> u32 {
    let server = daemon.server_pid();
    let pid = Pid::from_raw(i32::try_from(server).unwrap()).unwrap();
    kill_process(pid, Signal::KILL).unwrap();
    server
}

#[test]
fn a_killed_server_has_a_successor_that_knows_the_containers() {
    let daemon = Daemon::start();
    let script = "echo ready; n=0; while [ $n -lt 40 ]; do \
                  head -1 /proc/meminfo; /mnt/sysinfo || echo failed; sleep 0.05; n=$((n+1)); done";
    let mut running = command::start(&mut sandbox::command(&daemon, &["--memory", "64M"], script));
    running.wait_for("ready", machine::patience(20));
    for _ in 0..3 {
        std::thread::sleep(Duration::from_millis(300));
        let server = kill_server(&daemon);
        let meminfo = fs::read_to_string(daemon.file("proc/meminfo")).unwrap();
        assert!(text::kb(&meminfo, "MemTotal") > 0);
        assert_ne!(daemon.server_pid(), server);
    }
    let output = running.finish(machine::patience(60)).ok();
    let totals: Vec<_> = output.lines().filter(|line| line.starts_with("MemTotal")).collect();
    if resends() {
        assert_eq!(totals.len(), 40, "{output}");
    }
    assert!(totals.iter().all(|line| line.contains(" 65536 kB")), "{output}");
    assert!(!output.contains("failed"), "{output}");
    assert_eq!(daemon.status()["restarts"], 3);
}

#[test]
fn a_server_that_stops_answering_is_replaced() {
    let daemon = Daemon::start();
    let server = daemon.server_pid();
    let pid = Pid::from_raw(i32::try_from(server).unwrap()).unwrap();
    kill_process(pid, Signal::STOP).unwrap();
    let began = Instant::now();
    let meminfo = fs::read_to_string(daemon.file("proc/meminfo")).unwrap();
    assert!(text::kb(&meminfo, "MemTotal") > 0);
    assert!(began.elapsed() < machine::patience(20));
    assert_ne!(daemon.server_pid(), server);
}
