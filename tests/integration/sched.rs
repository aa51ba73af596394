//! Priorities that containers set for their own threads, and threads that they must not change.

use std::fs;
use std::io::Write;
use std::path::Path;

use crate::harness::command::{self, Output};
use crate::harness::daemon::{Daemon, Place};
use crate::harness::{cgroup, lxc, machine, oci, sandbox};

const MIB: u64 = 1 << 20;
const ON: &str = "sched_setscheduler.enabled = true\nsched_setscheduler.priority = 10\n";

#[track_caller]
fn run(lines: &str, script: &str) -> String {
    let daemon = Daemon::start_at(Place::intercepting(lines));
    sandbox::run(&daemon, &["--intercept", "sched_setscheduler"], script).ok()
}

/// Says ok or no for each command.
fn each(commands: &[&str]) -> String {
    commands.iter().map(|one| format!("{one} >/dev/null 2>&1 && echo ok || echo no\n")).collect()
}

/// Can a thread in a control group have real-time priority at all? With `CONFIG_RT_GROUP_SCHED` a
/// new one has no share of it.
pub(crate) fn real_time() -> bool {
    let group = cgroup::Cgroup::new(
        "real-time",
        cgroup::Limits { quota: Some(50_000), ..Default::default() },
    );
    let can = command::run(&mut group.script("chrt -f 5 true")).status == 0;
    if !can {
        machine::not_on_this_kernel("real-time priorities in control groups");
    }
    can
}

/// True if thread ids other than the caller's can be translated (Linux 6.11).
fn finds_others() -> bool {
    let release = std::fs::read_to_string("/proc/sys/kernel/osrelease").unwrap();
    let mut numbers = release.split(['.', '-']).map(|part| part.parse::<u32>().unwrap_or(0));
    let finds = (numbers.next(), numbers.next()) >= (Some(6), Some(11));
    if !finds {
        machine::not_on_this_kernel("threads named by their numbers");
    }
    finds
}

#[test]
fn priorities_are_set_up_to_the_limit() {
    let script = each(&[
        "chrt -f 5 true",
        "chrt -r 10 true",
        "chrt -f 11 true",
        "chrt -f 0 true",
        "chrt -b 0 true",
        "chrt -i 0 true",
        "chrt -R -f 3 true",
        "chrt -d --sched-runtime 100000 --sched-deadline 200000 --sched-period 200000 0 true",
    ]) + "sleep 9 & chrt -f -p 7 $!; chrt -p $!; chrt -o -p 0 $!; chrt -p $! | head -1";
    let text = run(ON, &script);
    let verdicts: Vec<_> = text.lines().take(8).collect();
    let real_time = real_time();
    if real_time {
        assert_eq!(verdicts, ["ok", "ok", "no", "no", "ok", "ok", "ok", "no"], "{text}");
    } else {
        assert_eq!(verdicts[2..6], ["no", "no", "ok", "ok"], "{text}");
    }
    if real_time && finds_others() {
        assert!(text.contains("SCHED_FIFO\n") && text.contains("priority: 7\n"), "{text}");
        assert!(text.trim_end().ends_with("SCHED_OTHER"), "{text}");
    }
}

/// Gives this control group and those in it a share of real time. New ones in them have none.
fn share_real_time(group: &Path, microseconds: u32) {
    fs::write(group.join("cpu.rt_runtime_us"), microseconds.to_string()).unwrap();
    let inner = fs::read_dir(group).unwrap().flatten().map(|entry| entry.path());
    let inner: Vec<_> = inner.filter(|path| path.is_dir()).collect();
    // Together no more than this one.
    let each = microseconds / u32::try_from(inner.len() + 1).unwrap();
    inner.iter().for_each(|path| share_real_time(path, each));
}

#[test]
fn real_time_is_granted_as_far_as_the_control_group_has_it() {
    let hierarchies = cgroup::hierarchies();
    let group = hierarchies.iter().find(|one| !one.is_v2() && one.has("cpu")).map(|one| {
        let machine = std::env::var("AMBIT_TEST_CGROUP").expect("run by scripts/test");
        one.root().join(machine.trim_start_matches('/'))
    });
    let Some(group) = group.filter(|group| group.join("cpu.rt_runtime_us").exists()) else {
        return machine::not_on_this_kernel("a share of real time for each control group");
    };
    let daemon = Daemon::start_at(Place::intercepting(ON));
    let try_both = "for p in 10 11; do chrt -f $p true 2>/dev/null && echo ok || echo no; done";
    let script = format!("{try_both}; echo without; read line; {try_both}; chrt -f 10 chrt -p 0");
    let mut run = sandbox::command(&daemon, &["--intercept", "sched_setscheduler"], &script);
    let (input, mut writer) = std::io::pipe().unwrap();
    let mut running = command::start(run.stdin(input));
    drop(run);
    running.wait_for("without", machine::patience(20));
    share_real_time(&group, 400_000);
    writer.write_all(b"\n").unwrap();
    let text = running.finish(machine::patience(30)).stdout;
    assert!(text.starts_with("no\nno\nwithout\nok\nno\n"), "{text}");
    assert!(text.contains("SCHED_FIFO\n") && text.contains("priority: 10\n"), "{text}");
    daemon.stop().0.ok();
}

