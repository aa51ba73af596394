//! Which processors a container is shown under a quota, and what stays the machine's.
//!
//! A quota limits time: the kernel runs the container's threads on every processor of its cpuset.
//! So the table of possible processors is the machine's, and which ones are shown is a choice,
//! which is to be the same everywhere and not the same for all containers.

use std::collections::BTreeSet;
use std::fs;
use std::path::Path;

use rustix::process::{Pid, Signal, kill_process};

use crate::harness::cgroup::{Cgroup, Limits};
use crate::harness::command::{run, start};
use crate::harness::daemon::{Daemon, Place, readable_dir};
use crate::harness::text::{count, cpu_lines, list_length, number, value};
use crate::harness::{machine, sandbox};

const CPU: &str = "sys/devices/system/cpu";

/// Says whether there is more than one processor to choose from.
fn can_choose() -> bool {
    let can = machine::processors() > 1 && machine::has_controller("cpu");
    if !can {
        machine::not_on_this_kernel("a quota that leaves some of several processors");
    }
    can && Path::new("/").join(CPU).join("possible").exists()
}

fn quota(name: &str, quota: u64) -> Cgroup {
    Cgroup::new(name, Limits { quota: Some(quota), ..Limits::default() })
}

#[test]
fn programs_with_an_entry_for_each_processor_stay_inside_their_table() {
    if !can_choose() {
        return;
    }
    let daemon = Daemon::start();
    let program = machine::program("percpu").display().to_string();
    let script = format!("cat {0}/online; {program} {0}", daemon.file(CPU).display());
    let said = run(&mut quota("percpu", 50_000).script(&script)).ok();
    assert!(!said.lines().next().unwrap().contains(['-', ',']), "one is shown: {said}");
    assert_eq!(number(&said, "ran"), machine::processors() as u64, "on any of them: {said}");
    assert_eq!((number(&said, "beyond"), number(&said, "beyond_rseq")), (0, 0), "{said}");
    match value(&said, "map") {
        "whole" => {}
        "Function not implemented" => machine::not_on_this_kernel("bpf(2)"),
        wrong => panic!("the buffer of a per-CPU map is {wrong}: {said}"),
    }
}

#[test]
fn possible_processors_are_the_machines_or_those_of_the_view() {
    if !can_choose() {
        return;
    }
    let host = |file: &str| fs::read_to_string(Path::new("/").join(CPU).join(file)).unwrap();
    let script = |daemon: &Daemon| {
        let folder = daemon.file(CPU);
        format!(
            "cd {}; for f in online present possible kernel_max; do \
                 echo $f=$(cat $f); done",
            folder.display()
        )
    };
    let daemon = Daemon::start();
    let said = run(&mut quota("possible", 50_000).script(&script(&daemon))).ok();
    assert_eq!(value(&said, "possible"), host("possible").trim(), "{said}");
    assert_eq!(value(&said, "kernel_max"), host("kernel_max").trim(), "{said}");
    assert_eq!(value(&said, "present"), value(&said, "online"), "{said}");
    drop(daemon);

    let place = Place::new();
    let text = fs::read_to_string(place.config()).unwrap();
    fs::write(place.config(), text.replace("[overlay]\n", "[overlay]\npossible = \"view\"\n"))
        .unwrap();
    let daemon = Daemon::start_at(place);
    let said = run(&mut quota("possible", 50_000).script(&script(&daemon))).ok();
    assert_eq!(value(&said, "possible"), value(&said, "online"), "{said}");
    assert_eq!(value(&said, "kernel_max"), host("kernel_max").trim(), "{said}");
}

#[test]
fn a_quota_leaves_the_same_processor_in_files_calls_and_directories() {
    if !can_choose() {
        return;
    }
    let daemon = Daemon::start();
    let mut chosen = BTreeSet::new();
    // Each sandbox has a control group of its own: that all of 24 get the same processor of two
    // happens once in 8 million runs.
    for _ in 0..24 {
        let script = "echo online=$(cat /sys/devices/system/cpu/online)
            echo affinity=$(/mnt/affinity | sed -n s/^cpus=//p)
            echo folders=$(ls -d /sys/devices/system/cpu/cpu[0-9]* | sed s/.*cpu//)
            echo nodes=$(cat /sys/devices/system/node/node*/cpulist)
            echo pinned=$(taskset -c $(cat /sys/devices/system/cpu/online) nproc)
            cat /proc/cpuinfo /proc/stat";
        let said = sandbox::run(&daemon, &["--cpus", "1"], script).ok();
        let online = value(&said, "online");
        for other in ["affinity", "folders"] {
            assert_eq!(value(&said, other), online, "{other}: {said}");
        }
        assert!(["", online].contains(&value(&said, "nodes")), "{said}");
        assert_eq!(value(&said, "pinned"), "1", "{said}");
        assert_eq!(count(&said, "processor"), 1, "{said}");
        let stat = cpu_lines(&said);
        assert!(stat.len() == 1 && stat[0].starts_with(&format!("cpu{online} ")), "{said}");
        chosen.insert(online.to_owned());
    }
    assert!(chosen.len() > 1, "all of them are shown {chosen:?}");
}

#[test]
fn the_processor_stays_when_the_quota_changes_and_the_server_is_replaced() {
    if !can_choose() {
        return;
    }
    let daemon = Daemon::start();
    let folder = readable_dir();
    let replaced = folder.path().join("replaced");
    // A container's first two seconds are not cached, and neither is what changed 20 ms ago.
    let script = format!(
        "may() {{ for d in $DIRS; do
             [ ! -e $d/cpu.cfs_quota_us ] || echo $1 >$d/cpu.cfs_quota_us
             [ ! -e $d/cpu.max ] || echo $1 100000 >$d/cpu.max; done; sleep 0.1; }}
         online() {{ echo $1=$(cat {online}); }}
         sleep 2.2; online first; may 200000; online more; may 100000; online again
         until [ -e {replaced} ]; do sleep 0.1; done; online replaced",
        online = daemon.file(CPU).join("online").display(),
        replaced = replaced.display(),
    );
    let cgroups = ["stays-a", "stays-b", "stays-c"].map(|name| quota(name, 100_000));
    let mut running: Vec<_> =
        cgroups.iter().map(|cgroup| start(&mut cgroup.script(&script))).collect();
    running.iter_mut().for_each(|one| one.wait_for("again", machine::patience(20)));
    kill_process(Pid::from_raw(daemon.server_pid().cast_signed()).unwrap(), Signal::KILL).unwrap();
    fs::write(&replaced, "").unwrap();
    for one in running {
        let said = one.finish(machine::patience(20)).ok();
        let first = value(&said, "first");
        assert_eq!(list_length(first), 1, "{said}");
        assert_eq!(list_length(value(&said, "more")), 2, "{said}");
        assert!(value(&said, "more").contains(first), "{said}");
        assert_eq!((value(&said, "again"), value(&said, "replaced")), (first, first), "{said}");
    }
}
