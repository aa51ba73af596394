//! The rules of safety: what attach does not touch, and why it says so.

use std::fs;
use std::io::{ErrorKind, Read, Write};
use std::os::unix::net::UnixStream;

use rustix::mount::{MountPropagationFlags, UnmountFlags};
use rustix::process::Signal;

use crate::harness::command::{quiet, start};
use crate::harness::daemon::{Daemon, mounts, readable_dir};
use crate::harness::machine;
use crate::harness::oci::root;
use crate::harness::text::kb;

use super::container::{FRESH, MEMORY_KB, Unshared, ambit, mounts_of, ok};
use super::dead::Lxcfs;

#[test]
fn a_procfs_of_another_pid_namespace_is_left_alone() {
    let daemon = Daemon::start();
    // The machine's own, which the container sees because it has mounted none.
    let container =
        Unshared::start("foreign", "mount -t sysfs sysfs /sys; mount -t tmpfs dev /dev");
    let before = mounts();
    let said = ok(&daemon, "attach", container.pid);
    assert!(said.contains("/proc is that of another pid namespace"), "{said}");
    assert!(!mounts_of(container.pid).contains(" /proc/meminfo "), "{said}");
    assert_eq!(mounts(), before);
    let status = daemon.place().ambit(&["status"]).ok();
    let row = format!("left alone: process {}: ", container.pid);
    assert!(status.contains(&row), "{status}");
}

/// A container that is being made still has mounts in a peer group of the machine's.
#[test]
fn a_mount_that_is_shared_with_the_machine_is_left_alone() {
    let daemon = Daemon::start();
    let root = root();
    let at = |name: &str| root.path().join(name);
    // Only /sys is shared with the container.
    rustix::mount::mount_bind(root.path(), root.path()).unwrap();
    rustix::mount::mount_change(root.path(), MountPropagationFlags::PRIVATE).unwrap();
    rustix::mount::mount("sysfs", at("sys"), "sysfs", rustix::mount::MountFlags::empty(), None)
        .unwrap();
    rustix::mount::mount_change(at("sys"), MountPropagationFlags::SHARED).unwrap();
    let dir = root.path().display();
    let setup = format!(
        "mount --bind /usr {dir}/usr; mount -t proc proc {dir}/proc; mount -t tmpfs dev {dir}/dev"
    );
    {
        let container = Unshared::start_in("shared", "unchanged", &setup, root.path());
        let before = mounts();
        let said = ok(&daemon, "attach", container.pid);
        assert!(said.contains("/sys would appear on the machine too"), "{said}");
        assert_eq!(kb(&container.exec("cat /proc/meminfo").ok(), "MemTotal"), MEMORY_KB);
        assert_eq!(mounts(), before);
    }
    rustix::mount::unmount(root.path(), UnmountFlags::DETACH).unwrap();
}

/// What a container mounts on our folders must not appear in the overlay, which all containers see.
#[test]
fn the_copies_are_private_even_if_the_overlay_is_shared() {
    let daemon = Daemon::start();
    rustix::mount::mount_change(daemon.place().mount(), MountPropagationFlags::SHARED).unwrap();
    let container = Unshared::start("private", FRESH);
    ok(&daemon, "attach", container.pid);
    let before = mounts();
    container.exec("mount -t tmpfs x /sys/devices/system/cpu/cpu0").ok();
    assert_eq!(mounts(), before);
}

