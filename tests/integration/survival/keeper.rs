//! The keeper dies.

use std::fs;
use std::path::Path;
use std::time::{Duration, Instant};

use rustix::process::{Pid, Signal, kill_process};

use crate::harness::daemon::{Daemon, Place};
use crate::harness::{command, machine};

/// A daemon below a stand-in for a service manager, which has a descriptor store and starts it
/// again.
pub(super) fn managed(place: Place) -> Daemon {
    let store = concat!(env!("CARGO_MANIFEST_DIR"), "/tests/programs/fd_store.py");
    let mut serve = command::quiet(store);
    serve.arg(machine::AMBIT).arg("serve").arg("--config").arg(place.config());
    Daemon::start_below(place, &mut serve)
}

/// The same with standard error at a path, which has a reader whenever the keeper starts.
pub(super) fn managed_with_log(place: Place, log: &Path) -> Daemon {
    let store = concat!(env!("CARGO_MANIFEST_DIR"), "/tests/programs/fd_store.py");
    let mut serve = command::quiet(store);
    serve.args(["sh", "-c", "exec \"$0\" serve --config \"$1\" 2>\"$2\"", machine::AMBIT]);
    serve.arg(place.config()).arg(log);
    Daemon::start_below(place, &mut serve)
}

/// The keeper of such a daemon.
pub(super) fn pid(daemon: &Daemon) -> i32 {
    i32::try_from(daemon.status()["pid"].as_i64().unwrap()).unwrap()
}

/// Kills its keeper, and waits for the next one.
pub(super) fn kill(daemon: &Daemon) {
    let keeper = pid(daemon);
    kill_process(Pid::from_raw(keeper).unwrap(), Signal::KILL).unwrap();
    let until = Instant::now() + machine::patience(20);
    while daemon.try_status().is_none_or(|status| status["pid"] == keeper) {
        assert!(Instant::now() < until, "no keeper comes back");
        std::thread::sleep(Duration::from_millis(20));
    }
}

/// Ends it, with everything it holds.
pub(super) fn release(daemon: Daemon) {
    let mut stop = command::quiet(machine::AMBIT);
    command::run(stop.args(["stop", "--release", "--config"]).arg(daemon.place().config())).ok();
    assert_eq!(daemon.ended(), "unmounted");
}

#[test]
fn a_server_that_lost_its_keeper_serves_until_it_is_stopped() {
    for end in ["stop", "signal"] {
        let daemon = Daemon::start();
        let (server, place) = (daemon.server_pid(), daemon.lose_keeper());
        let ambit = |words: &[&str]| {
            let mut ambit = command::quiet(machine::AMBIT);
            command::run(ambit.args(words).arg("--config").arg(place.config()))
        };
        let until = Instant::now() + machine::patience(10);
        // It notices in a moment.
        while !ambit(&["status", "--json"]).ok().contains(&format!("\"pid\": {server}")) {
            assert!(Instant::now() < until, "it does not know that it is alone");
            std::thread::sleep(Duration::from_millis(20));
        }
        assert!(
            fs::read_to_string(place.mount().join("proc/meminfo")).unwrap().contains("MemTotal")
        );
        let refused = ambit(&["reload", "--exec", machine::AMBIT]);
        assert!(
            refused.status == 2 && refused.stderr.contains("the keeper has ended"),
            "{refused:?}"
        );
        let pid = Pid::from_raw(server.cast_signed()).unwrap();
        match end {
            "stop" => drop(ambit(&["stop"]).ok()),
            _ => kill_process(pid, Signal::TERM).unwrap(),
        }
        // A zombie has no command line.
        let line = format!("/proc/{server}/cmdline");
        while fs::read(&line).is_ok_and(|line| !line.is_empty()) {
            assert!(Instant::now() < until, "it does not end");
            std::thread::sleep(Duration::from_millis(20));
        }
        assert!(!place.is_mounted() && !place.runtime().join("control.sock").exists());
    }
}
