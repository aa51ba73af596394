//! OCI bundles for runc and crun: the host's `/usr` on an otherwise empty root, the overlay's
//! files bound over `/proc` and `/sys`, and the profile that `ambit profile` prints.

use std::fs;
use std::os::unix::fs::symlink;
use std::path::Path;
use std::process::Command;
use std::sync::atomic::{AtomicU32, Ordering};

use serde_json::{Value, json};
use tempfile::TempDir;

use super::command::{self, Output, quiet};
use super::daemon::{Daemon, readable_dir};
use super::{cgroup, machine, profile};

/// The files of the overlay that engines accept binds for.
pub(crate) const FILES: &[&str] = &[
    "proc/meminfo",
    "proc/cpuinfo",
    "proc/stat",
    "proc/uptime",
    "proc/loadavg",
    "proc/swaps",
    "sys/devices/system/cpu",
];

const ROOTS: &[&str] = &[
    "CAP_CHOWN",
    "CAP_DAC_OVERRIDE",
    "CAP_FOWNER",
    "CAP_FSETID",
    "CAP_KILL",
    "CAP_MKNOD",
    "CAP_SETFCAP",
    "CAP_SETGID",
    "CAP_SETUID",
    "CAP_SYS_ADMIN",
    "CAP_SYS_CHROOT",
    "CAP_SYS_NICE",
];

/// What a container of an engine is given.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Container<'a> {
    /// Bytes.
    pub(crate) memory: u64,
    /// Microseconds in each 100 ms.
    pub(crate) quota: i64,
    /// Whether it has a user namespace.
    pub(crate) userns: bool,
    /// A shell script.
    pub(crate) script: &'a str,
}

impl<'a> Container<'a> {
    /// One with a user namespace and room for a shell script.
    pub(crate) fn with_users(script: &'a str) -> Self {
        Self { memory: 160 << 20, quota: 100_000, userns: true, script }
    }
}

/// A root for containers: links into `/usr`, which is to be bound, and empty folders.
pub(crate) fn root() -> TempDir {
    let root = readable_dir();
    for link in ["bin", "sbin", "lib", "lib32", "lib64", "libx32"] {
        symlink(format!("usr/{link}"), root.path().join(link)).unwrap();
    }
    for dir in ["usr", "proc", "sys", "dev", "tmp", "run", "etc", "mnt", "root", "var"] {
        fs::create_dir(root.path().join(dir)).unwrap();
    }
    // The users of containers that have some of their own.
    std::os::unix::fs::chown(root.path().join("root"), Some(100_000), Some(100_000)).unwrap();
    root
}

/// Runs a container to its end under `runc` or `crun`, with all calls reported.
#[track_caller]
pub(crate) fn run(engine: &str, daemon: &Daemon, container: Container<'_>) -> Output {
    let text = profile::of(daemon, "oci", &["--label", "test"]);
    let seccomp = serde_json::from_str(&text).unwrap();
    run_with(engine, daemon, container, &seccomp)
}

/// The same with this seccomp profile.
#[track_caller]
pub(crate) fn run_with(
    engine: &str,
    daemon: &Daemon,
    container: Container<'_>,
    seccomp: &Value,
) -> Output {
    static NEXT: AtomicU32 = AtomicU32::new(0);
    machine::needs(&[engine, "unshare"]);
    let id = format!("{engine}-{}", NEXT.fetch_add(1, Ordering::Relaxed));
    let (root, bundle) = (root(), readable_dir());
    let config = config(daemon, container, seccomp, &root, &id);
    fs::write(bundle.path().join("config.json"), serde_json::to_vec(&config).unwrap()).unwrap();
    let output = command::run(
        with_cgroups(engine)
            .arg("--root")
            .arg(bundle.path().join("state"))
            .args(["run", "--bundle"])
            .arg(bundle.path())
            .arg(&id),
    );
    let mut delete = with_cgroups(engine);
    delete.arg("--root").arg(bundle.path().join("state")).args(["delete", "--force", &id]);
    command::run(&mut delete);
    output
}

/// crun refuses hosts where v1 and v2 both have controllers: it gets a mount namespace without
/// the v2 hierarchy.
pub(crate) fn with_cgroups(engine: &str) -> Command {
    if engine == "crun" && !cgroup::memory_is_v2() {
        let mut command = quiet("unshare");
        command.args([
            "--mount",
            "--propagation=private",
            "sh",
            "-c",
            "umount /sys/fs/cgroup/unified 2>/dev/null; exec crun \"$@\"",
            "crun",
        ]);
        return command;
    }
    quiet(engine)
}

fn bind(from: &str, to: &str, extra: &[&str]) -> Value {
    let options: Vec<_> = ["bind"].iter().chain(extra).collect();
    json!({ "destination": to, "type": "bind", "source": from, "options": options })
}

fn config(
    daemon: &Daemon,
    container: Container<'_>,
    seccomp: &Value,
    root: &TempDir,
    id: &str,
) -> Value {
    let mut config = plain_config(container, seccomp, root.path(), id);
    let mounts = config["mounts"].as_array_mut().unwrap();
    for file in FILES {
        // Kernels without SMP have no such folder to bind over.
        if Path::new("/").join(file).exists() {
            let overlay = daemon.file(file).display().to_string();
            mounts.push(bind(&overlay, &format!("/{file}"), &[]));
        }
    }
    config
}