#[test]
fn masked_files_and_links_are_left_alone() {
    let daemon = Daemon::start();
    let mask = tempfile::NamedTempFile::new().unwrap();
    let setup = format!(
        "{FRESH}; mount --bind {} /proc/interrupts; mount -t tmpfs x /sys/devices/system/cpu",
        mask.path().display()
    );
    let container = Unshared::start("masked", &setup);
    let said = ok(&daemon, "attach", container.pid);
    assert!(said.contains("left alone: a mount of tmpfs covers it"), "{said}");
    let mounts = mounts_of(container.pid);
    for masked in [" /proc/interrupts ", " /sys/devices/system/cpu "] {
        let lines: Vec<_> = mounts.lines().filter(|line| line.contains(masked)).collect();
        assert!(matches!(&lines[..], [one] if !one.contains("fuse.ambit")), "{lines:?}");
    }
    assert_eq!(container.exec("cat /proc/interrupts").ok(), "");
    let said = ok(&daemon, "detach", container.pid);
    assert!(said.contains("uncovered"), "{said}");
    assert!(mounts_of(container.pid).contains(" /proc/interrupts "));

    // A link to a procfs.
    let root = root();
    let dir = root.path().display();
    let setup = format!(
        "mount --bind /usr {dir}/usr; rmdir {dir}/proc {dir}/sys; mkdir {dir}/real; \
         mount -t proc proc {dir}/real; ln -s real {dir}/proc; mount -t tmpfs dev {dir}/dev"
    );
    let container = Unshared::start_in("linked", "private", &setup, root.path());
    let said = ok(&daemon, "attach", container.pid);
    assert!(said.contains("/proc is not a mounted proc"), "{said}");
    assert!(!said.contains("covered"), "{said}");
}

/// A container whose root is a filesystem of lxcfs that has stopped.
fn hung() -> (Lxcfs, Unshared) {
    let server = Lxcfs::start();
    let at = server.mount().display();
    let setup = format!("mount -t proc proc {at}/proc");
    let script = tempfile::NamedTempFile::new().unwrap();
    let text = "import os, sys, time\nos.chroot(sys.argv[1])\n\
                print('it runs', flush=True)\ntime.sleep(1000)\n";
    fs::write(script.path(), text).unwrap();
    let last = format!("python3 {} {at}", script.path().display());
    let container = Unshared::start_with("hung", "private", &setup, &last);
    server.signal(Signal::STOP);
    // The kernel trusts the names of lxcfs for a second.
    std::thread::sleep(std::time::Duration::from_millis(1500));
    (server, container)
}

/// A filesystem of the container that never answers ends the work for this container alone.
#[test]
fn a_root_that_does_not_answer_is_given_up() {
    let daemon = Daemon::start();
    let (server, container) = hung();
    let other = Unshared::start("beside", FRESH);
    let said = ambit(&daemon, &["attach", &container.pid.to_string(), &other.pid.to_string()]);
    server.signal(Signal::CONT);
    assert_eq!(said.status, 1, "{said:?}");
    assert!(said.stderr.contains("it was not done within 2 s"), "{said:?}");
    assert!(said.stdout.contains("files covered"), "{said:?}");
}

/// As `nsenter --pid` of an administrator starts it.
#[test]
fn a_process_of_the_machine_in_the_pid_namespace_changes_nothing_on_the_machine() {
    let daemon = Daemon::start();
    let container = Unshared::start("visited", FRESH);
    let mut enter = quiet("nsenter");
    enter.args(["--target", &container.pid.to_string(), "--pid"]);
    let mut visitor = start(enter.args(["sh", "-c", "echo it runs; exec sleep 1000"]));
    visitor.wait_for("it runs", machine::patience(20));
    // A second sysfs, so that no rule for nested containers forbids to cover the first.
    let second = readable_dir();
    rustix::mount::mount_bind("/sys", second.path()).unwrap();
    let before = mounts();
    let said = ok(&daemon, "attach", container.pid);
    assert_eq!(mounts(), before, "{said}");
    assert!(said.contains("files covered") && !said.contains("mount namespaces"), "{said}");
    ok(&daemon, "detach", container.pid);
    assert_eq!(mounts(), before);
    rustix::mount::unmount(second.path(), UnmountFlags::DETACH).unwrap();
}

