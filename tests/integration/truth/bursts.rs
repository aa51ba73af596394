//! Bursts of a quota: a container that saved up time uses more than its quota for a moment, and
//! then more than the processors that it is shown could have spent.

use std::fs;

use super::counters::busy_ticks;
use super::restarts::{TICK, used};
use crate::harness::cgroup::{Cgroup, Limits};
use crate::harness::command::run;
use crate::harness::daemon::Daemon;
use crate::harness::machine;
use crate::harness::table::row;

/// Half a processor in periods of a second, and as much again in a burst: the longest that the
/// kernel accepts. `None` where it has no bursts.
fn allow_bursts(cgroup: &Cgroup) -> Option<()> {
    let file = |name: &str| cgroup.dirs().map(|dir| dir.join(name)).find(|path| path.exists());
    if let Some(burst) = file("cpu.cfs_burst_us") {
        fs::write(file("cpu.cfs_period_us")?, "1000000").unwrap();
        fs::write(file("cpu.cfs_quota_us")?, "500000").unwrap();
        fs::write(burst, "500000").unwrap();
    } else {
        let burst = file("cpu.max.burst")?;
        fs::write(file("cpu.max")?, "500000 1000000").unwrap();
        fs::write(burst, "500000").unwrap();
    }
    Some(())
}

#[test]
fn a_burst_is_shown_whole_and_no_faster_than_time_passes() {
    let daemon = Daemon::start();
    let cgroup = Cgroup::new("bursts", Limits::default());
    if allow_bursts(&cgroup).is_none() {
        return machine::not_on_this_kernel("bursts of a quota");
    }
    // Two loops at once, on one processor that is shown, before and after a look. A look is no
    // program of its own, whose time would be used and not shown yet.
    let script = "
        look() {
            read -r before rest <$UPTIME; read -r stat <$STAT; read -r after rest <$UPTIME
            echo \"look $before $after $stat\"
        }
        busy() { sh -c 'ulimit -t 1; while :; do :; done' 2>/dev/null; }
        sleep 2; look; busy & busy & wait; look; sleep 2.5; look";
    let mut command = cgroup.script(script);
    command.env("STAT", daemon.file("proc/stat")).env("UPTIME", daemon.file("proc/uptime"));
    let output = run(&mut command).ok();
    // Between which times since the start it was looked, and the ticks that were shown.
    let looks: Vec<(f64, f64, u64)> = output
        .lines()
        .map(|line| {
            let mut words = line.strip_prefix("look ").unwrap().splitn(3, ' ');
            let mut time = || words.next().unwrap().parse().unwrap();
            (time(), time(), busy_ticks(words.next().unwrap()))
        })
        .collect();
    let [first, second, last] = looks[..] else { panic!("{output}") };
    for (from, to) in [(first, second), (second, last)] {
        let most = (to.1 - from.0) * 100.0 + 5.0;
        assert!((to.2 - from.2) as f64 <= most, "more than one processor has: {output}");
    }
    let used = used(&cgroup) / TICK;
    assert!(used >= 180, "two seconds are {used} ticks");
    row("/proc/stat busy ticks", "a burst on more than is shown")
        .because("the end of what looked")
        .numbers(last.2 as f64, used as f64, 20.0);
}
