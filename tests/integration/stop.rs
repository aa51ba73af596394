//! `ambit stop`, and what there is while no daemon runs.

use std::fs;
use std::time::{Duration, Instant};

use rustix::process::Signal;

use crate::harness::command::{self, Output, Running, start};
use crate::harness::daemon::{Daemon, Place, readable_dir};
use crate::harness::{machine, sandbox};

/// A container that counts its reads until it finds a file; it is told where by its first line.
fn reader(daemon: &Daemon, args: &[&str]) -> (tempfile::TempDir, Running) {
    let stop = readable_dir();
    let bind = format!("{}:/srv:ro", stop.path().display());
    let args = [&["--bind", &bind], args].concat();
    // If sysinfo is reported, its answer shows that the daemon has the listener.
    let script = "busybox uptime >/dev/null; echo ready; while [ ! -e /srv/stop ]; do
                  cat /proc/meminfo >/dev/null && echo read; sleep 0.02; done";
    let mut running = start(&mut sandbox::command(daemon, &args, script));
    running.wait_for("read\n", machine::patience(20));
    (stop, running)
}

#[track_caller]
fn is_refused(output: &Output, mentions: &[&str]) {
    assert_eq!(output.status, 1, "{output:?}");
    assert_eq!(output.stderr.lines().count(), 1, "{output:?}");
    for word in mentions {
        assert!(output.stderr.contains(word), "{word:?} is not in {output:?}");
    }
}

#[test]
fn a_daemon_can_be_started_as_soon_as_stop_returns() {
    let mut place = Place::new();
    for _ in 0..5 {
        let daemon = Daemon::start_at(place);
        let output = daemon.place().ambit(&["stop"]);
        assert_eq!((output.status, &*output.stderr), (0, ""), "{output:?}");
        assert!(!daemon.place().is_mounted() && !daemon.socket("control.sock").exists());
        let next = command::start(&mut daemon.place().serve());
        place = daemon.ended_at();
        // The next daemon can start.
        let until = Instant::now() + machine::patience(10);
        while place.ambit(&["status"]).status != 0 {
            assert!(Instant::now() < until, "the next daemon does not serve");
        }
        place.ambit(&["stop"]).ok();
        next.finish(machine::patience(20)).ok();
    }
}

#[test]
fn a_daemon_that_containers_use_is_stopped_by_force_only() {
    for how in ["--force", "--release"] {
        let daemon = Daemon::start();
        let (_stop, mut container) = reader(&daemon, &["--intercept", "sysinfo"]);
        let server = daemon.server_pid();
        let refused = daemon.place().ambit(&["stop"]);
        is_refused(&refused, &["nothing was changed", "(1)", "ambit stop --force"]);
        let lines: Vec<_> = refused.stdout.lines().collect();
        assert!(lines.len() == 2 && lines.iter().all(|line| line.len() <= 80), "{refused:?}");
        let row: Vec<_> = lines[1].split_whitespace().collect();
        assert!(row[0].starts_with("run-") && row[4] == "yes", "{refused:?}");
        let mounts = fs::read_to_string(format!("/proc/{}/mountinfo", row[1])).unwrap();
        let files = mounts.matches(" fuse.ambit ").count();
        assert!(files > 0 && row[2] == files.to_string(), "{refused:?}\n{mounts}");
        assert_eq!(daemon.server_pid(), server, "it has changed something");
        assert!(!container.ended());
        daemon.place().ambit(&["stop", how]).ok();
        assert_eq!(daemon.ended(), "unmounted");
        container.signal_group(Signal::KILL);
        container.finish(machine::patience(20));
    }
}

#[test]
fn without_a_daemon_stop_says_so() {
    let place = Place::new();
    is_refused(&place.ambit(&["stop"]), &["nothing to stop", "control.sock"]);
    let output = place.ambit(&["stop", "--release"]).ok();
    assert!(output.contains("no daemon runs, and none has left anything"), "{output}");
}

#[test]
fn stop_release_removes_what_a_dead_daemon_left() {
    let place = Daemon::start().kill();
    assert!(place.is_mounted() && place.runtime().join("oci.sock").exists());
    let status = place.ambit(&["status"]);
    assert_eq!(status.status, 2, "{status:?}");
    assert!(status.stderr.contains("ambit stop --release"), "{status:?}");
    is_refused(&place.ambit(&["stop"]), &["no daemon runs", "ambit stop --release"]);
    assert!(place.is_mounted(), "a plain stop has removed it");
    let said = place.ambit(&["stop", "--release"]).ok();
    assert!(said.contains(&format!("the dead mount at {}", place.mount().display())), "{said}");
    for socket in ["control.sock", "oci.sock", "lxc.sock"] {
        assert!(said.contains(socket), "{said}");
    }
    assert!(!place.is_mounted());
    for socket in ["control.sock", "oci.sock", "lxc.sock"] {
        assert!(!place.runtime().join(socket).exists(), "{socket}");
    }
    let daemon = Daemon::start_at(place);
    daemon.place().ambit(&["stop"]).ok();
    assert_eq!(daemon.ended(), "unmounted");
}

#[test]
fn a_stopped_service_is_told_from_a_daemon_that_is_not_there() {
    let place = Place::new();
    let store = concat!(env!("CARGO_MANIFEST_DIR"), "/tests/programs/fd_store.py");
    let mut serve = command::quiet(store);
    serve.args(["--preserve", machine::AMBIT, "serve", "--config"]).arg(place.config());
    let mut daemon = Daemon::start_below(place, &mut serve);
    let (stop, mut container) = reader(&daemon, &["--intercept", "sysinfo"]);
    // A store keeps everything: containers are no reason to refuse.
    daemon.place().ambit(&["stop"]).ok();
    assert!(daemon.place().is_mounted());
    let until = Instant::now() + machine::patience(20);
    while !daemon.log().contains("fd_store: stopped with") {
        assert!(Instant::now() < until, "{}", daemon.log());
        std::thread::sleep(Duration::from_millis(20));
    }
    let status = daemon.place().ambit(&["status"]);
    assert_eq!((status.status, status.stderr.lines().count()), (2, 1), "{status:?}");
    assert!(status.stderr.contains("ambit is stopped"), "{status:?}");
    assert!(!status.stderr.contains("os error"), "{status:?}");
    is_refused(&daemon.place().ambit(&["stop"]), &["ambit is stopped"]);
    is_refused(&daemon.place().ambit(&["stop", "--release"]), &["systemctl clean"]);
    assert!(daemon.place().is_mounted() && !container.ended());
    let reads = container.printed().0.matches("read\n").count();
    daemon.signal(Signal::USR1);
    while container.printed().0.matches("read\n").count() < reads + 2 {
        assert!(Instant::now() < until, "the container's reads do not go on");
        std::thread::sleep(Duration::from_millis(20));
    }
    fs::write(stop.path().join("stop"), "").unwrap();
    container.finish(machine::patience(20)).ok();
    daemon.place().ambit(&["stop", "--release"]).ok();
    daemon.signal(Signal::TERM);
    assert_eq!(daemon.ended(), "unmounted");
}
