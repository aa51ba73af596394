//! The processor times that are shown after the death of a server are those that the container's
//! control group used, and an idle container is shown idle.

use std::fs;
use std::path::Path;
use std::time::{Duration, Instant};

use rustix::process::{Pid, Signal, kill_process};

use crate::harness::cgroup::{self, Cgroup, Limits};
use crate::harness::command::{Running, start};
use crate::harness::daemon::Daemon;
use crate::harness::machine;
use crate::harness::table::row;

/// Nanoseconds in a tick. What is shown is rounded down, and the kernel is asked after the look.
pub(super) const TICK: u64 = 10_000_000;

/// Works in user mode, then in the kernel, each in step with the tick, while it looks often; then
/// it only looks.
const WORK: &str = "
    stat() { sed -n 's/^cpu  *\\([0-9]*\\) [0-9]* \\([0-9]*\\) .*/stat=\\1=\\2/p' $STAT; }
    user() { n=0; while [ $n -lt 3000 ]; do n=$((n+1)); done; }
    kernel() { dd if=/dev/zero of=/dev/null bs=64k count=600 2>/dev/null; }
    for kind in user kernel user kernel; do
        n0=0; while [ $n0 -lt 60 ]; do $kind; sleep 0.004; stat; n0=$((n0+1)); done
    done
    echo worked
    while sleep 0.2; do stat; done";

/// User and system ticks of each look.
fn looks(running: &mut Running) -> Vec<u64> {
    let (stdout, _) = running.printed();
    let look = |line: &str| {
        let (user, system) = line.strip_prefix("stat=")?.split_once('=')?;
        Some(user.parse::<u64>().ok()? + system.parse::<u64>().ok()?)
    };
    stdout.lines().filter_map(look).collect()
}

/// Nanoseconds that a control group used.
pub(super) fn used(cgroup: &Cgroup) -> u64 {
    let read = |dir: &Path| {
        if let Ok(text) = fs::read_to_string(dir.join("cpuacct.usage")) {
            return text.trim().parse().ok();
        }
        let text = fs::read_to_string(dir.join("cpu.stat")).ok()?;
        let usage = text.lines().find_map(|line| line.strip_prefix("usage_usec "))?;
        Some(usage.parse::<u64>().ok()? * 1000)
    };
    let accounted = cgroup::hierarchies().iter().any(|one| !one.is_v2() && one.has("cpuacct"));
    let mut dirs = cgroup.dirs().filter(|dir| !accounted || dir.join("cpuacct.usage").exists());
    dirs.find_map(read).expect("a control group accounts for processor time")
}

#[test]
fn after_a_killed_server_only_used_time_is_shown() {
    let daemon = Daemon::start();
    let cgroup = Cgroup::new("restarts", Limits::default());
    let mut command = cgroup.script(WORK);
    command.env("STAT", daemon.file("proc/stat"));
    let mut running = start(&mut command);
    running.wait_for("worked", machine::patience(120));
    for _ in 0..5 {
        let server = daemon.server_pid();
        kill_process(Pid::from_raw(server.cast_signed()).unwrap(), Signal::KILL).unwrap();
        let so_far = looks(&mut running).len();
        let until = Instant::now() + machine::patience(30);
        while looks(&mut running).len() < so_far + 5 {
            assert!(!running.ended() && Instant::now() < until, "{:?}", running.printed());
            std::thread::sleep(Duration::from_millis(50));
        }
        let shown = *looks(&mut running).last().unwrap();
        let used = used(&cgroup) / TICK;
        assert!(shown <= used, "{shown} ticks are shown, {used} were used");
        assert_ne!(daemon.server_pid(), server);
    }
    let shown = *looks(&mut running).last().unwrap();
    row("/proc/stat busy ticks", "server killed five times")
        .because("use since the last look")
        .numbers(shown as f64, (used(&cgroup) / TICK) as f64, 20.0);
}
