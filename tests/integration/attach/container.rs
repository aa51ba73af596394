//! Containers without a single option for ambit: of runc, crun and LXC, and some made by
//! unshare(1), whose mounts a test chooses.

use std::fs;
use std::path::Path;
use std::process::Command;
use std::sync::atomic::{AtomicU32, Ordering};

use serde_json::json;
use tempfile::TempDir;

use crate::harness::cgroup::{self, Cgroup, Limits};
use crate::harness::command::{self, Output, Running, quiet};
use crate::harness::daemon::{Daemon, readable_dir};
use crate::harness::machine;
use crate::harness::oci::{root, with_cgroups};

/// Its memory, in kB.
pub(super) const MEMORY_KB: u64 = 160 << 10;

/// What a container of an agent has of the machine. All but the last have all rights too.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Agent {
    Network,
    Pids,
    Root,
    RootWithoutRights,
}

/// A container of an engine. It sleeps.
pub(super) struct Container {
    engine: &'static str,
    id: String,
    pid: u32,
    state: TempDir,
    _root: TempDir,
    /// `lxc-execute`, which stays in the foreground.
    _monitor: Option<Running>,
}

impl Container {
    /// Starts one of `runc` or `crun`.
    #[track_caller]
    pub(super) fn oci(engine: &'static str, has_users: bool) -> Self {
        Self::oci_with(engine, has_users, &[])
    }

    /// The same with further mounts.
    #[track_caller]
    pub(super) fn oci_with(
        engine: &'static str,
        has_users: bool,
        binds: &[(String, &str)],
    ) -> Self {
        let (root, id) = (root(), id(engine));
        let config = config(&root, &id, has_users, binds);
        Self::oci_of(engine, id, root, &config, &["run", "--detach"])
    }

    /// Starts one whose cgroup is in this one, and whose first program is this script.
    #[track_caller]
    pub(super) fn oci_in(engine: &'static str, cgroup: &str, script: &str) -> Self {
        let (root, id) = (root(), id(engine));
        let programs = machine::programs().display().to_string();
        let mut config = config(&root, &id, false, &[(programs, "/mnt")]);
        config["linux"]["cgroupsPath"] = json!(format!("{}/{cgroup}/{id}", cgroup::base()));
        config["process"]["args"] = json!(["sh", "-c", script]);
        Self::oci_of(engine, id, root, &config, &["run", "--detach"])
    }

    /// Creates one in this cgroup, which [`Self::start`] starts.
    #[track_caller]
    pub(super) fn created_in(engine: &'static str, cgroup: &str) -> Self {
        let (root, id) = (root(), id(engine));
        let mut config = config(&root, &id, false, &[]);
        config["linux"]["cgroupsPath"] = json!(format!("{}/{cgroup}/{id}", cgroup::base()));
        Self::oci_of(engine, id, root, &config, &["create"])
    }

    /// Has its engine start, pause or resume it.
    #[track_caller]
    pub(super) fn tell(&self, word: &str) {
        command::run(self.command(&[word]).arg(&self.id)).ok();
    }

    /// Starts an agent in this cgroup.
    #[track_caller]
    pub(super) fn agent(cgroup: &str, agent: Agent) -> Self {
        let (root, id) = (root(), id("runc"));
        let binds = [("/".to_owned(), "/mnt")];
        let has_root = matches!(agent, Agent::Root | Agent::RootWithoutRights);
        let mut config = config(&root, &id, false, if has_root { &binds } else { &[] });
        config["linux"]["cgroupsPath"] = json!(format!("{}/{cgroup}/{id}", cgroup::base()));
        let namespaces = config["linux"]["namespaces"].as_array_mut().unwrap();
        let shared = match agent {
            Agent::Network => "network",
            Agent::Pids => "pid",
            _ => "",
        };
        namespaces.retain(|one| one["type"] != shared);
        if agent != Agent::RootWithoutRights {
            for set in ["bounding", "effective", "permitted"] {
                config["process"]["capabilities"][set] = json!(all_rights());
            }
        }
        Self::oci_of("runc", id, root, &config, &["run", "--detach"])
    }

