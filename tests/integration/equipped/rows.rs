//! The rows of engines that have a daemon, and of systemd-nspawn: each with the watcher alone, and
//! with the wrapper in the place of runc where the engine takes one.

use std::fs;
use std::time::Instant;

use rustix::process::Signal;

use super::pod::Kind;
use super::served::{Client, Served};
use super::{FIRST, MEMORY, Row, TOTAL, daemon_at, number, start_again, stop};
use crate::harness::daemon::Place;
use crate::harness::machine;

/// What the containers may do.
const CALLS: &str = "mknod = true\nmount.enabled = true\nmount.shift = true\n\
                     mount.fuse = { squashfs = \"host:/usr/bin/squashfuse\" }\n[attach]\nauto = ";

/// A node of a device, and an image that a helper mounts, by the root of a user namespace.
const PRIVILEGED_CALLS: &str = "set -- $(cat /proc/self/uid_map); echo root $2; mknod /null c 1 3 && echo x >/null && echo mknod 1
    mount -t tmpfs tmp /tmp; cd /tmp; mkdir t m; echo 42 >t/f; mksquashfs t image >/dev/null
    mount -t squashfs.image image m && echo mount $(cat m/f); umount m; echo ready; exec sleep 600";

/// A script that continues when the watcher has covered the last file.
fn once_attached(script: &str) -> String {
    let last = ["/sys/devices/system/node", "/sys/devices/system/cpu"];
    let last = last.iter().find(|folder| fs::exists(folder).unwrap()).unwrap();
    format!("until grep -q ' {last} ' /proc/self/mountinfo; do sleep 0.02; done; {script}")
}

/// Prints the rows of an engine of this release of Debian, with the watcher and then with the
/// wrapper.
#[track_caller]
fn are_equipped(suite: &str, clients: &[(Client, &str, bool)]) {
    if machine::slowness() > 1 {
        return machine::not_on_this_kernel("engines with a daemon: minutes in an emulated guest");
    }
    let served = &mut Served::new(clients[0].0, suite);
    for is_wrapped in [false, true] {
        for &(client, name, has_wrapper) in clients {
            if !is_wrapped || has_wrapper {
                served.set_client(client);
                row(served, client, name, is_wrapped);
            }
        }
    }
}

#[track_caller]
fn row(served: &mut Served, client: Client, name: &str, is_wrapped: bool) {
    let mut daemon = daemon_at(Place::intercepting(&format!("{CALLS}{}\n", !is_wrapped)));
    if is_wrapped {
        served.wrap(daemon.place());
    }
    let by = match (is_wrapped, client) {
        (false, _) => "watcher",
        (true, Client::Incus) => "drop-in",
        (true, _) => "wrapper",
    };
    let engine = format!("{name} {}, {by}", served.version());
    let mut row = Row { engine, cells: Vec::new(), said: String::new() };
    let script = |script: &str| {
        if is_wrapped { script.to_owned() } else { once_attached(script) }
    };
    let (verify, calls) = if is_wrapped { ("", true) } else { ("--no-calls ", false) };
    let verify = |script: &str| script.replace("--memory", &format!("{verify}--memory"));

    let mut pod = served.start(Kind::Plain, &script(&verify(FIRST)));
    let said = pod.wait_for("ready");
    row.check("verify", number(&said, "verify") == Some(0), &said);
    if calls {
        row.check("free", number(&said, "Mem:") == Some(MEMORY), &said);
        row.check("nproc", number(&said, "nproc") == Some(1), &said);
    } else {
        row.lacks(["free", "nproc"]);
    }
    let said = pod.exec(&verify(super::LATER));
    let is_right =
        number(&said, "verify") == Some(0) && !(calls && number(&said, "nproc") != Some(1));
    row.check("exec", is_right, &said);
    drop(pod);

    if calls {
        let mut pod = served.start(Kind::Users, PRIVILEGED_CALLS);
        let said = pod.wait_for("ready");
        assert!(number(&said, "root") > Some(0), "no user namespace: {said}");
        row.check("mknod", number(&said, "mknod") == Some(1), &said);
        row.check("mount", number(&said, "mount") == Some(42), &said);
    } else {
        row.lacks(["mknod", "mount"]);
    }
    let bounds = format!("{TOTAL}; busybox free -k; echo ready; exec sleep 600");
    let mut shows_bounds = |kind, column| {
        let mut pod = served.start(kind, &script(&bounds));
        let said = pod.wait_for("ready");
        let is_right = number(&said, "total") == Some(MEMORY)
            && (!calls || number(&said, "Mem:") == Some(MEMORY));
        row.check(column, is_right, &said);
    };
    if !calls {
        shows_bounds(Kind::Users, "users");
    }
    // Docker 20.10 gives all capabilities that it knows, and not those that it has.
    if served.version().starts_with("20.10") && !has_all_rights() {
        row.lacks(["privileged"]);
    } else if client != Client::Nspawn {
        shows_bounds(Kind::Privileged, "privileged");
    }

    stop(&mut daemon);
    let mut pod = served.start(Kind::Plain, &format!("{TOTAL}; echo ready; exec sleep 600"));
    let said = pod.wait_for("ready");
    let is_plain = number(&said, "total").is_some_and(|total| total != MEMORY);
    start_again(&daemon);
    let attached = if is_wrapped {
        daemon.place().ambit(&["attach", &pod.pid().to_string()]).ok()
    } else {
        // The watcher does it by itself.
        let until = Instant::now() + machine::patience(20);
        while number(&pod.exec(TOTAL), "total") != Some(MEMORY) && Instant::now() < until {}
        String::new()
    };
    let later = pod.exec(&once_attached(&verify(super::LATER)));
    let is_right = is_plain && number(&later, "verify") == Some(0);
    row.check("down", is_right, &format!("{said}{attached}{later}"));
    drop(pod);
    row.print();
    daemon.place().ambit(&["stop", "--release"]).ok();
    daemon.signal(Signal::TERM);
    assert_eq!(daemon.ended(), "unmounted");
}

