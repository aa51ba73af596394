//! Containers that attack the watcher, and what it costs while they do.

use std::fs;
use std::io::Write;
use std::path::PathBuf;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::{Duration, Instant};

use crate::harness::cgroup::{Cgroup, Limits};
use crate::harness::command;
use crate::harness::daemon::Daemon;
use crate::harness::machine;

use super::auto::{daemon, docker, is_right, is_untouched, pass, runc, wait_for};
use super::container::Container;

/// A container that makes control groups all the time does not keep others from being found.
#[test]
fn a_flood_of_cgroups_in_a_container_does_not_delay_others() {
    const FLOOD: usize = 20_000;
    let mut daemon = daemon("");
    let outer = Cgroup::new("docker", Limits::default());
    let busy = outer.child("busy", Limits::default());
    let dir = busy.dirs().next().unwrap().to_owned();
    for _ in 0..FLOOD {
        fs::create_dir(dir.join("x")).unwrap();
        fs::remove_dir(dir.join("x")).unwrap();
    }
    pass(&mut daemon);
    let status = daemon.status();
    assert_eq!(status["auto"]["failed"], 0, "{}", status["auto"]);
}

/// Names that engines give, made, renamed and removed at once by several processes.
#[test]
fn names_of_engines_that_change_all_the_time_do_not_delay_others() {
    let mut daemon = daemon("");
    let docker = docker();
    let busy = docker.child("busy", Limits::default());
    let dirs: Vec<PathBuf> = busy.dirs().map(PathBuf::from).collect();
    let before = watches(&daemon);
    let is_over = AtomicBool::new(false);
    std::thread::scope(|scope| {
        for writer in 0..3 {
            let (dirs, is_over) = (&dirs, &is_over);
            scope.spawn(move || {
                for number in 0_u32.. {
                    if is_over.load(Ordering::Relaxed) {
                        return;
                    }
                    for dir in dirs {
                        // Two writers use the same names.
                        let at = |name: &str| dir.join(format!("{name}{}-{number}", writer / 2));
                        let below = at("lxc.payload.").join("docker");
                        let _ = fs::create_dir_all(below.join("0f".repeat(32)));
                        // Only v1 renames, and the other writer may have removed it.
                        let _ = fs::rename(at("lxc.payload."), at("docker-"));
                        for name in ["lxc.payload.", "docker-"] {
                            let below = at(name).join("docker");
                            let _ = fs::remove_dir(below.join("0f".repeat(32)));
                            let _ = fs::remove_dir(&below);
                            let _ = fs::remove_dir(at(name));
                        }
                    }
                }
            });
        }
        for _ in 0..3 {
            pass(&mut daemon);
        }
        is_over.store(true, Ordering::Relaxed);
    });
    let status = daemon.status();
    assert_eq!(status["auto"]["failed"], 0, "{}", status["auto"]);
    let after = watches(&daemon);
    assert!(after <= before + 2 * 512 + 64, "{before} watches became {after}");
    for dir in dirs {
        remove_below(&dir);
    }
}

/// Removes what two writers left, each of which thought that the other had removed it.
fn remove_below(dir: &std::path::Path) {
    for entry in fs::read_dir(dir).unwrap().flatten() {
        if entry.file_type().is_ok_and(|kind| kind.is_dir()) {
            remove_below(&entry.path());
            let _ = fs::remove_dir(entry.path());
        }
    }
}

/// How many folders the server watches.
fn watches(daemon: &Daemon) -> usize {
    let files = fs::read_dir(format!("/proc/{}/fdinfo", daemon.server_pid())).unwrap().flatten();
    let texts = files.filter_map(|file| fs::read_to_string(file.path()).ok());
    texts.map(|text| text.matches("inotify wd:").count()).sum()
}

#[test]
fn a_frozen_container_is_attached() {
    let _docker = docker();
    let container = runc();
    container.tell("pause");
    let mut daemon = daemon("");
    wait_for(&mut daemon, container.pid());
    container.tell("resume");
    is_right(&container);
}

/// It has namespaces of its own, and still the root of the machine.
#[test]
fn a_first_process_that_never_executes_a_program_of_its_own_delays_no_others() {
    let mut daemon = daemon("");
    let docker = docker();
    let never: Vec<_> =
        (0..20).map(|number| docker.child(&format!("never-{number}"), Limits::default())).collect();
    let script = "exec unshare --mount --net sh -c 'echo it runs; exec sleep 1000'";
    let mut running: Vec<_> =
        never.iter().map(|one| command::start(&mut one.script(script))).collect();
    for one in &mut running {
        one.wait_for("it runs", machine::patience(20));
    }
    pass(&mut daemon);
    for one in &never {
        is_untouched(one.init().unsigned_abs());
    }
}

/// What a thread has used.
#[derive(Debug, Clone, Copy)]
struct Cost {
    wakeups: u64,
    /// In hundredths of a second.
    time: u64,
    /// Of all processes.
    forks: u64,
}

/// What the watcher has used.
#[track_caller]
fn cost(daemon: &Daemon) -> Cost {
    let tasks = fs::read_dir(format!("/proc/{}/task", daemon.server_pid())).unwrap().flatten();
    let read = |path: PathBuf| fs::read_to_string(path).unwrap_or_default();
    let mut tasks = tasks.map(|task| task.path());
    let task = tasks.find(|task| read(task.join("comm")).trim() == "watcher").unwrap();
    let after = |text: String, word: &str| {
        let line = text.lines().find_map(|line| line.strip_prefix(word).map(str::to_owned));
        line.and_then(|rest| rest.trim().parse::<u64>().ok()).unwrap()
    };
    let stat = read(task.join("stat"));
    let mut fields = stat.rsplit(") ").next().unwrap().split(' ').skip(11);
    let mut ticks = || fields.next().unwrap().parse::<u64>().unwrap();
    Cost {
        wakeups: after(read(task.join("status")), "voluntary_ctxt_switches:"),
        time: ticks() + ticks(),
        forks: after(read("/proc/stat".into()), "processes "),
    }
}

/// Measures a second that is as it should be. Other programs of the machine may make cgroups in
/// some.
#[track_caller]
fn cost_of_a_second(daemon: &Daemon, what: &str, is_right: impl Fn(&Cost) -> bool) {
    for left in (0..20).rev() {
        let (before, begin) = (cost(daemon), Instant::now());
        std::thread::sleep(Duration::from_secs(1));
        let (after, elapsed) = (cost(daemon), begin.elapsed());
        let used = Cost {
            wakeups: after.wakeups - before.wakeups,
            time: after.time - before.time,
            forks: after.forks - before.forks,
        };
        let share = used.time as f64 / elapsed.as_secs_f64();
        if is_right(&used) && share <= 2.0 {
            let _ = writeln!(
                std::io::stderr(),
                "\n    {what}: {} forks in {elapsed:.1?}, the watcher wakes {} times, {share:.1} % of a \
                 processor",
                used.forks,
                used.wakeups
            );
            return;
        }
        assert!(left > 0, "{what}: {used:?} in {elapsed:.1?}");
    }
}

#[test]
fn forks_do_not_wake_the_watcher() {
    let mut daemon = daemon("");
    let _docker = docker();
    pass(&mut daemon);
    cost_of_a_second(&daemon, "idle", |used| used.wakeups == 0);
    let script = "for n in 1 2 3 4; do while :; do ( : ); done & done; exec sleep 1000";
    let container = Container::oci_in("runc", "docker", script);
    wait_for(&mut daemon, container.pid());
    cost_of_a_second(&daemon, "a container that forks", |used| used.wakeups * 100 <= used.forks);
    is_right(&container);
}