    #[track_caller]
    fn oci_of(
        engine: &'static str,
        id: String,
        root: TempDir,
        config: &serde_json::Value,
        words: &[&str],
    ) -> Self {
        machine::needs(&[engine]);
        let state = readable_dir();
        fs::write(state.path().join("config.json"), config.to_string()).unwrap();
        let mut container = Self { engine, id, pid: 0, state, _root: root, _monitor: None };
        let mut run = container.command(words);
        command::run(run.arg("--bundle").arg(container.state.path()).arg(&container.id)).ok();
        let shown = command::run(container.command(&["state"]).arg(&container.id)).ok();
        let shown: serde_json::Value = serde_json::from_str(&shown).unwrap();
        container.pid = u32::try_from(shown["pid"].as_u64().unwrap()).unwrap();
        container
    }

    /// Starts one of LXC with an id map.
    #[track_caller]
    pub(super) fn lxc() -> Self {
        Self::lxc_with("exec sleep 1000")
    }

    /// The same, which runs this script, with the test programs in /mnt.
    #[track_caller]
    pub(super) fn lxc_with(script: &str) -> Self {
        machine::needs(&["lxc-execute", "lxc-info", "lxc-attach", "newuidmap"]);
        let (root, state, id) = (root(), readable_dir(), id("lxc"));
        let limit = if cgroup::memory_is_v2() {
            format!(
                "lxc.cgroup2.memory.max = {0}\nlxc.cgroup2.cpu.max = 100000 100000",
                MEMORY_KB << 10
            )
        } else {
            format!(
                "lxc.cgroup.memory.limit_in_bytes = {0}\nlxc.cgroup.cpu.cfs_quota_us = 100000",
                MEMORY_KB << 10
            )
        };
        let config = format!(
            "lxc.uts.name = {id}\nlxc.rootfs.path = dir:{root}\n\
             lxc.idmap = u 0 100000 65536\nlxc.idmap = g 0 100000 65536\n\
             lxc.mount.auto = proc:mixed sys:mixed\nlxc.net.0.type = empty\nlxc.autodev = 1\n\
             lxc.apparmor.profile = unconfined\nlxc.apparmor.allow_incomplete = 1\n\
             lxc.mount.entry = /usr usr none bind,ro 0 0\n\
             lxc.mount.entry = {programs} mnt none bind,ro 0 0\n\
             lxc.environment = PATH=/usr/sbin:/usr/bin:/sbin:/bin\n{limit}\n",
            root = root.path().display(),
            programs = machine::programs().display(),
        );
        fs::write(state.path().join("config"), config).unwrap();
        let mut execute = quiet("lxc-execute");
        execute
            .arg("-P")
            .arg(state.path())
            .args(["-n", &id, "-f"])
            .arg(state.path().join("config"));
        let script = format!("echo ready; {script}");
        let mut monitor = command::start(execute.args(["--", "sh", "-c", &script]));
        monitor.wait_for("ready", machine::patience(30));
        let mut info = quiet("lxc-info");
        info.arg("-P").arg(state.path()).args(["-n", &id, "-p", "-H"]);
        let pid = command::run(&mut info).ok().trim().parse().unwrap();
        Self { engine: "lxc", id, pid, state, _root: root, _monitor: Some(monitor) }
    }

    pub(super) fn pid(&self) -> u32 {
        self.pid
    }

    pub(super) fn id(&self) -> &str {
        &self.id
    }

    fn command(&self, words: &[&str]) -> Command {
        let mut command = with_cgroups(self.engine);
        command.arg("--root").arg(self.state.path().join("state")).args(words);
        command
    }

    /// Runs a script in it, as the engine does.
    #[track_caller]
    pub(super) fn exec(&self, script: &str) -> Output {
        let mut exec = if self.engine == "lxc" {
            let mut attach = quiet("lxc-attach");
            attach.arg("-P").arg(self.state.path()).args(["-n", &self.id, "--"]);
            attach
        } else {
            self.command(&["exec", &self.id])
        };
        command::run(exec.args(["sh", "-c", script]))
    }

    /// Its mounts.
    pub(super) fn mounts(&self) -> String {
        mounts_of(self.pid)
    }
}