/// True if root lacks no capability of capabilities(7) here.
fn has_all_rights() -> bool {
    let status = fs::read_to_string("/proc/self/status").unwrap();
    let bounds = status.lines().find_map(|line| line.strip_prefix("CapBnd:\t")).unwrap();
    let has_all = u64::from_str_radix(bounds, 16).unwrap().trailing_ones() >= 41;
    if !has_all {
        machine::not_on_this_kernel("all capabilities for privileged containers of Docker 20.10");
    }
    has_all
}

/// It drops `listenerPath` from profiles, but not from the `config.json` that it has written.
#[test]
fn docker_20_10_equips_its_containers() {
    are_equipped("bookworm", &[(Client::Docker, "docker", true)]);
}

#[test]
fn docker_26_1_equips_its_containers() {
    are_equipped("trixie", &[(Client::Docker, "docker", true)]);
}

#[test]
fn containerd_equips_containers_of_ctr_and_pods() {
    let clients = [(Client::Ctr, "ctr", true), (Client::Cri, "cri", true)];
    are_equipped("trixie", &clients);
}

/// The calls are reported by `raw.lxc` in the default profile.
#[test]
fn incus_equips_its_containers() {
    are_equipped("trixie", &[(Client::Incus, "incus", true)]);
}

/// With `instances.lxcfs.per_instance` each container has a server of its own.
#[test]
fn incus_starts_ambit_in_the_place_of_lxcfs() {
    if machine::slowness() > 1 {
        return machine::not_on_this_kernel("engines with a daemon: minutes in an emulated guest");
    }
    let served = Served::new(Client::Incus, "trixie");
    served.replace_lxcfs();
    let script = format!(
        "{TOTAL}; echo files $(grep -c fuse.lxcfs /proc/self/mountinfo); echo ready; exec sleep 600"
    );
    let mut pod = served.start(Kind::Plain, &script);
    let said = pod.wait_for("ready");
    assert_eq!(number(&said, "total"), Some(MEMORY), "{said}");
    assert!(number(&said, "files") > Some(10), "{said}");
}

/// It has no runtime that could be another one, and no seccomp profile that reports calls.
#[test]
fn nspawn_has_files_by_the_watcher() {
    are_equipped("", &[(Client::Nspawn, "nspawn", false)]);
}
