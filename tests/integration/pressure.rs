//! `/proc/pressure` as programs use it that watch for pressure: a trigger is written, poll(2)
//! sleeps, and wakes for the container's own stalls only.

use std::fs;
use std::os::unix::fs::PermissionsExt;
use std::process::Command;

use crate::harness::cgroup::{Cgroup, Limits};
use crate::harness::command::{Output, quiet, run, start};
use crate::harness::daemon::{Daemon, readable_dir};
use crate::harness::machine;
use crate::harness::sandbox;

/// 150 ms of stalls in two seconds, a trigger that unprivileged users may set.
const TRIGGER: &str = "some 150000 2000000";

/// Three busy loops; below a quota, or on few processors, they wait for each other.
const LOAD: &str = "for i in 1 2 3; do while :; do :; done & done;";

fn has_pressure() -> bool {
    let there = fs::read("/proc/pressure/cpu").is_ok();
    if !there {
        machine::not_on_this_kernel("pressure stall information");
    }
    there
}

/// How often a trigger fired, as the program printed it.
#[track_caller]
fn fired(output: &Output) -> u64 {
    assert!(output.stdout.starts_with("armed\n"), "{output:?}");
    let count = output.stdout.lines().find_map(|line| line.strip_prefix("fired "));
    count.unwrap_or_else(|| panic!("{output:?}")).parse().unwrap()
}

fn trigger(cgroup: &Cgroup, daemon: &Daemon, before: &str, how: &str) -> Command {
    let program = machine::program("pressure_trigger");
    let file = daemon.file("proc/pressure/cpu");
    cgroup.script(&format!(
        "{before} {} {} '{TRIGGER}' {how}; s=$?; kill $(jobs -p) 2>/dev/null; exit $s",
        program.display(),
        file.display()
    ))
}

#[test]
fn in_a_sandbox_a_trigger_fires_for_its_own_load() {
    if !has_pressure() {
        return;
    }
    let daemon = Daemon::start();
    let script = |load: &str| {
        format!(
            "{load} /mnt/pressure_trigger /proc/pressure/cpu '{TRIGGER}' 5; kill $(jobs -p) 2>/dev/null; true"
        )
    };
    let own = sandbox::run(&daemon, &["--cpus", "0.5"], &script(LOAD));
    assert!(fired(&own) >= 1, "{own:?}");
    // The load of another container does not.
    let other = Cgroup::new("other", Limits { quota: Some(20_000), ..Limits::default() });
    let mut load = other.script(&format!("{LOAD} wait"));
    let loading = start(&mut load);
    let idle = sandbox::run(&daemon, &[], &script(""));
    assert_eq!(fired(&idle), 0, "{idle:?}");
    drop(loading);
}

#[test]
fn in_the_shared_tree_a_trigger_fires_for_its_own_load() {
    if !has_pressure() {
        return;
    }
    let daemon = Daemon::start();
    let busy = Cgroup::new("busy", Limits { quota: Some(50_000), ..Limits::default() });
    let idle = Cgroup::new("idle", Limits::default());
    let waiting = start(&mut trigger(&idle, &daemon, "", "5"));
    let own = run(&mut trigger(&busy, &daemon, LOAD, "5"));
    assert!(fired(&own) >= 1, "{own:?}");
    let idle = waiting.finish(machine::patience(20));
    assert_eq!(fired(&idle), 0, "{idle:?}");
}

/// What the kernel says to the same program on its own file.
#[test]
fn invalid_triggers_fail_as_with_the_kernel() {
    if !has_pressure() {
        return;
    }
    let daemon = Daemon::start();
    let cgroup = Cgroup::new("mistakes", Limits::default());
    let program = machine::program("pressure_trigger").display().to_string();
    let ours = daemon.file("proc/pressure/memory").display().to_string();
    let kernels = cgroup.dirs().map(|dir| dir.join("memory.pressure")).find(|file| file.exists());
    let kernels = kernels.expect("a cgroup2 hierarchy has pressure files").display().to_string();
    for arguments in [
        "'some 150000 2000000' 1 read",
        "'some 150000 2000000' 0 again",
        "'some 0 2000000' 0",
        "'some 3000000 2000000' 0",
        "'some 150000 20000000' 0",
        "'half 150000 2000000' 0",
        "'' 0",
        "'full 150000 2000000' 1",
        "'some 150000 2000000' 1",
    ] {
        let ask = |file: &str| {
            run(&mut cgroup.script(&format!("timeout 20 {program} {file} {arguments}"))).stdout
        };
        assert_eq!(ask(&ours), ask(&kernels), "{arguments}");
    }
    // Who has no CAP_SYS_RESOURCE chooses windows of whole two seconds.
    let drop = "setpriv --bounding-set=-sys_resource --inh-caps=-sys_resource";
    let short = format!("{drop} {program} {ours} 'some 150000 1000000' 0");
    assert_eq!(run(&mut cgroup.script(&short)).stdout, "write: EINVAL\n");
}

#[test]
fn a_trigger_tells_that_its_cgroup_is_gone() {
    if !has_pressure() {
        return;
    }
    let daemon = Daemon::start();
    let cgroup = Cgroup::new("vanishing", Limits::default());
    let program = machine::program("pressure_trigger").display().to_string();
    let file = daemon.file("proc/pressure/cpu").display().to_string();
    let dirs: Vec<_> = cgroup.dirs().map(|dir| dir.display().to_string()).collect();
    let dirs = dirs.join(" ");
    // Opens the file as one of the cgroup, then leaves it with the trigger still set.
    let folder = readable_dir();
    let out = folder.path().join("out").display().to_string();
    let script = format!(
        "for d in {dirs}; do echo 0 >$d/cgroup.procs; done; {program} {file} '{TRIGGER}' 60 >{out} & \
         p=$!; until grep -q . {out}; do sleep 0.1; done; \
         for d in {dirs}; do echo $p >$d/../cgroup.procs; echo 0 >$d/../cgroup.procs; done; \
         echo moved; wait $p; cat {out}"
    );
    let mut shell = quiet("sh");
    let mut waiting = start(shell.args(["-c", &script]));
    waiting.wait_for("moved", machine::patience(10));
    drop(cgroup);
    let output = waiting.finish(machine::patience(70));
    assert_eq!(output.stdout, "moved\narmed\ngone\n", "{output:?}");
}

/// `echo >` opens with O_TRUNC, and many programs read what they can write.
#[test]
fn the_files_are_written_and_read_like_the_kernels() {
    if !has_pressure() {
        return;
    }
    let daemon = Daemon::start();
    let file = daemon.file("proc/pressure/memory").display().to_string();
    let cgroup = Cgroup::new("shell", Limits::default());
    let script = format!(
        "echo 'some 150000 2000000' >{file} && echo written; cat {file}; busybox cat {file}; \
         ls {}; stat -c %a {file}; touch {file}.new; mkdir {file}.d; true",
        daemon.file("proc/pressure").display()
    );
    let output = run(&mut cgroup.script(&script));
    assert!(output.stdout.starts_with("written\nsome avg10="), "{output:?}");
    assert_eq!(output.stdout.matches("full avg10=").count(), 2, "{output:?}");
    // Before Linux 5.13 only root may write to the kernel's.
    let mode = fs::metadata("/proc/pressure/memory").unwrap().permissions().mode() & 0o777;
    assert!(output.stdout.ends_with(&format!("cpu\nio\nmemory\n{mode:o}\n")), "{output:?}");
    assert_eq!(output.stderr.lines().count(), 2, "{output:?}");
}
