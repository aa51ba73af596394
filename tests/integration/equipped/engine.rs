//! The engines: starting a container as their users do, running something in it, ending it.
//!
//! The machine's folders of drop-ins are covered by others with those of the daemon under test, in
//! the mount namespace of the tests, until the container ends.

use std::fmt;
use std::fs;
use std::os::unix::fs::PermissionsExt;
use std::path::{Path, PathBuf};
use std::process::Command;
use std::sync::atomic::{AtomicU32, Ordering};

use rustix::mount::{UnmountFlags, mount_bind, unmount};
use serde_json::{Value, json};
use tempfile::TempDir;

use super::{drop_in, wrapper};
use crate::harness::command::{self, Running, quiet};
use crate::harness::daemon::{Daemon, Place, readable_dir};
use crate::harness::{cgroup, machine, oci};

/// The CDI device.
pub(super) const DEVICE: &str = "--device=ambit/view=all";

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Engine {
    Lxc,
    Runc,
    Crun,
    /// `ambit oci-runtime`, with a bundle that has neither hook nor profile.
    WrappedRunc,
    WrappedCrun,
    PodmanRunc,
    PodmanCrun,
}

impl fmt::Display for Engine {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::Lxc => "lxc",
            Self::Runc => "runc",
            Self::Crun => "crun",
            Self::WrappedRunc => "ambit+runc",
            Self::WrappedCrun => "ambit+crun",
            Self::PodmanRunc => "podman+runc",
            Self::PodmanCrun => "podman+crun",
        })
    }
}

impl Engine {
    #[track_caller]
    pub(super) fn needs(self) {
        machine::program("ambit-verify");
        machine::needs(match self {
            Self::Lxc => &["lxc-execute", "lxc-attach", "lxc-info", "newuidmap"],
            Self::Runc | Self::WrappedRunc => &["runc"],
            Self::Crun | Self::WrappedCrun => &["crun", "unshare"],
            Self::PodmanRunc => &["podman", "conmon", "runc"],
            Self::PodmanCrun => &["podman", "conmon", "crun", "unshare"],
        });
    }

    fn runtime(self) -> &'static str {
        match self {
            Self::Runc | Self::WrappedRunc | Self::PodmanRunc => "runc",
            _ => "crun",
        }
    }

    fn is_podman(self) -> bool {
        matches!(self, Self::PodmanRunc | Self::PodmanCrun)
    }

    fn is_wrapped(self) -> bool {
        matches!(self, Self::WrappedRunc | Self::WrappedCrun)
    }
}

/// A container that runs.
pub(super) struct Container {
    engine: Engine,
    name: String,
    folder: TempDir,
    _root: TempDir,
    covered: Vec<Covered>,
    running: Option<Running>,
}

/// A folder of the machine that another one covers.
pub(super) struct Covered(PathBuf);

impl Covered {
    #[track_caller]
    pub(super) fn by(folder: &Path, place: &str) -> Self {
        mount_bind(folder, place).unwrap_or_else(|error| panic!("{place}: {error}"));
        Self(place.into())
    }
}

impl Drop for Covered {
    fn drop(&mut self) {
        let _ = unmount(&self.0, UnmountFlags::DETACH);
    }
}

impl Container {
    /// Starts a container with 160 MiB and one processor that runs this script.
    #[track_caller]
    pub(super) fn start(engine: Engine, daemon: &Daemon, script: &str) -> Self {
        Self::start_at(engine, daemon.place(), script)
    }

    /// The same where a daemon may run.
    #[track_caller]
    pub(super) fn start_at(engine: Engine, place: &Place, script: &str) -> Self {
        Self::start_with(engine, place, &[], script)
    }

    /// The same with options of Podman. With a CDI device there is no hook in hooks.d.
    #[track_caller]
    pub(super) fn start_with(
        engine: Engine,
        place: &Place,
        options: &[&str],
        script: &str,
    ) -> Self {
        static NEXT: AtomicU32 = AtomicU32::new(0);
        let name = format!("equipped-{}", NEXT.fetch_add(1, Ordering::Relaxed));
        let (folder, root) = (readable_dir(), oci::root());
        let mut container =
            Self { engine, name, folder, _root: root, covered: Vec::new(), running: None };
        let mut start = match engine {
            Engine::Lxc => container.lxc(place, script),
            Engine::PodmanRunc | Engine::PodmanCrun => container.podman(place, options, script),
            _ => container.bundle(place, script),
        };
        container.running = Some(command::start(&mut start));
        container
    }

    #[track_caller]
    pub(super) fn wait_for(&mut self, text: &str) {
        self.running.as_mut().unwrap().wait_for(text, machine::patience(60));
    }

    /// What its first process has printed.
    pub(super) fn printed(&mut self) -> String {
        let (stdout, stderr) = self.running.as_mut().unwrap().printed();
        stdout + &stderr
    }

