//! What the watcher leaves alone: sandboxes, services, and agents that report the machine.

use std::fs;

use crate::harness::cgroup::{Cgroup, Limits};
use crate::harness::command::{self, Running, quiet};
use crate::harness::machine;

use super::auto::{attached, daemon, docker, is_untouched, pass, wait_for};
use super::container::{Agent, Container, mounts_of};

/// A sandbox that runs: its first process, and what that saw mounted at first.
struct Sandbox {
    name: String,
    pid: u32,
    mounts: String,
    _running: Running,
}

/// Says the number of its process, as the machine has it, and sleeps.
const INSIDE: &str = "echo it runs; exec sleep 1001";

impl Sandbox {
    #[track_caller]
    fn start(cgroup: Option<&Cgroup>, words: &[&str]) -> Self {
        let name = words.join(" ");
        let mut start = match cgroup {
            Some(cgroup) => cgroup.run("exec \"$0\" \"$@\""),
            None => quiet("env"),
        };
        let mut running = command::start(start.args(words).args(["sh", "-c", INSIDE]));
        running.wait_for("it runs", machine::patience(20));
        let pid = innermost(running.pid());
        Self { name, pid, mounts: mounts_of(pid), _running: running }
    }
}

/// The last descendant of a process.
fn innermost(pid: u32) -> u32 {
    let children = fs::read_to_string(format!("/proc/{pid}/task/{pid}/children")).unwrap();
    let child = children.split_whitespace().last().and_then(|child| child.parse().ok());
    child.map_or(pid, innermost)
}

/// As flatpak starts an application.
const FLATPAK: &str = "bwrap --unshare-user --unshare-pid --unshare-ipc --unshare-net --die-with-parent \
    --ro-bind /usr /usr --symlink usr/lib /lib --symlink usr/lib64 /lib64 --symlink usr/bin /bin \
    --proc /proc --dev /dev --tmpfs /tmp --tmpfs /run --dir /var --new-session --as-pid-1";

#[test]
fn sandboxes_and_services_are_left_alone() {
    machine::needs(&["bwrap", "unshare"]);
    let daemon = daemon("");
    let _docker = docker();
    let limits = Limits::default;
    let slices = ["system.slice", "user.slice"].map(|slice| Cgroup::new(slice, limits()));
    let service = slices[0].child("web.service", limits());
    let session = slices[1].child("user-1000.slice", limits());
    let scope = session.child("app-chrome-7.scope", limits());
    let mut sandboxes = Vec::new();
    for cgroup in [None, Some(&service), Some(&scope)] {
        for line in [
            "bwrap --unshare-all --ro-bind / / --proc /proc --dev /dev",
            "bwrap --bind / / --unshare-ipc --unshare-net \
             bwrap --unshare-all --ro-bind / / --proc /proc --dev /dev",
            FLATPAK,
            "unshare -Urpf --kill-child --mount-proc",
            // As systemd starts a service with PrivateTmp=, ProtectSystem= and PrivatePIDs=.
            "unshare --mount --pid --fork --kill-child --mount-proc --propagation slave",
        ] {
            let words: Vec<_> = line.split_whitespace().collect();
            sandboxes.push(Sandbox::start(cgroup, &words));
        }
    }
    let mut daemon = daemon;
    pass(&mut daemon);
    for sandbox in &sandboxes {
        assert_eq!(mounts_of(sandbox.pid), sandbox.mounts, "{}", sandbox.name);
    }
    // Those that run already are left alone too.
    daemon.place().ambit(&["reload"]).ok();
    pass(&mut daemon);
    for sandbox in &sandboxes {
        assert_eq!(mounts_of(sandbox.pid), sandbox.mounts, "{}", sandbox.name);
        is_untouched(sandbox.pid);
    }
    attached(&daemon, 2);
}

/// A procfs of its own, which the kernel only allows where the whole of `/proc` is visible.
#[test]
fn a_sandbox_in_a_container_starts_after_attach() {
    machine::needs(&["bwrap"]);
    let mut daemon = daemon("");
    let _docker = docker();
    let container = Container::oci_in("runc", "docker", "exec sleep 1000");
    wait_for(&mut daemon, container.pid());
    for sandbox in [
        "bwrap --unshare-all --ro-bind / / --proc /proc --dev /dev",
        "bwrap --unshare-user --unshare-pid --ro-bind / / --proc /proc --dev /dev",
        "unshare -Urpf --mount-proc",
    ] {
        let said = container.exec(&format!("{sandbox} grep -c . /proc/self/mountinfo"));
        assert_eq!(said.status, 0, "{sandbox}: {said:?}");
    }
}

/// With all rights and the network, the pid namespace or the root of the machine.
#[test]
fn agents_that_report_the_machine_are_left_alone() {
    let mut daemon = daemon("");
    let _docker = docker();
    let agents =
        [Agent::Network, Agent::Pids, Agent::Root].map(|agent| Container::agent("docker", agent));
    // It has no rights over the machine.
    let reader = Container::agent("docker", Agent::RootWithoutRights);
    wait_for(&mut daemon, reader.pid());
    pass(&mut daemon);
    for agent in &agents {
        is_untouched(agent.pid());
    }
    let log = daemon.log();
    assert!(log.contains("it is privileged and shares the network of the machine"), "{log}");
    assert!(log.contains("it is privileged and mounts the root of the machine"), "{log}");
    // Those that run when the daemon looks at all.
    daemon.place().ambit(&["reload"]).ok();
    pass(&mut daemon);
    for agent in &agents {
        is_untouched(agent.pid());
    }
}
