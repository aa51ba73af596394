//! The daemon's resources are accounted to what callers cannot multiply: a container with nested
//! pid namespaces, and a user of the host who makes them, have one account, and others are not
//! affected. A thread id that the kernel reuses for a thread of another container shows that
//! container.

use std::fs;
use std::os::unix::fs::PermissionsExt;
use std::time::Instant;

use crate::harness::cgroup::{Cgroup, Limits};
use crate::harness::command::{Running, quiet, run, start};
use crate::harness::daemon::{Daemon, Place};
use crate::harness::text::{kb, number};
use crate::harness::{machine, sandbox};

/// What the daemon may have open here.
const DESCRIPTORS: usize = 2000;
/// Of these, what is for pressure files, and as many for pid namespaces.
const TENTH: usize = DESCRIPTORS / 10;

/// A daemon that may have few files open, and makes device nodes.
fn daemon() -> Daemon {
    let place = Place::intercepting("mknod = true\n");
    let serve = place.serve();
    let mut limited = quiet("sh");
    limited.args(["-c", &format!("ulimit -n {DESCRIPTORS}; exec \"$@\""), "sh"]);
    limited.arg(serve.get_program()).args(serve.get_args());
    Daemon::start_below(place, &mut limited)
}

/// Takes what it can in so many pid namespaces, until it is dropped; returns what it was told too.
#[track_caller]
fn hoard(cgroup: &Cgroup, arguments: &str) -> (Running, String) {
    let program = machine::program("hoarder");
    // The shell stays the first process of the container.
    let script = format!("{} {arguments}; exit $?", program.display());
    let mut hoarder = start(&mut cgroup.script(&script));
    hoarder.wait_for("\n", machine::patience(60));
    if hoarder.printed().0.starts_with("opened=") {
        hoarder.wait_for("done\n", machine::patience(20));
    }
    let said = hoarder.printed().0;
    (hoarder, said)
}

/// What was held is free again once the container has ended: so much can be taken.
#[track_caller]
fn is_free_again(cgroup: &Cgroup, arguments: &str, count: usize) {
    let until = Instant::now() + machine::patience(20);
    loop {
        let (_hoarder, said) = hoard(cgroup, arguments);
        if said == format!("opened={count}\ndone\n") {
            return;
        }
        // The kernel closes the files of what was killed a moment later.
        assert!(Instant::now() < until, "{said}");
    }
}

/// New containers get their numbers, their listeners are taken, and their calls are answered.
#[track_caller]
fn others_do_not_notice(daemon: &Daemon) {
    let meminfo = daemon.file("proc/meminfo");
    for n in 0..5 {
        let memory = (64 + n) << 20;
        let other = Limits { memory: Some(memory), ..Limits::default() };
        let other = Cgroup::new(&format!("other-{n}"), other);
        let text = run(&mut other.script(&format!("cat {}", meminfo.display()))).ok();
        assert_eq!(kb(&text, "MemTotal"), memory >> 10);
    }
    let script =
        "cat /proc/meminfo; cd /tmp; for n in 1 2 3 4 5 6 7 8; do mknod n$n c 1 3; done; ls";
    let args = ["--memory", "96M", "--intercept", "mknod,sysinfo"];
    let text = sandbox::run(daemon, &args, script).ok();
    assert_eq!(kb(&text, "MemTotal"), 96 << 10);
    assert!(text.ends_with("n1\nn2\nn3\nn4\nn5\nn6\nn7\nn8\n"), "{text}");
    let open = fs::read_dir(format!("/proc/{}/fd", daemon.server_pid())).unwrap().count();
    assert!(open < DESCRIPTORS * 3 / 4, "{open} descriptors are open");
}

/// An account alone holds half. Those that are refused at once can cost the last ones.
#[track_caller]
fn is_half_of(all: usize, held: u64) {
    let half = all as u64 / 2;
    assert!((half - 10..=half).contains(&held), "{held} of {all}");
}

/// How often something was refused, which is for one reason only.
#[track_caller]
fn refused(said: &str) -> u64 {
    let lines: Vec<_> = said.lines().filter(|line| line.starts_with("refused")).collect();
    let [line] = lines[..] else { panic!("{said}") };
    let words: Vec<_> = line.split(' ').collect();
    assert_eq!(words[2], "EMFILE", "{said}");
    words[1].parse().unwrap()
}

/// The one line of the log that says who has used up what.
#[track_caller]
fn line(daemon: &mut Daemon) -> String {
    let log = daemon.log();
    let lines: Vec<_> = log.lines().filter(|line| line.contains("has used up its part")).collect();
    let [line] = lines[..] else { panic!("{log}") };
    line.to_owned()
}

fn has_pressure() -> bool {
    let there = fs::read("/proc/pressure/cpu").is_ok();
    if !there {
        machine::not_on_this_kernel("pressure stall information");
    }
    there
}

