//! A thousand containers with a file on lease: they cost the daemon nothing while they do not read,
//! and what it keeps of them is given back when they have ended.

use std::fs;
use std::io::{BufRead, BufReader, Write};
use std::path::PathBuf;
use std::process::{Child, ChildStdin, ChildStdout, Stdio};
use std::time::Duration;

use crate::harness::cgroup::{Cgroup, Limits};
use crate::harness::command::quiet;
use crate::harness::daemon::Daemon;
use crate::harness::host::Host;
use crate::harness::machine;
use crate::survival::{number, resends};

use super::container::{FRESH, Unshared, ok};
use super::leases::total;
use super::steady::ask;

/// Containers of the program `containers`, each with 1 MiB more than the one before it.
struct Crowd {
    program: Child,
    lines: Option<ChildStdin>,
    answers: BufReader<ChildStdout>,
    cgroups: Vec<Cgroup>,
}

impl Crowd {
    fn new() -> Self {
        let mut program = quiet(machine::program("containers").to_str().unwrap());
        let mut program = program.stdin(Stdio::piped()).stdout(Stdio::piped()).spawn().unwrap();
        let (lines, answers) = (program.stdin.take(), program.stdout.take().unwrap());
        Self { program, lines, answers: BufReader::new(answers), cgroups: Vec::new() }
    }

    /// Starts one more. Returns its `/proc/meminfo`, its first process and its memory in kB.
    fn start(&mut self) -> (PathBuf, u32, u64) {
        let number = self.cgroups.len();
        let memory = (64 + number as u64) << 20;
        let limits = Limits { memory: Some(memory), ..Limits::default() };
        let cgroup = Cgroup::new(&format!("crowd-{number}"), limits);
        let dirs: Vec<_> = cgroup.dirs().map(|dir| dir.to_str().unwrap().to_owned()).collect();
        self.cgroups.push(cgroup);
        writeln!(self.lines.as_mut().unwrap(), "{}", dirs.join(" ")).unwrap();
        let mut pid = String::new();
        self.answers.read_line(&mut pid).unwrap();
        let pid = pid.trim().parse().unwrap();
        (PathBuf::from(format!("/proc/{pid}/root/proc/meminfo")), pid, memory >> 10)
    }
}

impl Drop for Crowd {
    fn drop(&mut self) {
        // It waits for the end of the containers, after which their control groups can be removed.
        drop(self.lines.take());
        let _ = self.program.wait();
    }
}

/// How often each thread that reads requests has slept: a request wakes one of them.
fn sleeps(server: u32) -> Vec<(PathBuf, u64)> {
    let threads = fs::read_dir(format!("/proc/{server}/task")).unwrap().flatten();
    let sleeps = threads.filter_map(|thread| {
        let status = fs::read_to_string(thread.path().join("status")).ok()?;
        let field = |name| status.lines().find_map(|line| line.strip_prefix(name));
        field("Name:\tfuser-")?;
        Some((thread.path(), field("voluntary_ctxt_switches:")?.trim().parse().ok()?))
    });
    let mut sleeps: Vec<_> = sleeps.collect();
    sleeps.sort();
    assert!(!sleeps.is_empty());
    sleeps
}

/// `AMBIT_TEST_ROUNDS` may ask for more rounds, after which the server has no more than after the
/// first one.
#[test]
fn a_thousand_containers_cost_nothing_while_they_do_not_read() {
    if !resends() {
        return;
    }
    let count = if machine::slowness() > 1 { 100 } else { 1000 };
    let daemon = Daemon::start();
    let again = || {
        let container = Unshared::start("again", FRESH);
        ok(&daemon, "attach", container.pid);
    };
    again();
    let server = daemon.server_pid();
    let (before, mut most) = (Host::with(&daemon), machine::resident_kb(server) + (8 << 10));
    for round in 0..number("AMBIT_TEST_ROUNDS", 1) {
        let mut crowd = Crowd::new();
        let containers: Vec<_> = (0..count).map(|_| crowd.start()).collect();
        for (_, pid, _) in &containers {
            ask(&daemon, &format!("attach {pid}"));
        }
        for (file, pid, kilobytes) in &containers {
            assert_eq!(total(file), *kilobytes, "of {pid}");
        }
        // The status asks the overlay for its size (statfs).
        let opened = || daemon.status()["files"]["opened"].as_u64().unwrap();
        let asked = opened();
        assert!(asked >= count);
        let slept = sleeps(server);
        std::thread::sleep(Duration::from_secs(3));
        assert_eq!((sleeps(server), opened()), (slept, asked));
        for (file, pid, kilobytes) in &containers {
            assert_eq!(total(file), *kilobytes, "of {pid}");
        }
        drop(crowd);
        before.is_as_it_was(&daemon, again);
        let late = machine::resident_kb(server);
        eprintln!("round {round}: {late} kB, at most {most} kB");
        assert!(late <= most, "round {round}: {late} kB and not {most} kB");
        if round == 0 {
            // The heap keeps what it once had.
            most = late + (2 << 10);
        }
    }
}
