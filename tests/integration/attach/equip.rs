//! Containers of engines are equipped while they run, and are as before after detach.

use crate::harness::command::{quiet, run};
use crate::harness::daemon::{Daemon, mounts};
use crate::harness::machine::{self, AMBIT};
use crate::harness::text::{count, cpu_lines, kb};

use super::container::{Container, FRESH, MEMORY_KB, Unshared, ambit, ok};

/// Attaches, asks programs inside, attaches again, detaches.
#[track_caller]
fn equips(container: &Container) {
    let daemon = Daemon::start();
    let (machine, before) = (mounts(), container.mounts());
    let total = || kb(&container.exec("cat /proc/meminfo").ok(), "MemTotal");
    assert_eq!(total(), machine::memory_kb());

    let said = ok(&daemon, "attach", container.pid());
    assert!(said.contains("files covered") && said.lines().count() == 1, "{said}");
    assert!(!said.contains("left alone"), "{said}");
    assert_eq!(total(), MEMORY_KB);
    let free = container.exec("free -k").ok();
    assert!(free.contains(&format!(" {MEMORY_KB} ")), "{free}");
    assert_eq!(cpu_lines(&container.exec("cat /proc/stat").ok()).len(), 1);
    assert_eq!(count(&container.exec("cat /proc/cpuinfo").ok(), "processor"), 1);
    let folders = container.exec("ls -d /sys/devices/system/cpu/cpu[0-9]*").ok();
    assert_eq!(folders.lines().count(), 1, "{folders}");
    container.exec("[ ! -e /proc/pressure ] || cat /proc/pressure/*").ok();

    let after = container.mounts();
    let said = ok(&daemon, "attach", container.pid());
    assert!(said.contains("files covered before") && !said.contains("left alone"), "{said}");
    assert_eq!(container.mounts(), after);
    let status = daemon.place().ambit(&["status"]).ok();
    let row = status.lines().find(|line| line.contains(&format!(" {} ", container.pid())));
    assert!(status.contains("ATTACHED") && row.is_some(), "{status}");

    let said = ok(&daemon, "detach", container.pid());
    assert!(said.contains("files uncovered"), "{said}");
    assert_eq!(container.mounts(), before);
    assert_eq!(total(), machine::memory_kb());
    assert_eq!(mounts(), machine);
    assert_eq!(container.exec("ls /dev/.ambit").status, 2, "a folder is left");
}

#[test]
fn runc_without_options() {
    equips(&Container::oci("runc", false));
}

#[test]
fn runc_with_a_user_namespace() {
    equips(&Container::oci("runc", true));
}

#[test]
fn crun_without_options() {
    equips(&Container::oci("crun", false));
}

#[test]
fn crun_with_a_user_namespace() {
    equips(&Container::oci("crun", true));
}

#[test]
fn lxc_with_an_id_map() {
    equips(&Container::lxc());
}

#[test]
fn containers_are_named_or_all_are_taken() {
    let daemon = Daemon::start();
    let (one, other) = (Container::oci("runc", false), Container::oci("runc", true));
    let said = ambit(&daemon, &["attach", one.id(), other.id()]).ok();
    for container in [&one, &other] {
        assert!(
            said.contains(&format!("{} (process {})", container.id(), container.pid())),
            "{said}"
        );
    }
    let said = ambit(&daemon, &["detach", "--all"]).ok();
    assert_eq!(said.matches("files uncovered").count(), 2, "{said}");
    let said = ambit(&daemon, &["attach", "--all"]).ok();
    assert_eq!(said.matches("files covered").count(), 2, "{said}");
}

/// An engine's own bind is shown as ours, and survives detach.
#[test]
fn detach_leaves_the_binds_of_the_engine() {
    let daemon = Daemon::start();
    let bind = (daemon.file("proc/meminfo").display().to_string(), "/proc/meminfo");
    let container = Container::oci_with("runc", false, &[bind]);
    let before = container.mounts();
    let said = ok(&daemon, "attach", container.pid());
    assert!(said.contains("1 file covered before"), "{said}");
    ok(&daemon, "detach", container.pid());
    assert_eq!(container.mounts(), before);
    assert_eq!(kb(&container.exec("cat /proc/meminfo").ok(), "MemTotal"), MEMORY_KB);
}

#[test]
fn what_a_container_unmounts_stays_so_until_the_next_attach() {
    let daemon = Daemon::start();
    let container = Unshared::start("unmounts", FRESH);
    let total = || kb(&container.exec("cat /proc/meminfo").ok(), "MemTotal");
    ok(&daemon, "attach", container.pid);
    assert_eq!(total(), MEMORY_KB);
    container.exec("umount /proc/meminfo").ok();
    assert_eq!(total(), machine::memory_kb());
    let said = ok(&daemon, "attach", container.pid);
    assert!(said.contains("1 file covered;"), "{said}");
    assert_eq!(total(), MEMORY_KB);
}

#[test]
fn errors_say_what_is_wrong() {
    let daemon = Daemon::start();
    let this = std::process::id().to_string();
    for (words, why) in [
        (&["attach", &this][..], "is in no container"),
        (&["attach", "4194304"], "no container has the name, id or process 4194304"),
        (&["detach", "no-such"], "no container has the name"),
    ] {
        let said = ambit(&daemon, words);
        assert_eq!(said.status, 1, "{said:?}");
        assert!(said.stderr.contains(why) && said.stderr.lines().count() == 1, "{said:?}");
    }
    // Both are bad input.
    for words in [&["attach"][..], &["attach", "--all", "x"]] {
        assert_eq!(ambit(&daemon, words).status, 2, "{words:?}");
    }
    let container = Unshared::start("nodaemon", FRESH);
    let place = daemon.stop();
    drop(place);
    let mut alone = quiet(AMBIT);
    let said = run(alone.args(["attach", &container.pid.to_string()]));
    assert!(said.status == 2 && said.stderr.contains("no ambit daemon answers"), "{said:?}");
}
