//! `/proc/meminfo` of an attached container, which the kernel keeps for the length of a lease, against
//! the host's own.

use std::process::Command;
use std::time::Duration;

use crate::harness::cgroup::{Cgroup, Limits};
use crate::harness::command::{quiet, run, start};
use crate::harness::daemon::Daemon;
use crate::harness::machine;

const ROUNDS: usize = 5;

/// Returns the nanoseconds of open, fstat, read to the end and close of the file on lease, and of the
/// host's own: the median of the ratios.
pub(crate) fn times(daemon: &Daemon) -> [f64; 2] {
    let cgroup = Cgroup::new("leased", Limits { memory: Some(256 << 20), ..Limits::default() });
    let script = "exec unshare --mount sh -ec 'mount -t proc proc /proc; \
                  mount -t tmpfs -o mode=755 dev /dev; echo it runs; exec sleep 1000'";
    let mut running = start(&mut cgroup.script(script));
    running.wait_for("it runs", Duration::from_secs(30));
    let pid = cgroup.init().to_string();
    // The numbers of a container that has just started are not kept.
    std::thread::sleep(Duration::from_secs(3));
    daemon.place().ambit(&["attach", &pid]).ok();
    let timed = |mut command: Command| -> f64 {
        command.arg(machine::program("leased")).args(["time", "/proc/meminfo"]);
        run(&mut command).ok().trim().parse().unwrap()
    };
    let mut rounds: Vec<(f64, f64)> = (0..ROUNDS)
        .map(|_| {
            let mut inside = quiet("nsenter");
            inside.args(["--target", &pid, "--mount", "--pid"]);
            (timed(inside), timed(quiet("env")))
        })
        .collect();
    rounds.sort_by(|(a, b), (c, d)| (a / b).total_cmp(&(c / d)));
    rounds[ROUNDS / 2].into()
}
