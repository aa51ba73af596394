//! A FUSE connection that is aborted: the daemon mounts its files again, and names the containers
//! with dead files and the remedy.

use std::fs;
use std::time::{Duration, Instant};

use rustix::mount::{UnmountFlags, unmount};
use rustix::process::Signal;

use crate::harness::command::{quiet, run, start};
use crate::harness::daemon::Daemon;
use crate::harness::machine::{self, AMBIT};
use crate::harness::sandbox;

#[test]
fn dead_files_are_reported_and_the_overlay_is_mounted_again() {
    let daemon = Daemon::start();
    let script = "echo ready; while :; do sleep 0.1; done";
    let mut running = start(&mut sandbox::command(&daemon, &[], script));
    running.wait_for("ready", machine::patience(20));
    let server = daemon.server_pid();

    // Ends the connection wherever it is bound, and fails, because other files lie upon these.
    let _ = unmount(daemon.place().mount(), UnmountFlags::FORCE);
    let until = Instant::now() + machine::patience(30);
    while !fs::read_to_string(daemon.file("proc/meminfo")).is_ok_and(|text| !text.is_empty()) {
        assert!(Instant::now() < until, "the files do not come back: {}", daemon.status());
        std::thread::sleep(Duration::from_millis(50));
    }
    assert_ne!(daemon.server_pid(), server);

    let files_of = |status: &serde_json::Value| {
        let all = status["dead"].as_array().unwrap().iter();
        all.cloned().collect::<Vec<_>>()
    };
    let inside = files_of(&daemon.status()).into_iter().find(|one| one["pid"].is_u64());
    let dead = inside.unwrap_or_else(|| panic!("no dead files in {:#}", daemon.status()));
    let paths = dead["paths"].as_array().unwrap();
    assert!(paths.iter().any(|path| path == "/proc/meminfo"), "{dead:#}");
    let config = daemon.place().config();
    let remedy = format!("ambit attach {}", dead["pid"]);
    // A connection that does not answer at once, on a slow machine, is not called dead.
    for arguments in [&["status", "--config", config.to_str().unwrap()][..], &["check"]] {
        loop {
            let text = run(quiet(AMBIT).args(arguments)).ok();
            if text.contains("has dead files") && text.contains(&remedy) {
                break;
            }
            assert!(Instant::now() < until, "{text}");
        }
    }

    running.signal_group(Signal::KILL);
    running.finish(machine::patience(20));
    while files_of(&daemon.status()).iter().any(|one| one["pid"] == dead["pid"]) {
        assert!(Instant::now() < until, "{}", daemon.status());
        std::thread::sleep(Duration::from_millis(100));
    }
}
