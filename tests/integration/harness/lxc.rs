//! LXC containers with an id map: the same root and binds as [`super::oci`] makes, and our
//! socket as the proxy for notifications.

use std::fmt::Write;
use std::fs;

use super::command::{self, Output, quiet};
use super::daemon::{Daemon, readable_dir};
use super::oci::{FILES, root};
use super::{cgroup, machine};

/// Runs a script in a container of `lxc-execute`.
#[track_caller]
pub(crate) fn run(daemon: &Daemon, memory: u64, quota: u64, script: &str) -> Output {
    machine::needs(&["lxc-execute", "newuidmap"]);
    let (root, state) = (root(), readable_dir());
    let path = |name: &str| state.path().join(name);
    fs::write(path("seccomp"), "2\ndenylist\n[all]\nsysinfo notify\nsched_getaffinity notify\nmount notify\nfsopen notify\n\
         mknod notify\nmknodat notify\nsetxattr notify\nlsetxattr notify\nfsetxattr notify\n\
         sched_setscheduler notify\nsched_setattr notify\nsetpriority notify\nbpf notify\n")
        .unwrap();
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
    config += &if cgroup::memory_is_v2() {
        format!("lxc.cgroup2.memory.max = {memory}\nlxc.cgroup2.cpu.max = {quota} 100000\n")
    } else {
        format!(
            "lxc.cgroup.memory.limit_in_bytes = {memory}\nlxc.cgroup.cpu.cfs_quota_us = {quota}\n"
        )
    };
    fs::write(path("config"), config).unwrap();
    let output = command::run(
        quiet("lxc-execute")
            .arg("-P")
            .arg(state.path())
            .args(["-n", "test", "-l", "WARN", "-o"])
            .arg(path("log"))
            .arg("-f")
            .arg(path("config"))
            .args(["--", "sh", "-c", script]),
    );
    let log = fs::read_to_string(path("log")).unwrap_or_default();
    Output { stderr: format!("{}\n{log}", output.stderr), ..output }
}
