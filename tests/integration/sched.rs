//! Priorities that containers give their own threads, and what they must not reach.

use crate::harness::command::Output;
use crate::harness::daemon::{Daemon, Place};
use crate::harness::{lxc, machine, oci, sandbox};

const MIB: u64 = 1 << 20;
const ON: &str = "sched_setscheduler = true\n\"sched.priority\" = 10\n";

#[track_caller]
fn run(lines: &str, script: &str) -> String {
    let daemon = Daemon::start_at(Place::intercepting(lines));
    sandbox::run(&daemon, &["--intercept", "sched_setscheduler"], script).ok()
}

/// Says ok or no for each command.
fn each(commands: &[&str]) -> String {
    commands.iter().map(|one| format!("{one} >/dev/null 2>&1 && echo ok || echo no\n")).collect()
}

/// `chrt -f 5` works where the machine itself can do it: a control group without real-time share cannot.
fn real_time() -> bool {
    let own = std::process::Command::new("chrt").args(["-f", "5", "true"]).output().unwrap();
    if !own.status.success() {
        machine::not_on_this_kernel("real-time priorities in this control group");
    }
    own.status.success()
}

#[test]
fn priorities_are_set_up_to_the_limit() {
    let script = each(&[
        "chrt -f 5 true",
        "chrt -r 10 true",
        "chrt -f 11 true",
        "chrt -f 0 true",
        "renice -n -20 -p $$",
        "renice -n -5 -p $$",
        "chrt -b 0 true",
        "chrt -i 0 true",
        "chrt -R -f 3 true",
        "chrt -d --sched-runtime 100000 --sched-deadline 200000 --sched-period 200000 0 true",
    ]) + "nice; sleep 9 & chrt -f -p 7 $!; chrt -p $!; chrt -o -p 0 $!; chrt -p $! | head -1";
    let text = run(ON, &script);
    let verdicts: Vec<_> = text.lines().take(10).collect();
    if real_time() {
        assert_eq!(
            verdicts,
            ["ok", "ok", "no", "no", "ok", "ok", "ok", "ok", "ok", "no"],
            "{text}"
        );
        assert!(text.contains("SCHED_FIFO\n") && text.contains("priority: 7\n"), "{text}");
        assert!(text.trim_end().ends_with("SCHED_OTHER"), "{text}");
    } else {
        assert_eq!([verdicts[4], verdicts[5], verdicts[6]], ["ok", "ok", "ok"], "{text}");
    }
    assert_eq!(text.lines().nth(10), Some("-5"));
}

/// Whoever runs this says whether it may lower its own nice value.
const LOWER: &str = "sh -c 'renice -n -5 -p $$ >/dev/null 2>&1 && nice || echo refused'";

#[test]
fn others_are_out_of_reach_and_only_root_may() {
    let script = format!(
        "setpriv --reuid 1000 --clear-groups {LOWER}; setpriv --bounding-set=-sys_nice {LOWER}
         unshare -Ur {LOWER}; renice -n -5 -p {} >/dev/null 2>&1
         renice -n -11 -p $$ >/dev/null 2>&1 || echo beyond; {LOWER}",
        std::process::id()
    );
    // Whatever has our number inside is not this process.
    let own = || rustix::process::getpriority_process(None).unwrap();
    let before = own();
    let text = run("sched_setscheduler = true\n\"sched.nice\" = 10\n", &script);
    assert_eq!(own(), before);
    assert_eq!(text, "refused\nrefused\nrefused\nbeyond\n-5\n");
}

#[test]
fn nothing_is_set_while_it_is_off() {
    assert_eq!(run("sched_setscheduler = false\n", LOWER), "refused\n");
}

const INSIDE: &str = "renice -n -7 -p $$ >/dev/null; nice; renice -n -3 -p $$ >/dev/null && nice";

#[track_caller]
fn engine(run: impl Fn(&Daemon) -> Output) {
    let daemon = Daemon::start_at(Place::intercepting(ON));
    assert_eq!(run(&daemon).ok(), "-7\n-3\n");
}

fn container() -> oci::Container<'static> {
    oci::Container { memory: 160 * MIB, quota: 100_000, userns: true, script: INSIDE }
}

#[test]
fn runc() {
    engine(|daemon| oci::run("runc", daemon, container()));
}

#[test]
fn crun() {
    engine(|daemon| oci::run("crun", daemon, container()));
}

#[test]
fn lxc_with_an_id_map() {
    engine(|daemon| lxc::run(daemon, 144 * MIB, 100_000, INSIDE));
}
