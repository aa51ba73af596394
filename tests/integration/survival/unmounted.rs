//! The overlay is unmounted by hand, or a server is killed before it serves.

use std::fs;
use std::os::unix::fs::MetadataExt;
use std::time::{Duration, Instant};

use rustix::mount::{UnmountFlags, unmount};
use rustix::process::{Pid, Signal, kill_process};

use super::{kill_server, number};
use crate::harness::command::{quiet, run, start};
use crate::harness::daemon::{Daemon, Place, mounts, readable_dir};
use crate::harness::machine::{self, AMBIT};
use crate::harness::sandbox;

/// Waits until the file is there and writable, as only the one with triggers is.
pub(super) fn wait_for_triggers(daemon: &Daemon) {
    let file = daemon.file("proc/pressure/memory");
    let until = Instant::now() + machine::patience(20);
    while !fs::metadata(&file).is_ok_and(|found| found.mode() & 0o222 != 0) {
        assert!(Instant::now() < until, "the files do not come back: {:#}", daemon.status());
        std::thread::sleep(Duration::from_millis(20));
    }
}

#[test]
fn an_overlay_that_was_unmounted_is_attached_again() {
    let daemon = Daemon::start();
    let script = "echo ready; until [ -e /srv/stop ]; do sleep 0.1; done; head -1 /proc/meminfo";
    let stop = readable_dir();
    let bind = format!("{}:/srv:ro", stop.path().display());
    let args = ["--memory", "64M", "--bind", &bind];
    let mut container = start(&mut sandbox::command(&daemon, &args, script));
    container.wait_for("ready", machine::patience(20));
    wait_for_triggers(&daemon);
    let server = daemon.server_pid();
    let mount = daemon.place().mount();
    for place in [mount.clone(), mount.join("proc/pressure"), mount.clone()] {
        unmount(&place, UnmountFlags::DETACH).unwrap();
        wait_for_triggers(&daemon);
        assert!(fs::read_to_string(daemon.file("proc/meminfo")).unwrap().starts_with("MemTotal:"));
    }
    let status = daemon.status();
    assert_eq!(status["server_pid"], server, "no server was replaced");
    let restored = &status["mounts_restored"];
    assert!(restored["count"].as_u64() >= Some(3), "{restored}");
    assert!(restored["last"].as_u64() > Some(1_700_000_000), "{restored}");
    let config = daemon.place().config();
    let text = run(quiet(AMBIT).args(["status", "--config"]).arg(&config)).ok();
    assert!(text.contains("were unmounted and mounted again"), "{text}");
    // Asked, it looks at once.
    for word in ["status", "reload"] {
        unmount(&mount, UnmountFlags::DETACH).unwrap();
        run(quiet(AMBIT).args([word, "--config"]).arg(&config)).ok();
        assert!(daemon.file("proc/meminfo").exists(), "after {word}");
    }
    // While the server is gone.
    unmount(&mount, UnmountFlags::DETACH).unwrap();
    kill_server(&daemon);
    wait_for_triggers(&daemon);
    assert_ne!(daemon.server_pid(), server);
    fs::write(stop.path().join("stop"), "").unwrap();
    assert!(container.finish(machine::patience(20)).ok().contains(" 65536 kB"));
}

#[test]
fn a_mount_point_behind_a_symbolic_link_is_mounted_once() {
    let place = Place::new();
    let link = place.runtime().with_file_name("link");
    std::os::unix::fs::symlink(place.mount(), &link).unwrap();
    let text = fs::read_to_string(place.config()).unwrap();
    let by_link = format!("mount = \"{}/at\"", link.display());
    let direct = format!("mount = \"{}\"", place.mount().display());
    fs::write(place.config(), text.replace(&direct, &by_link)).unwrap();
    let daemon = Daemon::start_at(place);
    kill_server(&daemon);
    let at = format!(" {}/at ", daemon.place().mount().display());
    for _ in 0..3 {
        assert_eq!(daemon.status()["mounts_restored"]["count"], 0);
        assert_eq!(mounts().matches(&at).count(), 1, "{}", mounts());
    }
}

#[test]
fn a_containers_own_unmount_is_not_undone() {
    let daemon = Daemon::start();
    let file = daemon.file("proc/uptime");
    let stop = readable_dir();
    let script = format!(
        "mount --bind {} /proc/uptime && umount /proc/uptime && echo ready
         until [ -e {}/stop ]; do sleep 0.1; done; grep -c ' /proc/uptime ' /proc/self/mountinfo",
        file.display(),
        stop.path().display()
    );
    let mut inside = start(quiet("unshare").args(["--mount", "sh", "-c", &script]));
    inside.wait_for("ready", machine::patience(20));
    unmount(daemon.place().mount(), UnmountFlags::DETACH).unwrap();
    wait_for_triggers(&daemon);
    fs::write(stop.path().join("stop"), "").unwrap();
    let output = inside.finish(machine::patience(20));
    assert_eq!(output.stdout, "ready\n0\n", "{}", output.stderr);
}

#[test]
fn a_sandbox_that_is_killed_at_start_ends() {
    for turn in 0..number("AMBIT_SURVIVAL_STARTS", 12) {
        let config = Place::new();
        let mut sandbox = quiet(AMBIT);
        sandbox.args(["run", "--config"]).arg(config.config()).args(["--", "true"]);
        let sandbox = start(&mut sandbox);
        std::thread::sleep(Duration::from_millis(turn * 7 % 90));
        sandbox.signal(Signal::KILL);
        // A process in state D does not end.
        sandbox.finish(machine::patience(20));
    }
}

#[test]
fn a_server_that_is_killed_at_start_ends() {
    for turn in 0..number("AMBIT_SURVIVAL_STARTS", 8) {
        let place = Place::new();
        let mut keeper = start(&mut place.serve());
        let children = format!("/proc/{0}/task/{0}/children", keeper.pid());
        let until = Instant::now() + machine::patience(20);
        let server = loop {
            assert!(Instant::now() < until && !keeper.ended(), "no server is started");
            let text = fs::read_to_string(&children).unwrap_or_default();
            let first = text.split(' ').next().and_then(|pid| pid.parse::<i32>().ok());
            if let Some(pid) = first
                && place.is_mounted()
            {
                break Pid::from_raw(pid).unwrap();
            }
        };
        std::thread::sleep(Duration::from_millis(turn * 3 % 20));
        kill_process(server, Signal::KILL).unwrap();
        // The keeper waits for it, which succeeds if it does not stay in state D.
        while fs::exists(format!("/proc/{}", server.as_raw_nonzero())).unwrap() {
            assert!(Instant::now() < until, "the server does not end: {:?}", keeper.printed());
            std::thread::sleep(Duration::from_millis(10));
        }
        if !keeper.ended() {
            keeper.signal(Signal::TERM);
        }
        keeper.finish(machine::patience(20));
        Daemon::start_at(place).stop().0.ok();
    }
}
