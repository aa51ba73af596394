//! `/proc/meminfo` of an attached container is kept by the kernel for the length of a lease.
//!
//! Numbers of a container are not kept in its first two seconds, so each test waits for that.

use std::fs::{self, File};
use std::os::unix::fs::{FileExt, MetadataExt};
use std::path::{Path, PathBuf};
use std::process::Command;
use std::time::{Duration, Instant};

use rustix::fs::Advice;
use rustix::mount::{UnmountFlags, unmount};
use rustix::process::{Pid, Signal, kill_process, test_kill_process};

use crate::harness::cgroup::Limits;
use crate::harness::command::{quiet, run, start};
use crate::harness::daemon::{Daemon, Place};
use crate::harness::text::{kb, value};
use crate::harness::{machine, sandbox};
use crate::survival::resends;

use super::container::{FRESH, MEMORY_KB, Unshared, mounts_of, ok};

/// The size of every file that is not on lease.
const SHARED: u64 = 4096;

/// A daemon with leases of this many milliseconds.
pub(super) fn daemon(lease: u64) -> Daemon {
    let place = Place::new();
    let text = fs::read_to_string(place.config()).unwrap();
    let text = text.replace("[overlay]\n", &format!("[overlay]\nlease = {lease}\n"));
    fs::write(place.config(), text).unwrap();
    Daemon::start_at(place)
}

fn meminfo(container: &Unshared) -> PathBuf {
    PathBuf::from(format!("/proc/{}/root/proc/meminfo", container.pid))
}

/// Attaches a container that is two seconds old, and returns its file.
#[track_caller]
pub(super) fn attach(daemon: &Daemon, container: &Unshared) -> PathBuf {
    std::thread::sleep(Duration::from_millis(2100));
    ok(daemon, "attach", container.pid);
    let file = meminfo(container);
    assert_ne!(fs::metadata(&file).unwrap().size(), SHARED, "it is on lease");
    file
}

#[track_caller]
pub(super) fn total(file: &Path) -> u64 {
    kb(&fs::read_to_string(file).unwrap(), "MemTotal")
}

/// The name by which attach finds the file of a container.
pub(super) fn name(daemon: &Daemon, container: &Unshared) -> PathBuf {
    let mounts = mounts_of(container.pid);
    let line = mounts.lines().find(|line| line.contains(" /proc/meminfo ")).unwrap();
    daemon.file(&format!(".leases{}", line.split(' ').nth(3).unwrap()))
}

/// The program `leased` with this file.
pub(super) fn leased(word: &str, file: &Path, words: &[&str]) -> Command {
    let mut leased = quiet(machine::program("leased").to_str().unwrap());
    leased.arg(word).arg(file).args(words);
    leased
}

#[test]
fn every_line_is_whole_however_it_is_read_while_limits_change() {
    if !resends() {
        return;
    }
    let daemon = daemon(20);
    let [container, other] = ["pieces", "other"].map(|name| Unshared::start(name, FRESH));
    let file = attach(&daemon, &container);
    let size = fs::metadata(&file).unwrap().size();
    // What a host process reads is the container's too.
    assert_eq!(total(&file), MEMORY_KB);
    // A container that has the whole overlay finds its own file by its name, as a hook does, and no
    // other one.
    ok(&daemon, "attach", other.pid);
    let [named, others] = [&container, &other].map(|container| name(&daemon, container));
    let found = container.exec(&format!("cat {}", named.display())).ok();
    assert_eq!(kb(&found, "MemTotal"), MEMORY_KB);
    let refused = container.exec(&format!("cat {}", others.display()));
    assert!(refused.stderr.contains("No such file"), "{refused:?}");
    assert_eq!([&named, &others, &file].map(|file| total(file)), [MEMORY_KB; 3]);
    let kinds = run(&mut leased("kinds", &file, &[])).ok();
    assert_eq!(value(&kinds, "size"), size.to_string());

    // A byte at a time, as some shells read, and the 1 KiB of musl.
    let readers = ["1", "1024"].map(|piece| start(&mut leased("pieces", &file, &[piece, "1500"])));
    let mut is_small = false;
    let until = Instant::now() + Duration::from_millis(1300);
    while Instant::now() < until {
        is_small = !is_small;
        let memory = if is_small { MEMORY_KB << 9 } else { MEMORY_KB << 10 };
        container.cgroup().set(Limits { memory: Some(memory), ..Limits::default() });
        std::thread::sleep(Duration::from_micros(500));
    }
    for reader in readers {
        let counts = reader.finish(machine::patience(10)).ok();
        eprintln!("{counts}");
        assert_ne!(value(&counts, "changes"), "0");
    }
    // Every limit is shown in the end, and the size stays.
    for memory in [MEMORY_KB / 2, MEMORY_KB] {
        container.cgroup().set(Limits { memory: Some(memory << 10), ..Limits::default() });
        let until = Instant::now() + machine::patience(5);
        while total(&file) != memory {
            assert!(Instant::now() < until, "{} and not {memory}", total(&file));
        }
        assert_eq!(fs::metadata(&file).unwrap().size(), size);
    }
    ok(&daemon, "detach", container.pid);
    assert_eq!(total(&file), machine::memory_kb());
}