impl Drop for Container {
    fn drop(&mut self) {
        let mut delete = if self.engine == "lxc" {
            let mut stop = quiet("lxc-stop");
            stop.arg("-P").arg(self.state.path()).args(["-k", "-n", &self.id]);
            stop
        } else {
            self.command(&["delete", "--force", &self.id])
        };
        command::run(&mut delete);
    }
}

/// The capabilities that the machine can give to a container.
fn all_rights() -> Vec<&'static str> {
    let status = fs::read_to_string("/proc/1/status").unwrap();
    let bounds = status.lines().find_map(|line| line.strip_prefix("CapBnd:\t")).unwrap();
    let bounds = u64::from_str_radix(bounds, 16).unwrap();
    let has = |(bit, _): &(usize, &&str)| bounds & 1 << bit != 0;
    RIGHTS.iter().enumerate().filter(has).map(|(_, right)| *right).collect()
}

/// All capabilities, by number: capabilities(7).
const RIGHTS: &[&str] = &[
    "CAP_CHOWN",
    "CAP_DAC_OVERRIDE",
    "CAP_DAC_READ_SEARCH",
    "CAP_FOWNER",
    "CAP_FSETID",
    "CAP_KILL",
    "CAP_SETGID",
    "CAP_SETUID",
    "CAP_SETPCAP",
    "CAP_LINUX_IMMUTABLE",
    "CAP_NET_BIND_SERVICE",
    "CAP_NET_BROADCAST",
    "CAP_NET_ADMIN",
    "CAP_NET_RAW",
    "CAP_IPC_LOCK",
    "CAP_IPC_OWNER",
    "CAP_SYS_MODULE",
    "CAP_SYS_RAWIO",
    "CAP_SYS_CHROOT",
    "CAP_SYS_PTRACE",
    "CAP_SYS_PACCT",
    "CAP_SYS_ADMIN",
    "CAP_SYS_BOOT",
    "CAP_SYS_NICE",
    "CAP_SYS_RESOURCE",
    "CAP_SYS_TIME",
    "CAP_SYS_TTY_CONFIG",
    "CAP_MKNOD",
    "CAP_LEASE",
    "CAP_AUDIT_WRITE",
    "CAP_AUDIT_CONTROL",
    "CAP_SETFCAP",
    "CAP_MAC_OVERRIDE",
    "CAP_MAC_ADMIN",
    "CAP_SYSLOG",
    "CAP_WAKE_ALARM",
    "CAP_BLOCK_SUSPEND",
    "CAP_AUDIT_READ",
    "CAP_PERFMON",
    "CAP_BPF",
    "CAP_CHECKPOINT_RESTORE",
];

fn id(engine: &str) -> String {
    static NEXT: AtomicU32 = AtomicU32::new(0);
    format!("{engine}-attach-{}", NEXT.fetch_add(1, Ordering::Relaxed))
}

/// What the processes of a pid see mounted.
pub(super) fn mounts_of(pid: u32) -> String {
    fs::read_to_string(format!("/proc/{pid}/mountinfo")).unwrap()
}