/// Prints whether the process may lower its own nice value.
const LOWER: &str = "/usr/bin/python3 -c '
import os
try: os.setpriority(0, 0, -5); print(-5)
except PermissionError: print(\"refused\")'";

#[test]
fn only_root_sets_priorities_and_only_of_its_own_threads() {
    let script = format!(
        "setpriv --reuid 1000 --clear-groups {LOWER}; setpriv --bounding-set=-sys_nice {LOWER}
         unshare -Ur {LOWER}; renice -n -5 -p {} >/dev/null 2>&1
         /usr/bin/python3 -c 'import os; os.setpriority(0, 0, -11)' 2>/dev/null || echo beyond; {LOWER}",
        std::process::id()
    );
    // Whatever has our number inside is not this process.
    let own = || rustix::process::getpriority_process(None).unwrap();
    let before = own();
    let text = run("sched_setscheduler.enabled = true\nsched_setscheduler.nice = 10\n", &script);
    assert_eq!(own(), before);
    assert_eq!(text, "refused\nrefused\nrefused\nbeyond\n-5\n");
}

#[test]
fn priorities_that_the_kernel_grants_are_still_granted() {
    let daemon = Daemon::start_at(Place::intercepting(
        "sched_setscheduler.enabled = true\nsched_setscheduler.nice = 5\n",
    ));
    // Below the limit already, and not as far afterwards.
    let script =
        "/usr/bin/python3 -c 'import os; os.setpriority(0, 0, -12); print(os.getpriority(0, 0))'";
    let sandbox = sandbox::command(&daemon, &["--intercept", "sched_setscheduler"], script);
    let mut lower = command::quiet("nice");
    let own = rustix::process::getpriority_process(None).unwrap();
    lower
        .args(["-n", &(-15 - own).to_string()])
        .arg(sandbox.get_program())
        .args(sandbox.get_args());
    assert_eq!(command::run(&mut lower).ok(), "-12\n");
}

#[test]
fn every_thread_and_word_size_is_served() {
    for call in machine::runnable(&["sched_call", "sched_call-32"]) {
        assert_eq!(run(ON, &format!("/mnt/{call}")), "-5\nok EPERM\nas before\n", "{call}");
    }
}

#[test]
fn attributes_are_taken_as_the_kernel_takes_them() {
    let expected = "out of range: ok, nice -20, policy 0\nnewer: ok, nice -4, policy 0\n\
        newer with more: E2BIG, nice -4, policy 0\nkept: ok, nice -6, policy 3\n\
        kept with a priority: EINVAL, nice -6, policy 3\n";
    for call in machine::runnable(&["sched_call", "sched_call-32"]) {
        assert_eq!(run(ON, &format!("/mnt/{call} attributes")), expected, "{call}");
    }
}

#[test]
fn the_realtime_class_of_io_is_given_up_to_its_level() {
    machine::needs(&["ionice"]);
    let lines = "ioprio_set.enabled = true\nioprio_set.level = 4\n";
    let script = each(&["ionice -c1 -n3 true", "ionice -c1 -n4 true", "ionice -c2 -n0 true"])
        + "ionice -c1 -n5 ionice; setpriv --reuid 1000 --clear-groups ionice -c1 -n5 ionice 2>/dev/null | grep -c realtime";
    let daemon = Daemon::start_at(Place::intercepting(lines));
    let text = sandbox::run(&daemon, &["--intercept", "ioprio_set"], &script).stdout;
    assert!(text.starts_with("no\nok\nok\nrealtime: prio 5\n"), "{text}");
    assert!(text.ends_with("\n0\n"), "of root alone: {text}");
    let off = Daemon::start_at(Place::intercepting("ioprio_set = false\n"));
    let script = each(&["ionice -c1 -n5 true"]);
    assert_eq!(sandbox::run(&off, &["--intercept", "none"], &script).ok(), "no\n");
    daemon.stop().0.ok();
    off.stop().0.ok();
}

#[test]
fn no_priority_is_set_while_the_call_is_off() {
    assert_eq!(run("sched_setscheduler = false\n", LOWER), "refused\n");
}

const INSIDE: &str =
    "/usr/bin/python3 -c 'import os; os.setpriority(0, 0, -7); print(os.getpriority(0, 0))'";

#[track_caller]
fn engine(run: impl Fn(&Daemon) -> Output) {
    let daemon = Daemon::start_at(Place::intercepting(ON));
    assert_eq!(run(&daemon).ok(), "-7\n");
}

crate::on_each_engine!(INSIDE);
