//! Files of servers that have died are replaced, those of a living lxcfs only if that is asked for.

use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

use rustix::mount::{UnmountFlags, unmount};
use rustix::process::Signal;
use tempfile::TempDir;

use crate::harness::command::{Running, quiet, start};
use crate::harness::daemon::{Daemon, mounts, readable_dir};
use crate::harness::machine;
use crate::harness::text::kb;

use super::container::{FRESH, MEMORY_KB, Unshared, ambit, mounts_of, ok};

/// Debian's lxcfs.
pub(super) struct Lxcfs {
    running: Running,
    at: PathBuf,
    _dir: TempDir,
}

impl Lxcfs {
    #[track_caller]
    pub(super) fn start() -> Self {
        machine::needs(&["lxcfs"]);
        let dir = readable_dir();
        let at = dir.path().join("mnt");
        std::fs::create_dir(&at).unwrap();
        let mut lxcfs = quiet("lxcfs");
        let running = start(lxcfs.arg("-p").arg(dir.path().join("pid")).arg(&at));
        let until = Instant::now() + machine::patience(10);
        while !at.join("proc/meminfo").exists() {
            assert!(Instant::now() < until, "lxcfs does not serve");
            std::thread::sleep(Duration::from_millis(20));
        }
        Self { running, at, _dir: dir }
    }

    pub(super) fn mount(&self) -> &Path {
        &self.at
    }

    pub(super) fn signal(&self, signal: Signal) {
        self.running.signal(signal);
    }
}

impl Drop for Lxcfs {
    fn drop(&mut self) {
        self.running.signal(Signal::KILL);
        let _ = unmount(&self.at, UnmountFlags::DETACH);
    }
}

#[track_caller]
fn total(container: &Unshared) -> u64 {
    kb(&container.exec("cat /proc/meminfo").ok(), "MemTotal")
}

#[test]
fn files_of_lxcfs_are_covered_on_request_and_replaced_when_they_are_dead() {
    let daemon = Daemon::start();
    let lxcfs = Lxcfs::start();
    let bind = |file: &str| format!("mount --bind {}/{file} /{file}", lxcfs.mount().display());
    let setup = format!("{FRESH}; {}; {}", bind("proc/meminfo"), bind("proc/uptime"));
    let container = Unshared::start("lxcfs", &setup);
    let before = mounts_of(container.pid);
    let pid = container.pid.to_string();

    let said = ok(&daemon, "attach", container.pid);
    let left = "/proc/meminfo and 1 more left alone: fuse.lxcfs serves it; --replace covers that";
    assert!(said.contains(left), "{said}");

    // One that does not answer may be alive, and delays nothing else.
    ok(&daemon, "detach", container.pid);
    lxcfs.signal(Signal::STOP);
    let said = ok(&daemon, "attach", container.pid);
    lxcfs.signal(Signal::CONT);
    assert!(said.contains("fuse.lxcfs serves it and does not answer"), "{said}");
    assert!(said.contains("files covered"), "{said}");

    let said = ambit(&daemon, &["attach", "--replace", &pid]).ok();
    assert!(said.contains("2 files covered;") && !said.contains("left alone"), "{said}");
    assert_eq!(total(&container), MEMORY_KB);
    ok(&daemon, "detach", container.pid);
    assert_eq!(mounts_of(container.pid), before);

    lxcfs.signal(Signal::KILL);
    let until = Instant::now() + machine::patience(10);
    while container.exec("cat /proc/meminfo").status == 0 {
        assert!(Instant::now() < until, "lxcfs does not die");
    }
    let dead = daemon.place().ambit(&["status"]).ok();
    assert!(dead.contains(&format!("`ambit attach {pid}` replaces them")), "{dead}");
    let said = ok(&daemon, "attach", container.pid);
    assert!(said.contains("2 files replaced"), "{said}");
    assert_eq!(total(&container), MEMORY_KB);
    let all = mounts_of(container.pid);
    let is_dead = |line: &str| line.contains(" /proc/") && line.contains("fuse.lxcfs");
    assert!(!all.lines().any(is_dead), "{all}");
}

#[test]
fn files_of_a_daemon_whose_connection_was_aborted_are_replaced() {
    let daemon = Daemon::start();
    let container = Unshared::start("aborted", FRESH);
    ok(&daemon, "attach", container.pid);
    let server = daemon.server_pid();
    // Ends the connection wherever it is bound, and fails, because other files lie upon these.
    let _ = unmount(daemon.place().mount(), UnmountFlags::FORCE);
    let until = Instant::now() + machine::patience(30);
    while daemon.try_status().is_none_or(|status| status["server_pid"] == server) {
        assert!(Instant::now() < until, "no other server");
        std::thread::sleep(Duration::from_millis(50));
    }
    assert_ne!(container.exec("cat /proc/meminfo").status, 0);
    let said = ok(&daemon, "attach", container.pid);
    assert!(said.contains("files replaced") && !said.contains("left alone"), "{said}");
    assert_eq!(total(&container), MEMORY_KB);
    let status = daemon.status();
    let is_here = |one: &serde_json::Value| one["pid"] == container.pid;
    assert!(!status["dead"].as_array().unwrap().iter().any(is_here), "{status:#}");
    assert!(mounts().contains(" fuse.ambit "));
}

/// Whatever it calls its filesystems: a thread that waits for one cannot be killed.
#[test]
fn a_filesystem_that_does_not_answer_does_not_keep_commands_from_ending() {
    let daemon = Daemon::start();
    let program = concat!(env!("CARGO_MANIFEST_DIR"), "/tests/programs/silent_fuse.py");
    let setup = format!("{FRESH}; mount -o remount,dev /dev; mknod /dev/fuse c 10 229");
    let last = format!("python3 {program} /proc/meminfo");
    let container = Unshared::start_with("silent", "private", &setup, &last);
    for words in [&["status"][..], &["check", &container.pid.to_string()]] {
        let mut command = quiet(machine::AMBIT);
        command.args(words).arg("--config").arg(daemon.place().config());
        let said = start(&mut command).finish(machine::patience(30));
        assert!(!said.stdout.is_empty() && said.stderr.is_empty(), "{said:?}");
    }
    let said = ok(&daemon, "attach", container.pid);
    assert!(said.contains("fuse.ambit serves it and does not answer"), "{said}");
    assert!(said.contains("files covered"), "{said}");
}