/// The configuration of a container without ambit's files.
pub(crate) fn plain_config(
    container: Container<'_>,
    seccomp: &Value,
    root: &Path,
    id: &str,
) -> Value {
    let mounts = [
        json!({ "destination": "/proc", "type": "proc", "source": "proc" }),
        json!({ "destination": "/sys", "type": "sysfs", "source": "sysfs",
                "options": ["nosuid", "noexec", "nodev", "ro"] }),
        json!({ "destination": "/dev", "type": "tmpfs", "source": "tmpfs",
                "options": ["nosuid", "mode=755"] }),
        bind("/usr", "/usr", &["ro", "rbind"]),
        bind(&machine::programs().display().to_string(), "/mnt", &["ro"]),
    ];
    let mut namespaces = vec!["pid", "mount", "ipc", "uts", "network"];
    let mut linux = json!({
        "cgroupsPath": format!("{}/{id}", cgroup::base()),
        "resources": {
            "memory": { "limit": container.memory },
            "cpu": { "quota": container.quota, "period": 100_000 },
        },
        "seccomp": seccomp,
    });
    // What root of a user namespace has anyway, if the engine does not take it away.
    let capabilities = if container.userns { ROOTS } else { &[] };
    if container.userns {
        namespaces.extend(["user", "cgroup"]);
        let ids = json!([{ "containerID": 0, "hostID": 100_000, "size": 65536 }]);
        linux["uidMappings"] = ids.clone();
        linux["gidMappings"] = ids;
    }
    linux["namespaces"] = namespaces.iter().map(|name| json!({ "type": name })).collect();
    json!({
        "ociVersion": "1.0.2",
        "root": { "path": root },
        "hostname": id,
        "process": {
            "terminal": false,
            "user": { "uid": 0, "gid": 0 },
            "cwd": "/",
            "args": ["sh", "-c", container.script],
            "capabilities": {
                "bounding": capabilities, "effective": capabilities, "permitted": capabilities,
            },
            "env": ["PATH=/usr/sbin:/usr/bin:/sbin:/bin", "LC_ALL=C"],
        },
        "mounts": mounts,
        "linux": linux,
    })
}

/// A container of `runc` that runs in the background. It is killed and deleted when it is dropped.
#[derive(Debug)]
pub(crate) struct Started {
    running: command::Running,
    id: String,
    bundle: TempDir,
    _root: TempDir,
}

/// Where a container of [`start`] is put.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Place<'a> {
    /// Its cgroup, below that of the tests.
    pub(crate) cgroup: &'a str,
    /// A process whose pid namespace it joins.
    pub(crate) pid: Option<u32>,
}

/// Starts a container of `runc` and waits until its script has printed `ready`.
#[track_caller]
pub(crate) fn start(daemon: &Daemon, container: Container<'_>, place: Place<'_>) -> Started {
    machine::needs(&["runc"]);
    let text = profile::of(daemon, "oci", &["--label", "test"]);
    let id = place.cgroup.rsplit('/').next().unwrap_or_default().to_owned();
    let (root, bundle) = (root(), readable_dir());
    let mut config = config(daemon, container, &serde_json::from_str(&text).unwrap(), &root, &id);
    config["linux"]["cgroupsPath"] = format!("{}/{}", cgroup::base(), place.cgroup).into();
    for namespace in config["linux"]["namespaces"].as_array_mut().unwrap() {
        if let (Some(pid), true) = (place.pid, namespace["type"] == "pid") {
            namespace["path"] = format!("/proc/{pid}/ns/pid").into();
        }
    }
    fs::write(bundle.path().join("config.json"), serde_json::to_vec(&config).unwrap()).unwrap();
    let mut run = quiet("runc");
    run.arg("--root").arg(bundle.path().join("state")).args(["run", "--bundle"]);
    let mut running = command::start(run.arg(bundle.path()).arg(&id));
    running.wait_for("ready", machine::patience(30));
    Started { running, id, bundle, _root: root }
}

impl Started {
    /// Its id.
    pub(crate) fn id(&self) -> &str {
        &self.id
    }

    /// Its first process.
    #[track_caller]
    pub(crate) fn pid(&self) -> u32 {
        let state = command::run(self.runc().args(["state", &self.id])).ok();
        let state: Value = serde_json::from_str(&state).unwrap();
        u32::try_from(state["pid"].as_u64().unwrap()).unwrap()
    }

    /// Runs another process in it (`runc exec`).
    #[track_caller]
    pub(crate) fn exec(&self, words: &[&str]) -> String {
        command::run(self.runc().args(["exec", &self.id]).args(words)).ok()
    }

    /// What it has printed.
    pub(crate) fn printed(&mut self) -> String {
        self.running.printed().0
    }

    fn runc(&self) -> Command {
        let mut runc = quiet("runc");
        runc.arg("--root").arg(self.bundle.path().join("state"));
        runc
    }
}

impl Drop for Started {
    fn drop(&mut self) {
        command::run(self.runc().args(["delete", "--force", &self.id]));
    }
}
