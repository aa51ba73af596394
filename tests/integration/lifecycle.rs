//! The daemon and sandboxes start, stop and die, and leave nothing behind.

use std::collections::BTreeSet;
use std::fs;
use std::path::Path;

use crate::harness::command::run;
use crate::harness::daemon::{Daemon, Place, mounts};
use crate::harness::{cgroup, machine, sandbox, text};

#[test]
fn sigterm_stops_and_unmounts() {
    let daemon = Daemon::start();
    let runtime = daemon.place().runtime();
    let (output, mount) = daemon.stop();
    assert_eq!((output.status, mount), (0, "unmounted"), "{output:?}");
    assert!(!runtime.join("control.sock").exists());
}

#[test]
fn a_stale_mount_of_a_dead_daemon_is_replaced() {
    let place = Daemon::start().kill();
    assert!(place.is_mounted(), "the kernel unmounted by itself");
    assert!(fs::read(place.mount().join("proc/meminfo")).is_err(), "who answers?");
    let daemon = Daemon::start_at(place);
    let meminfo = fs::read_to_string(daemon.file("proc/meminfo")).unwrap();
    assert!(text::kb(&meminfo, "MemTotal") > 0);
    let here = daemon.place().mount().display().to_string();
    let ours = format!(" {here} ");
    assert_eq!(mounts().matches(&ours).count(), 1, "{}", mounts());
}

#[test]
fn a_busy_mount_point_is_refused() {
    let first = Daemon::start();
    // The same place, asked for by a daemon with other sockets.
    let second = Place::new();
    let config = fs::read_to_string(second.config()).unwrap();
    let mount = |place: &Place| place.mount().display().to_string();
    fs::write(second.config(), config.replace(&mount(&second), &mount(first.place()))).unwrap();
    let output = run(&mut second.serve());
    assert_eq!(output.status, 2, "{output:?}");
    let said: Vec<_> = output.stderr.lines().filter(|line| line.starts_with("ambit:")).collect();
    assert!(said.len() == 1 && said[0].contains(&mount(first.place())), "{output:?}");
    // The first one serves on.
    assert!(fs::read(first.file("proc/meminfo")).is_ok());
}

#[test]
fn a_second_daemon_on_the_same_sockets_is_refused() {
    let first = Daemon::start();
    let output = run(&mut first.place().serve());
    assert_eq!(output.status, 2, "{output:?}");
    assert!(output.stderr.contains("already running"), "{output:?}");
    assert!(fs::read(first.file("proc/meminfo")).is_ok());
}

#[test]
fn processes_outside_see_the_machine() {
    let before = outside();
    {
        let daemon = Daemon::start();
        sandbox::run(&daemon, &["--memory", "64M", "--cpus", "1"], "free; nproc").ok();
        // What the host itself sees meanwhile.
        assert_eq!(machine::memory_kb(), before.memory);
    }
    let place = Place::new();
    let mut embedded = crate::harness::command::quiet(machine::AMBIT);
    embedded.arg("run").arg("--config").arg(place.config());
    run(embedded.args(["--memory", "64M", "--", "true"])).ok();
    drop(place);
    let after = outside();
    assert_eq!(after.memory, before.memory);
    assert_eq!(after.mounts, before.mounts);
    assert_eq!(after.processes, before.processes);
    let left: Vec<_> = after.cgroups.difference(&before.cgroups).collect();
    assert!(left.is_empty(), "cgroups left behind: {left:?}");
}

#[test]
fn a_killed_sandbox_leaves_nothing_that_runs() {
    let before = outside();
    let daemon = Daemon::start();
    let mut running = crate::harness::command::start(&mut sandbox::command(
        &daemon,
        &["--memory", "64M"],
        "sleep 1000 & echo ready; wait",
    ));
    running.wait_for("ready", machine::patience(20));
    running.signal(rustix::process::Signal::KILL);
    running.finish(machine::patience(10));
    drop(daemon);
    let deadline = std::time::Instant::now() + machine::patience(5);
    while outside().processes != before.processes {
        assert!(std::time::Instant::now() < deadline, "{:?}", outside().processes);
        std::thread::sleep(std::time::Duration::from_millis(20));
    }
    assert_eq!(outside().mounts, before.mounts);
}

