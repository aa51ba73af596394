//! A container that does nothing, whose files are read from outside of its cgroup, and programs
//! that use memory in it.

use std::time::{Duration, Instant};

use crate::harness::cgroup::{Cgroup, Limits};
use crate::harness::command::{Running, quiet, run, start};
use crate::harness::daemon::Daemon;
use crate::harness::machine;
use crate::harness::text::kb;

pub(super) const MIB: u64 = 1 << 20;

/// A limit of so many MiB, without swap.
pub(super) fn limits(mib: u64) -> Limits<'static> {
    Limits { memory: Some(mib * MIB), swap: Some(0), ..Limits::default() }
}

/// A container without anything but its first process.
pub(super) struct Container<'a> {
    pub(super) daemon: &'a Daemon,
    _running: Running,
    pub(super) init: String,
}

impl<'a> Container<'a> {
    /// Starts one in a cgroup, with a cgroup namespace whose root that is.
    #[track_caller]
    pub(super) fn start(daemon: &'a Daemon, cgroup: &Cgroup) -> Self {
        let script = "exec unshare --cgroup sh -c 'echo up; exec sleep 10000'";
        let mut running = start(&mut cgroup.script(script));
        running.wait_for("up", machine::patience(20));
        Self { daemon, _running: running, init: cgroup.init().to_string() }
    }

    /// Reads a file of the overlay in its pid namespace, from outside of its cgroup.
    #[track_caller]
    pub(super) fn read(&self, file: &str) -> String {
        let path = self.daemon.file(file);
        run(quiet("nsenter").args(["--target", &self.init, "--pid", "cat"]).arg(path)).ok()
    }

    /// A line of its `/proc/meminfo`, in bytes, when what is kept of the machine is anew.
    #[track_caller]
    pub(super) fn meminfo(&self, label: &str) -> u64 {
        std::thread::sleep(Duration::from_millis(300));
        self.read("proc/meminfo");
        kb(&self.read("proc/meminfo"), label) << 10
    }

    pub(super) fn event(&self, key: &str) -> u64 {
        let text = self.read("proc/vmstat");
        let line = text.lines().find_map(|line| line.strip_prefix(key)?.strip_prefix(' '));
        line.unwrap_or_else(|| panic!("no {key} in {text}")).parse().unwrap()
    }

    /// Waits until a number is shown.
    #[track_caller]
    pub(super) fn wait_for_total(&self, bytes: u64) {
        let until = Instant::now() + machine::patience(10);
        while self.meminfo("MemTotal") != bytes {
            assert!(Instant::now() < until, "{} for {bytes}", self.meminfo("MemTotal"));
        }
    }
}

/// Starts a program that uses so much memory in a cgroup. If that is too much, the kernel kills it
/// and none of the others.
pub(super) fn eat(cgroup: &Cgroup, bytes: u64) -> Running {
    start_eating(cgroup, bytes, "", "echo 1000 >/proc/self/oom_score_adj")
}

fn start_eating(cgroup: &Cgroup, bytes: u64, kind: &str, first: &str) -> Running {
    let eat = machine::program("eat");
    let script = format!("{first}; cd /var/tmp && exec {} {bytes} {kind}", eat.display());
    start(&mut cgroup.run(&script))
}

/// Starts one, and waits until it has its memory.
#[track_caller]
pub(super) fn eaten(cgroup: &Cgroup, bytes: u64) -> Running {
    eaten_as(cgroup, bytes, "")
}

/// The same of a kind of memory that `eat.c` knows.
#[track_caller]
pub(super) fn eaten_as(cgroup: &Cgroup, bytes: u64, kind: &str) -> Running {
    let mut eater = start_eating(cgroup, bytes, kind, ":");
    eater.wait_for("eaten", machine::patience(30));
    eater
}