#[test]
fn a_read_is_answered_by_the_next_server_whenever_the_last_one_is_killed() {
    if !resends() {
        return;
    }
    let daemon = daemon(100);
    let container = Unshared::start("killed", FRESH);
    let file = attach(&daemon, &container);
    for drops in [true, false, true, false] {
        let kept = File::open(&file).unwrap();
        let mut text = [0; 8];
        let server = Pid::from_raw(daemon.server_pid().cast_signed()).unwrap();
        kept.read_exact_at(&mut text, 0).unwrap();
        kill_process(server, Signal::STOP).unwrap();
        if drops {
            // The page is gone, the lease is not: READ is not answered.
            rustix::fs::fadvise(&kept, 0, None, Advice::DontNeed).unwrap();
        } else {
            // The lease ends: GETATTR is not answered.
            std::thread::sleep(Duration::from_millis(150));
        }
        let path = file.clone();
        let reader = std::thread::spawn(move || fs::read_to_string(path));
        std::thread::sleep(Duration::from_millis(20));
        kill_process(server, Signal::KILL).unwrap();
        let text = reader.join().unwrap().unwrap();
        assert_eq!(kb(&text, "MemTotal"), MEMORY_KB);
        let until = Instant::now() + machine::patience(10);
        while test_kill_process(server).is_ok() {
            assert!(Instant::now() < until, "the killed server does not end");
            std::thread::sleep(Duration::from_millis(5));
        }
    }
}

#[test]
fn a_connection_that_was_aborted_is_served_anew_and_attached_again() {
    if !resends() {
        return;
    }
    let daemon = daemon(20);
    let container = Unshared::start("aborted", FRESH);
    let file = attach(&daemon, &container);
    let place = daemon.place().mount().join(".leases");
    let _ = unmount(&place, UnmountFlags::FORCE);
    let until = Instant::now() + machine::patience(10);
    while daemon.status()["mounts_restored"]["count"] == 0 {
        assert!(Instant::now() < until, "it is not served anew");
        std::thread::sleep(Duration::from_millis(20));
    }
    assert!(fs::read_to_string(&file).is_err(), "the old file is dead");
    ok(&daemon, "attach", container.pid);
    assert_eq!(total(&file), MEMORY_KB);
    assert_ne!(fs::metadata(&file).unwrap().size(), SHARED, "it is on lease again");
    ok(&daemon, "detach", container.pid);
    assert_eq!(total(&file), machine::memory_kb());
}

#[test]
fn sysinfo_and_the_file_of_a_sandbox_agree_over_the_ends_of_leases() {
    if !resends() {
        return;
    }
    let daemon = daemon(20);
    // Memory is used and freed all the time.
    let script = format!(
        "stat -c size=%s /proc/meminfo
        while :; do head -c 8M /dev/zero | tail -c 1; done >/dev/null & \
        {}/leased agrees /proc/meminfo 1500; agrees=$?; kill $!; exit $agrees",
        sandbox::PROGRAMS
    );
    let said = sandbox::run(&daemon, &["--memory", "160M"], &script).ok();
    assert_ne!(value(&said, "size"), SHARED.to_string());
    eprintln!("{said}");
    assert_ne!(value(&said, "changes"), "0");
}

#[test]
fn without_leases_a_file_is_of_the_shared_tree() {
    let daemon = daemon(0);
    let container = Unshared::start("shared", FRESH);
    ok(&daemon, "attach", container.pid);
    let file = meminfo(&container);
    assert_eq!(fs::metadata(&file).unwrap().size(), SHARED);
    // Only attach may look files on lease up, and there is no other way to them.
    assert!(fs::read_dir(daemon.file(".leases")).unwrap().next().is_none());
}