#[derive(Debug)]
struct Outside {
    memory: u64,
    mounts: usize,
    processes: Vec<String>,
    cgroups: BTreeSet<String>,
}

fn outside() -> Outside {
    // Only what the tests or the product may have made is looked at: the machine lives on.
    let mut processes: Vec<_> = fs::read_dir("/proc")
        .unwrap()
        .flatten()
        .filter_map(|entry| {
            let name = fs::read_to_string(entry.path().join("comm")).ok()?.trim().to_owned();
            ["ambit", "sleep"].contains(&name.as_str()).then_some(name)
        })
        .collect();
    processes.sort();
    let mut cgroups = BTreeSet::new();
    for dir in cgroup::hierarchies().iter().map(cgroup::Hierarchy::root) {
        collect(dir, 3, &mut cgroups);
    }
    Outside { memory: machine::memory_kb(), mounts: mounts().lines().count(), processes, cgroups }
}

fn collect(dir: &Path, depth: usize, into: &mut BTreeSet<String>) {
    let Ok(entries) = fs::read_dir(dir) else { return };
    for entry in entries.flatten().filter(|e| e.file_type().is_ok_and(|t| t.is_dir())) {
        into.insert(entry.path().display().to_string());
        if depth > 0 {
            collect(&entry.path(), depth - 1, into);
        }
    }
}

/// A row of the status of a process or thread.
fn row(status: &str, label: &str) -> String {
    let row = status.lines().find_map(|line| line.strip_prefix(label));
    row.unwrap_or_else(|| panic!("no {label} in {status}")).trim().to_owned()
}

/// Sets of capabilities are hexadecimal.
fn has(status: &str, label: &str, capability: u32) -> bool {
    u64::from_str_radix(&row(status, label), 16).unwrap() >> capability & 1 == 1
}

#[test]
fn the_server_keeps_no_right_that_it_never_uses() {
    const SYS_MODULE: u32 = 16;
    const SYS_RAWIO: u32 = 17;
    const SYS_ADMIN: u32 = 21;
    const SYS_BOOT: u32 = 22;
    const SYS_TIME: u32 = 25;
    let daemon = Daemon::start();
    let server = daemon.server_pid();
    let status = |folder: &Path| fs::read_to_string(folder.join("status")).ok();
    let tasks = fs::read_dir(format!("/proc/{server}/task")).unwrap().flatten();
    let threads: Vec<_> = tasks.filter_map(|task| status(&task.path())).collect();
    assert!(threads.len() > 1);
    for thread in &threads {
        assert_eq!(row(thread, "NoNewPrivs:"), "1", "{thread}");
        assert_eq!(row(thread, "Seccomp:"), "2", "{thread}");
        assert!(has(thread, "CapEff:", SYS_ADMIN), "{thread}");
        for label in ["CapPrm:", "CapEff:", "CapBnd:", "CapInh:"] {
            let dropped = [SYS_MODULE, SYS_RAWIO, SYS_BOOT, SYS_TIME];
            assert!(dropped.iter().all(|one| !has(thread, label, *one)), "{thread}");
        }
    }
    // A helper has what its caller has: what starts it has given up nothing.
    let keeper = row(&threads[0], "PPid:");
    let processes = fs::read_dir("/proc").unwrap().flatten();
    let all: Vec<_> = processes.filter_map(|process| status(&process.path())).collect();
    let own = status(Path::new("/proc/self")).unwrap();
    let is_broker = |one: &&String| {
        row(one, "PPid:") == keeper
            && ["CapBnd:", "Seccomp:"].iter().all(|label| row(one, label) == row(&own, label))
    };
    let broker = all.iter().find(is_broker).expect("the broker is confined too");
    // Containers see what it forks: no path of the host.
    let line = fs::read(format!("/proc/{}/cmdline", row(broker, "Pid:"))).unwrap();
    let words: Vec<_> = line.split(|&byte| byte == 0).filter(|word| !word.is_empty()).collect();
    assert_eq!(words, [b"ambit-broker"]);
}