    /// Runs a script in it as another process.
    #[track_caller]
    pub(super) fn exec(&self, script: &str) -> String {
        for _ in 0..20 {
            let said = command::run(self.exec_command().args(["sh", "-c", script]));
            // In liblxc 5.0 two processes of lxc-attach write to one socket: if the one with the
            // listener is first, nothing is executed, and nothing is printed.
            if self.engine != Engine::Lxc || said.status != 1 || !said.stdout.is_empty() {
                return said.stdout + &said.stderr;
            }
        }
        panic!("lxc-attach executes nothing");
    }

    fn exec_command(&self) -> Command {
        if self.engine == Engine::Lxc {
            let mut exec = quiet("lxc-attach");
            exec.arg("-P").arg(self.state()).args(["-n", &self.name, "--"]);
            return exec;
        }
        let mut exec = self.command();
        exec.args(["exec", &self.name]);
        exec
    }

    /// Its first process.
    #[track_caller]
    pub(super) fn pid(&self) -> u32 {
        let mut ask = match self.engine {
            Engine::Lxc => {
                let mut ask = quiet("lxc-info");
                ask.arg("-P").arg(self.state()).args(["-n", &self.name, "-pH"]);
                ask
            }
            Engine::PodmanRunc | Engine::PodmanCrun => {
                let mut ask = self.command();
                ask.args(["inspect", "--format", "{{.State.Pid}}", &self.name]);
                ask
            }
            _ => {
                let mut ask = self.command();
                ask.args(["state", &self.name]);
                ask
            }
        };
        let said = command::run(&mut ask).ok();
        let number = serde_json::from_str::<Value>(&said).map_or_else(
            |_| said.trim().parse().ok(),
            |said| said["pid"].as_u64().or(said.as_u64()),
        );
        u32::try_from(number.unwrap_or_else(|| panic!("no process: {said}"))).unwrap()
    }

    /// Kills and removes it.
    #[track_caller]
    pub(super) fn end(mut self) {
        self.remove();
    }

    fn remove(&mut self) {
        let Some(running) = self.running.take() else { return };
        let mut remove = match self.engine {
            Engine::Lxc => {
                let mut stop = quiet("lxc-stop");
                stop.arg("-P").arg(self.state()).args(["-k", "-n", &self.name]);
                stop
            }
            Engine::PodmanRunc | Engine::PodmanCrun => {
                let mut remove = self.command();
                remove.args(["rm", "--force", "--time", "0", &self.name]);
                remove
            }
            _ => {
                let mut delete = self.command();
                delete.args(["delete", "--force", &self.name]);
                delete
            }
        };
        command::run(&mut remove);
        running.finish(machine::patience(30));
        self.covered.clear();
    }

    fn state(&self) -> PathBuf {
        self.folder.path().join("state")
    }

    /// The engine's command.
    fn command(&self) -> Command {
        let runtime = self.engine.runtime();
        if self.engine.is_podman() {
            return without_unified("podman", runtime);
        }
        let wrapper = self.folder.path().join("bin").join(runtime);
        let program = if self.engine.is_wrapped() { wrapper.to_str().unwrap() } else { runtime };
        let mut command = without_unified(program, runtime);
        command.arg("--root").arg(self.state());
        command
    }

    /// Programs with the names of runtimes that are `ambit oci-runtime` with this daemon. The links of
    /// the package have no arguments, and so use the machine's configuration.
    fn wrappers(&self, place: &Place) -> PathBuf {
        for runtime in ["runc", "crun"] {
            let script = wrapper(place, runtime);
            let path = self.write(&format!("bin/{runtime}"), &script);
            fs::set_permissions(path, fs::Permissions::from_mode(0o755)).unwrap();
        }
        self.folder.path().join("bin")
    }

    fn write(&self, name: &str, text: &str) -> PathBuf {
        let path = self.folder.path().join(name);
        fs::create_dir_all(path.parent().unwrap()).unwrap();
        fs::write(&path, text).unwrap();
        path
    }

    /// The configuration includes common.conf, as that of every distribution does.
    #[track_caller]
    fn lxc(&mut self, place: &Place, script: &str) -> Command {
        self.write("common.conf.d/ambit.conf", &drop_in(place, "lxc"));
        self.covered.push(Covered::by(
            &self.folder.path().join("common.conf.d"),
            "/usr/share/lxc/config/common.conf.d",
        ));
        fs::create_dir(self.state()).unwrap();
        let mut config = format!(
            "lxc.include = /usr/share/lxc/config/common.conf\n\
             lxc.include = /usr/share/lxc/config/userns.conf\n\
             lxc.uts.name = test\nlxc.rootfs.path = dir:{root}\n\
             lxc.idmap = u 0 100000 65536\nlxc.idmap = g 0 100000 65536\n\
             lxc.net.0.type = empty\n\
             lxc.apparmor.profile = unconfined\nlxc.apparmor.allow_incomplete = 1\n\
             lxc.mount.entry = /usr usr none rbind,ro 0 0\n\
             lxc.mount.entry = {programs} mnt none bind,ro 0 0\n\
             lxc.mount.entry = tmpfs tmp tmpfs mode=1777 0 0\n\
             lxc.environment = PATH=/usr/sbin:/usr/bin:/sbin:/bin\n",
            root = self._root.path().display(),
            programs = machine::programs().display(),
        );
        config += if cgroup::memory_is_v2() {
            "lxc.cgroup2.memory.max = 160M\nlxc.cgroup2.cpu.max = 100000 100000\n"
        } else {
            "lxc.cgroup.memory.limit_in_bytes = 160M\nlxc.cgroup.cpu.cfs_quota_us = 100000\n"
        };
        let config = self.write("config", &config);
        let mut start = quiet("lxc-execute");
        start.arg("-P").arg(self.state()).args(["-n", &self.name, "-l", "WARN", "-o"]);
        start.arg(self.folder.path().join("log")).arg("-f").arg(config);
        start.args(["--", "sh", "-c", script]);
        start
    }