fn config(
    root: &TempDir,
    id: &str,
    has_users: bool,
    binds: &[(String, &str)],
) -> serde_json::Value {
    let mut mounts = vec![
        json!({ "destination": "/proc", "type": "proc", "source": "proc" }),
        json!({ "destination": "/sys", "type": "sysfs", "source": "sysfs",
                "options": ["nosuid", "noexec", "nodev", "ro"] }),
        json!({ "destination": "/dev", "type": "tmpfs", "source": "tmpfs",
                "options": ["nosuid", "mode=755"] }),
        json!({ "destination": "/usr", "type": "bind", "source": "/usr",
                "options": ["ro", "rbind"] }),
    ];
    for (from, to) in binds {
        mounts.push(json!({ "destination": to, "type": "bind", "source": from,
                            "options": ["bind"] }));
    }
    let mut namespaces = vec!["pid", "mount", "ipc", "uts", "network"];
    let mut linux = json!({
        "cgroupsPath": format!("{}/{id}", cgroup::base()),
        "resources": {
            "memory": { "limit": MEMORY_KB << 10 },
            "cpu": { "quota": 100_000, "period": 100_000 },
        },
    });
    if has_users {
        namespaces.extend(["user", "cgroup"]);
        let ids = json!([{ "containerID": 0, "hostID": 100_000, "size": 65536 }]);
        linux["uidMappings"] = ids.clone();
        linux["gidMappings"] = ids;
    }
    linux["namespaces"] = namespaces.iter().map(|name| json!({ "type": name })).collect();
    let rights = [
        "CAP_CHOWN",
        "CAP_DAC_OVERRIDE",
        "CAP_FOWNER",
        "CAP_SETFCAP",
        "CAP_SETGID",
        "CAP_SETUID",
        "CAP_SYS_ADMIN",
        "CAP_SYS_CHROOT",
    ];
    json!({
        "ociVersion": "1.0.2",
        "root": { "path": root.path() },
        "hostname": id,
        "process": {
            "terminal": false,
            "user": { "uid": 0, "gid": 0 },
            "cwd": "/",
            "args": ["sleep", "1000"],
            "capabilities": { "bounding": rights, "effective": rights, "permitted": rights },
            "env": ["PATH=/usr/sbin:/usr/bin:/sbin:/bin", "LC_ALL=C"],
        },
        "mounts": mounts,
        "linux": linux,
    })
}

/// A container of unshare(1): a pid namespace, a mount namespace and a limit of memory.
pub(super) struct Unshared {
    pub(super) pid: u32,
    _running: Running,
    cgroup: Cgroup,
}

const SLEEP: &str = "sh -c \"echo it runs; exec sleep 1000\"";

/// What an ordinary container mounts.
pub(super) const FRESH: &str = "mount -t proc proc /proc; mount -t sysfs sysfs /sys; \
                                mount -t tmpfs -o mode=755 dev /dev";

impl Unshared {
    /// Starts one of this name, whose mounts this script makes (without single quotes). What it
    /// does not mount is a copy of the machine's.
    #[track_caller]
    pub(super) fn start(name: &str, mounts: &str) -> Self {
        Self::start_with(name, "private", mounts, SLEEP)
    }

    /// The same in a root, with this propagation of mounts.
    #[track_caller]
    pub(super) fn start_in(name: &str, propagation: &str, mounts: &str, root: &Path) -> Self {
        let last = format!("chroot {} {SLEEP}", root.display());
        Self::start_with(name, propagation, mounts, &last)
    }

    /// The same with this command, which says that it is ready.
    #[track_caller]
    pub(super) fn start_with(name: &str, propagation: &str, mounts: &str, last: &str) -> Self {
        let limits = Limits { memory: Some(MEMORY_KB << 10), ..Limits::default() };
        let cgroup = Cgroup::new(name, limits);
        let script = format!(
            "exec unshare --mount --net --propagation {propagation} sh -ec '{mounts}; exec {last}'"
        );
        let mut running = command::start(&mut cgroup.script(&script));
        running.wait_for("it runs", machine::patience(30));
        let pid = cgroup.init().unsigned_abs();
        Self { pid, _running: running, cgroup }
    }

    /// Its cgroup.
    pub(super) fn cgroup(&self) -> &Cgroup {
        &self.cgroup
    }

    /// Runs a script in its namespaces.
    #[track_caller]
    pub(super) fn exec(&self, script: &str) -> Output {
        command::run(&mut self.command(script))
    }

    /// A script in its namespaces.
    pub(super) fn command(&self, script: &str) -> Command {
        let mut enter = quiet("nsenter");
        enter.args(["--target", &self.pid.to_string(), "--mount", "--pid", "--root", "--wd"]);
        enter.args(["sh", "-c", script]);
        enter
    }
}

/// Runs `ambit attach WORDS…` or `ambit detach WORDS…`.
#[track_caller]
pub(super) fn ambit(daemon: &Daemon, words: &[&str]) -> Output {
    daemon.place().ambit(words)
}

/// Runs a command for one process, which must succeed, and returns what it prints.
#[track_caller]
pub(super) fn ok(daemon: &Daemon, word: &str, pid: u32) -> String {
    ambit(daemon, &[word, &pid.to_string()]).ok()
}
