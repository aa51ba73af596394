//! What the keys `cpu_view = "weight"` and `steal = "throttled"` change, in files and calls.

use std::fs;

use crate::harness::cgroup::{Cgroup, Limits};
use crate::harness::command::run;
use crate::harness::daemon::{Daemon, Place};
use crate::harness::text::{list_length, value};
use crate::harness::{machine, sandbox};

/// A daemon with this line in `[overlay]`; none on a kernel without the cpu controller.
fn daemon(line: &str) -> Option<Daemon> {
    if !machine::has_controller("cpu") {
        machine::not_on_this_kernel("the cpu controller");
        return None;
    }
    let place = Place::new();
    let text = fs::read_to_string(place.config()).unwrap();
    fs::write(place.config(), text.replace("[overlay]\n", &format!("[overlay]\n{line}\n")))
        .unwrap();
    Some(Daemon::start_at(place))
}

#[test]
fn a_cpu_weight_is_as_many_processors_as_it_stands_for() {
    if machine::processors() < 2 {
        machine::not_on_this_kernel("more than one processor");
        return;
    }
    let Some(daemon) = daemon("cpu_view = \"weight\"") else { return };
    // 1024 shares weigh 100, 1025 weigh 101, and 2048 weigh 174.
    let script = format!(
        "weigh() {{ for d in $DIRS; do
             [ ! -e $d/cpu.shares ] || echo $1 >$d/cpu.shares
             [ ! -e $d/cpu.weight ] || echo $2 >$d/cpu.weight; done; sleep 0.1
             echo $3=$(cat {}); }}
         weigh 1024 100 one; weigh 1025 101 two; weigh 2048 174 still_two; weigh 2 1 least",
        daemon.file("sys/devices/system/cpu/online").display(),
    );
    let cgroup = Cgroup::new("weighed", Limits::default());
    let said = run(&mut cgroup.script(&script)).ok();
    let count = |name| list_length(value(&said, name));
    assert_eq!(["one", "two", "still_two", "least"].map(count), [1, 2, 2, 1], "{said}");
    // A quota still caps it.
    let limits = Limits { quota: Some(100_000), ..Limits::default() };
    let said = run(&mut Cgroup::new("capped", limits).script(&script)).ok();
    assert_eq!(list_length(value(&said, "still_two")), 1, "{said}");
    // `ambit run` sets no weight: the kernel's default is 1024 shares.
    let said = sandbox::run(&daemon, &[], "nproc; /mnt/affinity | grep -c ^cpus=[0-9]*$").ok();
    assert_eq!(said, "1\n1\n");
}

#[test]
fn time_that_a_quota_forbids_is_stolen_time_where_the_configuration_says_so() {
    let script = "
        sh -c 'while :; do :; done' & sh -c 'while :; do :; done' &
        i=0; while [ $((i += 1)) -le 8 ]; do sleep 0.1; grep '^cpu ' /proc/stat; done
        kill $!; uptime=$(cut -d' ' -f1 /proc/uptime); echo uptime=${uptime%.*}${uptime#*.}";
    for (line, stolen) in [("steal = \"throttled\"", true), ("steal = \"none\"", false)] {
        let Some(daemon) = daemon(line) else { return };
        let said = sandbox::run(&daemon, &["--cpus", "0.2"], script).ok();
        let times: Vec<Vec<u64>> = said
            .lines()
            .filter_map(|line| line.strip_prefix("cpu "))
            .map(|line| line.split_whitespace().map(|word| word.parse().unwrap()).collect())
            .collect();
        assert_eq!(times.len(), 8, "{said}");
        for pair in times.windows(2) {
            assert!(pair[0].iter().zip(&pair[1]).all(|(before, after)| before <= after), "{said}");
        }
        let last = times.last().unwrap();
        // One processor is shown.
        let uptime: u64 = value(&said, "uptime").parse().unwrap();
        assert!(last.iter().sum::<u64>() <= uptime + 1, "{said}");
        assert_eq!(last[7] > 0, stolen, "{said}");
    }
}