    /// The bundle has the hook and the profile, or the runtime is the wrapper.
    #[track_caller]
    fn bundle(&mut self, place: &Place, script: &str) -> Command {
        let container = oci::Container { memory: 160 << 20, quota: 100_000, userns: false, script };
        let mut config = oci::plain_config(container, &Value::Null, self._root.path(), &self.name);
        if self.engine.is_wrapped() {
            self.wrappers(place);
        } else {
            let hooks: Value = serde_json::from_str(&drop_in(place, "hooks")).unwrap();
            let profile = place.ambit(&["profile", "--for", "oci"]).ok();
            config["linux"]["seccomp"] = serde_json::from_str(&profile).unwrap();
            config["hooks"] = json!({ "createContainer": [hooks["hook"]] });
        }
        self.write("bundle/config.json", &config.to_string());
        let mut start = self.command();
        start.arg("run").arg("--bundle").arg(self.folder.path().join("bundle")).arg(&self.name);
        start
    }

    /// The folders of drop-ins have the hook and the runtimes.
    #[track_caller]
    fn podman(&mut self, place: &Place, options: &[&str], script: &str) -> Command {
        const SHARE: &str = "/usr/share/containers";
        let base = fs::read_to_string(format!("{SHARE}/seccomp.json")).unwrap();
        self.write("share/seccomp.json", &base);
        if options.contains(&DEVICE) {
            fs::create_dir_all("/run/cdi").unwrap();
            fs::write("/run/cdi/ambit.json", drop_in(place, "cdi")).unwrap();
        } else {
            self.write("share/oci/hooks.d/ambit.json", &drop_in(place, "hooks"));
        }
        let wrappers = self.wrappers(place);
        let conf = drop_in(place, "containers");
        // The programs are beside the one that prints the file.
        let installed = Path::new(machine::AMBIT).ancestors().nth(2).unwrap().join("libexec/ambit");
        assert!(conf.contains(installed.to_str().unwrap()), "{conf}");
        let conf = conf.replace(installed.to_str().unwrap(), wrappers.to_str().unwrap());
        self.write("etc/containers.conf.d/ambit.conf", &conf);
        let runtime = self.engine.runtime();
        let own = format!(
            "[engine]\ncgroup_manager = \"cgroupfs\"\nevents_logger = \"file\"\nruntime = \"{runtime}\"\n\
             [containers]\nnetns = \"none\"\nlog_driver = \"k8s-file\"\n"
        );
        self.write("etc/containers.conf.d/test.conf", &own);
        self.write("etc/policy.json", "{\"default\":[{\"type\":\"insecureAcceptAnything\"}]}");
        self.covered.push(Covered::by(&self.folder.path().join("share"), SHARE));
        self.covered.push(Covered::by(&self.folder.path().join("etc"), "/etc/containers"));
        let mut start = self.command();
        start.args(["run", "--name", &self.name, "--cgroup-parent", &cgroup::base()]);
        start.args(["--memory", "160m", "--cpus", "1", "--volume", "/usr:/usr:ro", "--volume"]);
        start.arg(format!("{}:/mnt:ro", machine::programs().display()));
        start.args(options).args(["--env", "PATH=/usr/sbin:/usr/bin:/sbin:/bin", "--rootfs"]);
        start.arg(self._root.path()).args(["sh", "-c", script]);
        start
    }
}

impl Drop for Container {
    fn drop(&mut self) {
        self.remove();
    }
}

/// crun refuses hosts where v1 and v2 both have controllers: it gets a mount namespace without the
/// v2 hierarchy.
fn without_unified(program: &str, runtime: &str) -> Command {
    if runtime != "crun" || cgroup::memory_is_v2() {
        return quiet(program);
    }
    let mut command = quiet("unshare");
    command.args(["--mount", "--propagation=private", "sh", "-c"]);
    command.arg("umount /sys/fs/cgroup/unified 2>/dev/null; exec \"$0\" \"$@\"").arg(program);
    command
}
