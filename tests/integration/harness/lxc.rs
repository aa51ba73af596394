//! LXC containers with an id map: the same root and binds as [`super::oci`] makes, and our
//! socket as the proxy for notifications.

use std::fmt::Write;
use std::fs;

use super::command::{self, Output, Running, quiet};
use super::daemon::{Daemon, readable_dir};
use super::oci::{FILES, root};
use super::{cgroup, machine, profile};

/// A container that runs, and its folders.
pub(crate) struct Started {
    running: Running,
    state: tempfile::TempDir,
    _root: tempfile::TempDir,
}

/// Runs a script in a container of `lxc-execute`, with all calls reported.
#[track_caller]
pub(crate) fn run(daemon: &Daemon, memory: u64, quota: u64, script: &str) -> Output {
    start(daemon, memory, quota, &[], script).finish(machine::patience(60))
}

/// The same with this seccomp profile.
#[track_caller]
pub(crate) fn run_with(
    daemon: &Daemon,
    memory: u64,
    quota: u64,
    seccomp: &str,
    script: &str,
) -> Output {
    start_with(daemon, memory, quota, seccomp, &[], script).finish(machine::patience(60))
}

impl Started {
    /// Waits until the script has printed this text.
    #[track_caller]
    pub(crate) fn wait_for(&mut self, text: &str) {
        self.running.wait_for(text, machine::patience(30));
    }

    /// Runs another process in it, to its end.
    #[track_caller]
    pub(crate) fn attach(&self, words: &[&str]) -> String {
        for _ in 0..20 {
            let said = command::run(self.tool("lxc-attach").arg("--").args(words));
            // In liblxc 5.0 two processes of lxc-attach write to one socket: if the one with the
            // listener is first, nothing is executed, and nothing is printed.
            if said.status != 1 || !said.stdout.is_empty() {
                return said.ok();
            }
        }
        panic!("lxc-attach executes nothing");
    }

    /// Kills it.
    #[track_caller]
    pub(crate) fn stop(self) {
        command::run(self.tool("lxc-stop").arg("-k")).ok();
        self.finish(machine::patience(20));
    }

    fn tool(&self, name: &str) -> std::process::Command {
        machine::needs(&[name]);
        let mut tool = quiet(name);
        tool.arg("-P").arg(self.state.path()).args(["-n", "test"]);
        tool
    }

    /// Waits for its end.
    #[track_caller]
    pub(crate) fn finish(self, patience: std::time::Duration) -> Output {
        let output = self.running.finish(patience);
        let log = fs::read_to_string(self.state.path().join("log")).unwrap_or_default();
        Output { stderr: format!("{}\n{log}", output.stderr), ..output }
    }
}

/// Starts a script in a container, with these folders (host, inside) bound in.
#[track_caller]
pub(crate) fn start(
    daemon: &Daemon,
    memory: u64,
    quota: u64,
    binds: &[(&std::path::Path, &str)],
    script: &str,
) -> Started {
    start_with(daemon, memory, quota, &profile::of(daemon, "lxc", &[]), binds, script)
}

/// The same with this seccomp profile.
#[track_caller]
fn start_with(
    daemon: &Daemon,
    memory: u64,
    quota: u64,
    seccomp: &str,
    binds: &[(&std::path::Path, &str)],
    script: &str,
) -> Started {
    machine::needs(&["lxc-execute", "newuidmap"]);
    let (root, state) = (root(), readable_dir());
    let path = |name: &str| state.path().join(name);
    fs::write(path("seccomp"), seccomp).unwrap();
    let mut config = format!(
        "lxc.uts.name = test\nlxc.rootfs.path = dir:{root}\n\
         lxc.idmap = u 0 100000 65536\nlxc.idmap = g 0 100000 65536\n\
         lxc.mount.auto = proc:rw sys:ro\nlxc.net.0.type = empty\n\
         lxc.apparmor.profile = unconfined\nlxc.apparmor.allow_incomplete = 1\n\
         lxc.mount.entry = /usr usr none bind,ro 0 0\n\
         lxc.mount.entry = {programs} mnt none bind,ro 0 0\n\
         lxc.seccomp.profile = {seccomp}\nlxc.seccomp.notify.proxy = unix:{proxy}\n\
         lxc.environment = PATH=/usr/sbin:/usr/bin:/sbin:/bin\n",
        root = root.path().display(),
        programs = machine::programs().display(),
        seccomp = path("seccomp").display(),
        proxy = daemon.socket("lxc.sock").display(),
    );
    for file in FILES {
        if std::path::Path::new("/").join(file).exists() {
            writeln!(
                config,
                "lxc.mount.entry = {} {file} none bind 0 0",
                daemon.file(file).display()
            )
            .unwrap();
        }
    }
    for (host, inside) in binds {
        let host = host.display();
        writeln!(config, "lxc.mount.entry = {host} {inside} none bind,ro 0 0").unwrap();
    }
    config += &if cgroup::memory_is_v2() {
        format!("lxc.cgroup2.memory.max = {memory}\nlxc.cgroup2.cpu.max = {quota} 100000\n")
    } else {
        format!(
            "lxc.cgroup.memory.limit_in_bytes = {memory}\nlxc.cgroup.cpu.cfs_quota_us = {quota}\n"
        )
    };
    fs::write(path("config"), config).unwrap();
    let running = command::start(
        quiet("lxc-execute")
            .arg("-P")
            .arg(state.path())
            .args(["-n", "test", "-l", "WARN", "-o"])
            .arg(path("log"))
            .arg("-f")
            .arg(path("config"))
            .args(["--", "sh", "-c", script]),
    );
    Started { running, state, _root: root }
}