/// The daemon answers others while it waits for a container.
#[test]
fn a_container_that_does_not_answer_delays_no_other_request() {
    let daemon = Daemon::start();
    let (server, container) = hung();
    let ask = |question: &str| {
        let mut socket = UnixStream::connect(daemon.socket("control.sock")).unwrap();
        socket.write_all(format!("{question}\n").as_bytes()).unwrap();
        socket
    };
    let mut waiting: Vec<_> = (0..5).map(|_| ask(&format!("attach {}", container.pid))).collect();
    let mut text = String::new();
    ask("status").read_to_string(&mut text).unwrap();
    assert!(text.contains("\"containers\""), "{text}");
    let last = waiting.last_mut().unwrap();
    last.set_nonblocking(true).unwrap();
    let early = last.read(&mut [0; 1]).map_err(|error| error.kind());
    assert_eq!(early, Err(ErrorKind::WouldBlock), "status was answered before");
    server.signal(Signal::CONT);
    // The program that asked may go.
    drop(waiting);
    assert!(daemon.try_status().is_some());
}

/// Two at once would each find the files uncovered.
#[test]
fn many_requests_for_one_container_cover_its_files_once() {
    let daemon = Daemon::start();
    let container = Unshared::start("wanted", FRESH);
    let before = mounts_of(container.pid);
    let asking: Vec<_> = (0..20)
        .map(|_| {
            let mut ask = quiet(machine::AMBIT);
            ask.args(["attach", &container.pid.to_string(), "--config"]);
            start(ask.arg(daemon.place().config()))
        })
        .collect();
    for one in asking {
        one.finish(machine::patience(20)).ok();
    }
    let all = mounts_of(container.pid);
    assert_eq!(all.matches(" /proc/meminfo ").count(), 1, "{all}");
    ok(&daemon, "detach", container.pid);
    assert_eq!(mounts_of(container.pid), before);
}

#[test]
fn all_mount_namespaces_of_a_container_are_equipped() {
    let daemon = Daemon::start();
    let container = Unshared::start("services", FRESH);
    // A service with mounts of its own, as systemd makes them.
    let script = "exec unshare --mount sh -c 'echo it runs; exec sleep 1000'";
    let mut service = start(&mut container.command(script));
    service.wait_for("it runs", machine::patience(20));
    let said = ok(&daemon, "attach", container.pid);
    assert!(said.contains("2 mount namespaces"), "{said}");
    let inside = fs::read_dir("/proc").unwrap().flatten().filter_map(|entry| {
        let pid = entry.file_name().to_str()?.parse::<u32>().ok()?;
        let own = fs::read_link(format!("/proc/{pid}/ns/pid")).ok()?;
        let theirs = fs::read_link(format!("/proc/{}/ns/pid", container.pid)).ok()?;
        (own == theirs).then_some(pid)
    });
    let inside: Vec<_> = inside.collect();
    assert!(inside.len() >= 2, "{inside:?}");
    for pid in inside {
        assert_eq!(mounts_of(pid).matches(" /proc/meminfo ").count(), 1, "{}", mounts_of(pid));
    }
    let said = ambit(&daemon, &["detach", &container.pid.to_string()]).ok();
    assert!(said.contains("2 mount namespaces") && !said.contains("another one"), "{said}");
}

#[test]
fn a_container_with_too_many_mount_namespaces_is_equipped_in_part() {
    let daemon = Daemon::start();
    let container = Unshared::start("namespaces", FRESH);
    let script = ": >/dev/null; for n in $(seq 70); do unshare --mount sleep 1000 & done; echo it runs; wait";
    let mut services = start(&mut container.command(script));
    services.wait_for("it runs", machine::patience(20));
    let in_all = || {
        let said = ok(&daemon, "attach", container.pid);
        said.contains("64 mount namespaces") && said.contains("7 mount namespaces left alone")
    };
    let until = std::time::Instant::now() + machine::patience(20);
    while !in_all() {
        assert!(std::time::Instant::now() < until, "{}", ok(&daemon, "attach", container.pid));
    }
    assert_eq!(kb(&container.exec("cat /proc/meminfo").ok(), "MemTotal"), MEMORY_KB);
}
