//! Sandboxes in a container go on to mount a procfs and a sysfs of their own, and containers in it
//! show their own bounds.

use std::fs;

use crate::harness::cgroup;
use crate::harness::command::start;
use crate::harness::daemon::{Daemon, Place};
use crate::harness::machine;
use crate::harness::text::kb;

use super::container::{Container, FRESH, MEMORY_KB, Unshared, mounts_of, ok};

/// What bubblewrap and rootless engines do.
const NESTED: &str = "unshare -Urpfm --mount-proc true && \
                      unshare -Urmn mount -t sysfs -o ro sysfs /sys && echo nested";

#[track_caller]
fn nests(container: &Container) {
    let daemon = Daemon::start();
    assert_eq!(container.exec(NESTED).ok(), "nested\n");
    for _ in 0..2 {
        ok(&daemon, "attach", container.pid());
        assert_eq!(container.exec(NESTED).ok(), "nested\n", "{}", container.mounts());
        assert_eq!(kb(&container.exec("cat /proc/meminfo").ok(), "MemTotal"), MEMORY_KB);
    }
    let kept = |line: &&str| line.contains(" /dev/.ambit/");
    assert_eq!(container.mounts().lines().filter(kept).count(), 2, "{}", container.mounts());
    ok(&daemon, "detach", container.pid());
    assert_eq!(container.exec(NESTED).ok(), "nested\n");
    assert!(!container.mounts().contains("/dev/.ambit"), "{}", container.mounts());
}

#[test]
fn sandboxes_in_a_container_of_runc() {
    nests(&Container::oci("runc", false));
}

#[test]
fn sandboxes_in_a_container_with_a_user_namespace() {
    nests(&Container::oci("crun", true));
}

#[test]
fn fully_visible_mounts_are_skipped_if_that_is_configured() {
    let daemon = Daemon::start_at(Place::intercepting("[attach]\nunmasked = \"skip\"\n"));
    let container = Container::oci("runc", false);
    let before = container.mounts();
    let said = ok(&daemon, "attach", container.pid());
    assert!(said.contains("its /proc is fully visible (attach.unmasked = \"skip\")"), "{said}");
    assert_eq!(container.mounts(), before);
    assert_eq!(container.exec(NESTED).ok(), "nested\n");
}

/// Where an engine has masked a file, nested sandboxes fail already, and nothing is kept.
#[test]
fn nothing_is_kept_beside_what_is_masked() {
    let daemon = Daemon::start();
    let setup = format!(
        "{FRESH}; mount -t tmpfs x /proc/scsi || mount -t tmpfs x /proc/irq; \
         mount -t tmpfs x /sys/kernel"
    );
    let container = Unshared::start("beside", &setup);
    ok(&daemon, "attach", container.pid);
    assert!(!mounts_of(container.pid).contains("/dev/.ambit"), "{}", mounts_of(container.pid));
}

/// Without a place for a visible copy, such a container is left as it is.
#[test]
fn a_visible_proc_without_a_tmpfs_for_dev_is_left_alone() {
    let daemon = Daemon::start();
    let setup = format!("{FRESH}; mount -t ramfs dev /dev");
    let container = Unshared::start("nodev", &setup);
    let said = ok(&daemon, "attach", container.pid);
    assert!(said.contains("a copy of it cannot be kept in /dev: it is not a tmpfs"), "{said}");
    assert!(!mounts_of(container.pid).contains(" /proc/meminfo "), "{said}");
}

#[test]
fn a_container_in_a_container_shows_its_own_bounds() {
    const INNER_KB: u64 = 80 << 10;
    let daemon = Daemon::start();
    let outer = Unshared::start("outer", FRESH);
    let limits = cgroup::Limits { memory: Some(INNER_KB << 10), ..cgroup::Limits::default() };
    let inner = cgroup::Cgroup::new("inner", limits);
    let script = "exec unshare --pid --fork --kill-child --mount --net sh -ec \
                  'mount -t proc proc /proc; mount -t sysfs sysfs /sys; mount -t tmpfs dev /dev; \
                   echo it runs; exec sleep 1003'";
    let mut running = start(&mut outer.command(script));
    running.wait_for("it runs", machine::patience(30));
    // An engine moves the first process of a container. The container sees no control groups.
    let init = process_of("sleep\u{0}1003\u{0}");
    for dir in inner.dirs() {
        fs::write(dir.join("cgroup.procs"), init.to_string()).unwrap();
    }
    ok(&daemon, "attach", outer.pid);
    ok(&daemon, "attach", init);
    let ask = |pid: u32| {
        let mut enter = crate::harness::command::quiet("nsenter");
        enter.args(["--target", &pid.to_string(), "--mount", "--pid", "cat", "/proc/meminfo"]);
        kb(&crate::harness::command::run(&mut enter).ok(), "MemTotal")
    };
    assert_eq!((ask(outer.pid), ask(init)), (MEMORY_KB, INNER_KB));
}

/// The process with this command line.
#[track_caller]
fn process_of(line: &str) -> u32 {
    let until = std::time::Instant::now() + machine::patience(10);
    loop {
        let all = fs::read_dir("/proc").unwrap().flatten();
        let mut pids = all.filter_map(|entry| entry.file_name().to_str()?.parse::<u32>().ok());
        let is_it = |pid: &u32| {
            fs::read_to_string(format!("/proc/{pid}/cmdline")).is_ok_and(|text| text == line)
        };
        if let Some(pid) = pids.find(is_it) {
            return pid;
        }
        assert!(std::time::Instant::now() < until, "no process {line:?}");
    }
}