#[test]
fn nested_pid_namespaces_share_one_account_of_pressure_files() {
    if !has_pressure() {
        return;
    }
    let mut daemon = daemon();
    let cgroup = Cgroup::new("hoarder", Limits::default());
    let file = daemon.file("proc/pressure/cpu").display().to_string();
    let (hoarder, said) = hoard(&cgroup, &format!("60 128 {file}"));
    is_half_of(TENTH, number(&said, "opened"));
    assert!(refused(&said) >= 58, "{said}");
    others_do_not_notice(&daemon);
    // Others can set triggers too.
    let other = Cgroup::new("other", Limits::default());
    let trigger = machine::program("pressure_trigger").display().to_string();
    let script = format!("{trigger} {file} 'some 150000 2000000' 1");
    let output = run(&mut other.script(&script));
    assert!(output.stdout.starts_with("armed\n"), "{output:?}");
    let line = line(&mut daemon);
    assert!(line.contains("the container of pid namespace"), "{line}");
    drop(hoarder);
    let count = TENTH / 2 - 10;
    is_free_again(&cgroup, &format!("1 {count} {file}"), count);
}

#[test]
fn a_user_of_the_host_has_one_account_for_all_its_namespaces() {
    if !has_pressure() {
        return;
    }
    let mode = fs::metadata("/proc/pressure/cpu").unwrap().permissions().mode();
    if mode & 0o2 == 0 {
        return machine::not_on_this_kernel("triggers on pressure for all users");
    }
    let mut daemon = daemon();
    let cgroup = Cgroup::new("hoarder", Limits::default());
    let program = machine::program("hoarder").display().to_string();
    let file = daemon.file("proc/pressure/cpu").display().to_string();
    // No pid namespace around it: each one that it makes is an outermost one.
    let dirs: Vec<_> = cgroup.dirs().map(|dir| dir.display().to_string()).collect();
    let script = format!(
        "for d in {}; do echo 0 >$d/cgroup.procs || exit 99; done; exec {program} 60 128 {file} 4711",
        dirs.join(" ")
    );
    let mut hoarder = start(quiet("sh").args(["-c", &script]));
    hoarder.wait_for("\n", machine::patience(60));
    if hoarder.printed().0.starts_with("clone: ") {
        return machine::not_on_this_kernel("user namespaces of unprivileged users");
    }
    hoarder.wait_for("done\n", machine::patience(20));
    let said = hoarder.printed().0;
    is_half_of(TENTH, number(&said, "opened"));
    assert!(refused(&said) >= 58, "{said}");
    others_do_not_notice(&daemon);
    let line = line(&mut daemon);
    assert!(line.contains("user 4711 "), "{line}");
}

#[test]
fn namespaces_that_only_read_do_not_use_up_the_descriptors() {
    let mut daemon = daemon();
    let cgroup = Cgroup::new("hoarder", Limits::default());
    let file = daemon.file("proc/meminfo").display().to_string();
    let (hoarder, said) = hoard(&cgroup, &format!("300 0 {file}"));
    let opened = number(&said, "opened");
    is_half_of(TENTH, opened);
    assert_eq!(opened + refused(&said), 300, "{said}");
    others_do_not_notice(&daemon);
    let line = line(&mut daemon);
    assert!(line.contains("pid namespaces"), "{line}");
    drop(hoarder);
    is_free_again(&cgroup, &format!("50 0 {file}"), 50);
}

/// Has two containers read with the same thread id, one at once after the other.
#[track_caller]
fn read_with_the_same_id(how: &str) {
    let daemon = Daemon::start();
    let tries = 2000 / machine::slowness().min(20);
    let limits = |memory| Limits { memory: Some(memory), ..Limits::default() };
    let (first, second) =
        (Cgroup::new("first", limits(64 << 20)), Cgroup::new("second", limits(96 << 20)));
    let mut same = quiet(machine::program("same_tid").to_str().unwrap());
    same.args([how, &tries.to_string()]).arg(daemon.file("proc/meminfo"));
    same.args([(64 << 10).to_string(), (96 << 10).to_string()]);
    for (first, second) in first.dirs().zip(second.dirs()) {
        same.args([first, second]);
    }
    let output = start(&mut same).finish(machine::patience(120));
    if output.stdout.starts_with("clone3: ") {
        return machine::not_on_this_kernel("a thread id of one's choice (clone3 with set_tid)");
    }
    assert_eq!(output.stdout, format!("tries={tries} right={tries} other=0 failed=0\n"), "{how}");
}

#[test]
fn the_thread_id_of_another_container_shows_nothing_of_it() {
    read_with_the_same_id("namespaces");
}

#[test]
fn the_thread_id_of_another_cgroup_of_the_host_shows_nothing_of_it() {
    read_with_the_same_id("host");
}
