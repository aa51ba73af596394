//! The server is killed or stopped.

use std::collections::BTreeSet;
use std::fs;
use std::time::{Duration, Instant};

use rustix::process::{Pid, Signal, kill_process};

use super::{faults, kill_server, next_read, resends};
use crate::harness::cgroup::{Cgroup, Limits};
use crate::harness::daemon::Daemon;
use crate::harness::{command, machine, sandbox, text};

#[test]
fn a_killed_server_has_a_successor_that_knows_the_containers() {
    let daemon = Daemon::start();
    let script = "echo ready; n=0; while [ $n -lt 40 ]; do \
                  head -1 /proc/meminfo; /mnt/sysinfo || echo failed; sleep 0.05; n=$((n+1)); done";
    let mut running = command::start(&mut sandbox::command(&daemon, &["--memory", "64M"], script));
    running.wait_for("ready", machine::patience(20));
    for turn in 0..3 {
        std::thread::sleep(Duration::from_millis(300));
        if turn == 1 {
            // Then one is started from nothing.
            let standby = standby(&daemon);
            kill_process(standby, Signal::KILL).unwrap();
            faults::wait_until("the standby does not end", || {
                !faults::children(&daemon, "ambit").contains(&standby)
            });
        }
        let server = kill_server(&daemon);
        let meminfo = next_read(&daemon);
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
fn a_server_that_ends_closes_its_connection_to_the_keeper_first() {
    let daemon = Daemon::start();
    let folder = format!("/proc/{}/fd", daemon.server_pid());
    let numbers = fs::read_dir(&folder).unwrap().map(|entry| entry.unwrap().file_name());
    let highest = numbers.filter_map(|name| name.to_str()?.parse::<u32>().ok()).max().unwrap();
    let link = fs::read_link(format!("{folder}/{highest}")).unwrap();
    assert!(link.to_str().unwrap().starts_with("socket:"), "{highest}: {link:?}");
    // Below it there is room for the files of all containers.
    let limit = rustix::process::getrlimit(rustix::process::Resource::Nofile).maximum;
    assert!(u64::from(highest) + 1 >= limit.unwrap_or(u64::MAX).min(32 << 10), "{highest}");
}

#[test]
fn the_status_after_a_crash_lists_containers_that_have_not_read_since() {
    let daemon = Daemon::start();
    let script = "cat /proc/loadavg; echo ready; exec sleep 1000";
    let mut running: Vec<_> = (0..3)
        .map(|_| command::start(&mut sandbox::command(&daemon, &["--memory", "64M"], script)))
        .collect();
    running.iter_mut().for_each(|one| one.wait_for("ready", machine::patience(20)));
    // And a service of the host, in a control group but no namespace of its own.
    let service = Cgroup::new("service", Limits { memory: Some(64 << 20), ..Limits::default() });
    let script =
        format!("cat {}; echo ready; exec sleep 1000", daemon.file("proc/loadavg").display());
    let mut reading = command::start(&mut service.script_of_host(&script));
    reading.wait_for("ready", machine::patience(20));
    let listed = || {
        let status = daemon.status();
        let containers = status["containers"].as_array().unwrap().iter();
        let key = |one: &serde_json::Value| {
            let (cgroup, namespace) = (&one["cgroup"], &one["pid_namespace"]);
            (cgroup.to_string(), namespace.to_string(), one["memory_total"].to_string())
        };
        // The machine is no container.
        containers.filter(|one| one["cgroup"] != "/").map(key).collect::<BTreeSet<_>>()
    };
    let before = listed();
    assert!(before.iter().filter(|one| one.2 == (64 << 20).to_string()).count() >= 4, "{before:?}");
    let server = kill_server(&daemon);
    assert_eq!(listed(), before);
    assert_ne!(daemon.server_pid(), server);
    // One that ended meanwhile is not found again.
    drop(running.pop());
    kill_server(&daemon);
    let after = listed();
    assert!(after.is_subset(&before) && after.len() + 1 == before.len(), "{after:?}, {before:?}");
}

/// The server that follows when this one dies.
fn standby(daemon: &Daemon) -> Pid {
    let server = daemon.server_pid().cast_signed();
    let until = Instant::now() + machine::patience(10);
    loop {
        let mut servers = faults::children(daemon, "ambit").into_iter();
        if let Some(pid) = servers.find(|pid| pid.as_raw_nonzero().get() != server) {
            return pid;
        }
        assert!(Instant::now() < until, "no server stands by");
        std::thread::sleep(Duration::from_millis(20));
    }
}

#[test]
fn a_server_that_stops_answering_is_replaced() {
    let daemon = Daemon::start();
    let server = daemon.server_pid();
    let pid = Pid::from_raw(i32::try_from(server).unwrap()).unwrap();
    kill_process(pid, Signal::STOP).unwrap();
    let began = Instant::now();
    // Its threads stop one after the other, and might answer before.
    while !all_stopped(server) {
        assert!(began.elapsed() < machine::patience(20));
        std::thread::sleep(Duration::from_millis(2));
    }
    let meminfo = next_read(&daemon);
    assert!(text::kb(&meminfo, "MemTotal") > 0);
    assert!(began.elapsed() < machine::patience(20));
    assert_ne!(daemon.server_pid(), server);
}

/// Do all threads of a process stand still?
fn all_stopped(pid: u32) -> bool {
    let tasks = fs::read_dir(format!("/proc/{pid}/task")).unwrap();
    tasks.flatten().all(|task| {
        let stat = fs::read_to_string(task.path().join("stat")).unwrap_or_default();
        stat.rsplit_once(") ").is_none_or(|(_, rest)| rest.starts_with('T'))
    })
}
