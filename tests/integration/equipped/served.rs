//! Engines that have a daemon of their own (Docker, Incus, and containerd by ctr and by the Container
//! Runtime Interface), and systemd-nspawn.
//!
//! The daemons are those that `tests/guest/fetch` has unpacked, and run in a folder of the test. Each serves all rows of a test. Their containers are in `pod.rs`.
//! Start reading at [`Served::new`].

use std::fs;
use std::os::unix::fs::PermissionsExt;
use std::path::{Path, PathBuf};
use std::process::Command;
use std::time::{Duration, Instant};

use rustix::process::Signal;
use serde_json::json;
use tempfile::TempDir;

use super::engine::Covered;
use super::{drop_in, wrapper};
use crate::harness::cgroup::{self, Cgroup, Limits};
use crate::harness::command::{self, Running, quiet};
use crate::harness::daemon::{Place, readable_dir};
use crate::harness::{machine, oci};

pub(super) const IMAGE: &str = "localhost/base:1";
const CNI: &str = r#"{"cniVersion":"0.4.0","name":"none","plugins":[{"type":"none"}]}"#;
/// A network of which only the kubelet would see that it is none.
const PLUGIN: &str = r#"#!/bin/sh
echo '{"cniVersion":"0.4.0","interfaces":[{"name":"eth0","sandbox":"/none"}],
    "ips":[{"version":"4","interface":0,"address":"192.0.2.2/24"}]}'
"#;

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Client {
    Docker,
    Ctr,
    Cri,
    Nspawn,
    Incus,
}

/// What is executed in a container of Incus.
const INIT: &str = "lxc.init.cmd = /bin/sh /pod/init";

/// Where containerd keeps the networks of pods.
const NETWORKS: &str = "/var/lib/cni";

/// An engine, its daemon, and the root of its containers.
pub(super) struct Served {
    pub(super) client: Client,
    /// The programs of the engine.
    programs: PathBuf,
    folder: TempDir,
    /// That of all containers.
    pub(super) root: TempDir,
    daemon: Option<Running>,
    /// Containers have the runtime that is ambit.
    pub(super) is_wrapped: bool,
    covered: Vec<Covered>,
    /// The cgroups of its containers: removed at the end, because others have the same name.
    _parents: Vec<Cgroup>,
}

impl Served {
    /// Starts the daemon of a client, with the programs of this release of Debian.
    #[track_caller]
    pub(super) fn new(client: Client, suite: &str) -> Self {
        machine::needs(&["runc", "systemd-nspawn", "mksquashfs", "squashfuse"]);
        let parents = match client {
            Client::Docker => &["docker"][..],
            Client::Ctr | Client::Cri => &["default", "kubepods"],
            Client::Nspawn | Client::Incus => &[],
        };
        let parents = parents.iter().map(|name| Cgroup::new(name, Limits::default()));
        let mut served = Self {
            client,
            programs: PathBuf::new(),
            folder: readable_dir(),
            root: oci::root(),
            daemon: None,
            is_wrapped: false,
            covered: Vec::new(),
            _parents: parents.collect(),
        };
        fs::copy("/bin/busybox", served.root.path().join("busybox")).unwrap();
        for name in ["logs", "first"] {
            fs::create_dir(served.path(name)).unwrap();
        }
        match client {
            Client::Docker => {
                served.programs = fetched("engines", suite).join("usr/bin");
                served.start_docker();
            }
            Client::Ctr | Client::Cri => {
                served.programs = fetched("engines", suite).join("usr/bin");
                served.start_containerd();
            }
            Client::Incus => served.start_incus(&fetched("incus", suite)),
            Client::Nspawn => {}
        }
        served
    }

    /// The same daemon for another client. Only containerd has two.
    pub(super) fn set_client(&mut self, client: Client) {
        self.client = client;
    }

    /// The version of the engine.
    pub(super) fn version(&self) -> String {
        if self.client == Client::Incus {
            return command::run(self.client().arg("--version")).ok().trim().to_owned();
        }
        let (name, option) = match self.client {
            Client::Docker => ("dockerd", "--version"),
            Client::Ctr | Client::Cri => ("containerd", "--version"),
            _ => ("systemd-nspawn", "--version"),
        };
        let said = command::run(self.program(name).arg(option)).ok();
        let is_version = |word: &&str| word.starts_with(|first: char| first.is_ascii_digit());
        let version = said.split_whitespace().find(is_version).unwrap_or("?");
        version.split(['+', '~', ',']).next().unwrap().to_owned()
    }

    pub(super) fn path(&self, name: &str) -> String {
        self.folder.path().join(name).display().to_string()
    }

    pub(super) fn write(&self, name: &str, text: &str, mode: u32) -> String {
        let path = self.path(name);
        fs::create_dir_all(Path::new(&path).parent().unwrap()).unwrap();
        fs::write(&path, text).unwrap();
        fs::set_permissions(&path, fs::Permissions::from_mode(mode)).unwrap();
        path
    }

    /// A program of the engine, which finds the others of it, and before them those in `first`.
    pub(super) fn program(&self, name: &str) -> Command {
        let path = std::env::var("PATH").unwrap_or_default();
        let mut program = quiet("env");
        let (first, programs) = (self.path("first"), self.programs.display());
        program.arg(format!("PATH={first}:{programs}:{path}")).arg(name);
        program
    }

    /// Starts the daemon, and waits until it answers.
    #[track_caller]
    fn serve(&mut self, command: &mut Command, question: &[&str]) {
        self.daemon = Some(command::start(command));
        let until = Instant::now() + machine::patience(30);
        while command::run(self.client().args(question)).status != 0 {
            let daemon = self.daemon.as_mut().unwrap();
            assert!(Instant::now() < until && !daemon.ended(), "{:?}", daemon.printed());
            std::thread::sleep(Duration::from_millis(20));
        }
    }

    /// The command line of the engine.
    pub(super) fn client(&self) -> Command {
        match self.client {
            Client::Docker => {
                let mut docker = self.program("docker");
                docker.arg("--host").arg(format!("unix://{}", self.path("sock")));
                docker
            }
            Client::Incus => {
                let pid = self.daemon.as_ref().unwrap().pid();
                let mut incus = quiet("nsenter");
                incus.arg(format!("--mount=/proc/{pid}/ns/mnt")).arg("--wd=/");
                incus.args(["env", "PATH=/usr/sbin:/usr/bin", "incus"]);
                incus
            }
            _ => self.ctr(if self.client == Client::Ctr { "default" } else { "k8s.io" }),
        }
    }

    fn ctr(&self, namespace: &str) -> Command {
        let mut ctr = self.program("ctr");
        ctr.args(["--address", &self.path("sock"), "--namespace", namespace]);
        ctr
    }

    pub(super) fn cri(&self) -> Command {
        let mut cri = quiet(concat!(env!("CARGO_MANIFEST_DIR"), "/tests/programs/cri.py"));
        cri.arg(self.path("sock"));
        cri
    }

    /// Containers have user namespaces, unless they are started with that of the host.
    #[track_caller]
    fn start_docker(&mut self) {
        // Docker 20.10 looks for groups by the name of the user, newer ones by that of the group.
        let ids = self.write("ids", "nobody:100000:65536\nnogroup:100000:65536\n", 0o644);
        for file in ["/etc/subuid", "/etc/subgid"] {
            self.covered.push(Covered::by(Path::new(&ids), file));
        }
        self.write("daemon.json", "{}", 0o644);
        let mut serve = self.program("dockerd");
        serve.args(["--bridge=none", "--iptables=false", "--storage-driver=overlay2"]);
        serve.args(["--default-ulimit=nofile=1024:1024", "--userns-remap=nobody:nogroup"]);
        serve.arg(format!("--config-file={}", self.path("daemon.json")));
        serve.arg(format!("--data-root={}", self.path("data")));
        serve.arg(format!("--exec-root={}", self.path("exec")));
        serve.arg(format!("--pidfile={}", self.path("pid")));
        serve.arg(format!("--host=unix://{}", self.path("sock")));
        serve.arg(format!("--cgroup-parent={}/docker", cgroup::base()));
        self.serve(&mut serve, &["version"]);
        let image = self.path("image");
        command::run(quiet("tar").arg("-C").arg(self.root.path()).args(["-cf", &image, "."])).ok();
        command::run(self.client().args(["import", &image, IMAGE])).ok();
    }

    #[track_caller]
    fn start_containerd(&mut self) {
        for name in ["cni/bin/none", "cni/bin/loopback"] {
            self.write(name, PLUGIN, 0o755);
        }
        self.write("cni/conf/none.conflist", CNI, 0o644);
        fs::create_dir_all(NETWORKS).unwrap();
        fs::create_dir(self.path("networks")).unwrap();
        self.covered.push(Covered::by(Path::new(&self.path("networks")), NETWORKS));
        let folder = self.folder.path().display();
        let config = format!(
            "version = 2\nroot = \"{folder}/root\"\nstate = \"{folder}/state\"\n\
             [grpc]\naddress = \"{folder}/sock\"\n\
             [plugins.\"io.containerd.grpc.v1.cri\"]\n\
             sandbox_image = \"{IMAGE}\"\nrestrict_oom_score_adj = true\n\
             [plugins.\"io.containerd.grpc.v1.cri\".cni]\n\
             bin_dir = \"{folder}/cni/bin\"\nconf_dir = \"{folder}/cni/conf\"\n\
             [plugins.\"io.containerd.grpc.v1.cri\".containerd.runtimes.runc]\n\
             runtime_type = \"io.containerd.runc.v2\"\n\
             [plugins.\"io.containerd.grpc.v1.cri\".containerd.runtimes.ambit]\n\
             runtime_type = \"io.containerd.runc.v2\"\n\
             [plugins.\"io.containerd.grpc.v1.cri\".containerd.runtimes.ambit.options]\n\
             BinaryName = \"{folder}/runc\"\n"
        );
        let config = self.write("config.toml", &config, 0o644);
        let mut serve = self.program("containerd");
        serve.args(["--config", &config]);
        self.serve(&mut serve, &["version"]);
        let image = self.path("image");
        let mut archive = quiet(concat!(env!("CARGO_MANIFEST_DIR"), "/tests/programs/cri.py"));
        archive.arg("archive").arg(self.root.path()).args([IMAGE, &image]);
        command::run(&mut archive).ok();
        for namespace in ["default", "k8s.io"] {
            let mut import = self.ctr(namespace);
            command::run(import.args(["images", "import", &image])).ok();
        }
    }

    /// The profile of its containers binds what all have into them.
    #[track_caller]
    fn start_incus(&mut self, tree: &Path) {
        let settings = json!({
            "storage_pools": [{ "name": "default", "driver": "dir" }],
            "profiles": [{ "name": "default", "config": { "raw.lxc": INIT }, "devices": {
                "root": { "type": "disk", "path": "/", "pool": "default" },
                "usr": { "type": "disk", "path": "/usr", "source": "/host", "readonly": "true" },
                "programs": { "type": "disk", "path": "/mnt", "source": machine::programs(),
                    "readonly": "true" },
            } }],
        });
        let mut serve = quiet(concat!(env!("CARGO_MANIFEST_DIR"), "/tests/programs/incusd.sh"));
        serve.arg(tree).arg(env!("CARGO_MANIFEST_DIR"));
        self.serve(&mut serve, &["info"]);
        let settings = self.write("settings", &settings.to_string(), 0o644);
        let settings = fs::File::open(settings).unwrap();
        command::run(self.client().args(["admin", "init", "--preseed"]).stdin(settings)).ok();
        self.write("metadata.yaml", "architecture: x86_64\ncreation_date: 1\n", 0o644);
        let image = self.path("image");
        let mut pack = quiet("tar");
        pack.args(["-cf", &image, "-C"]).arg(self.folder.path()).arg("metadata.yaml");
        pack.arg("-C").arg(self.root.path()).args(["--transform=s,^[.],rootfs,", "."]);
        command::run(&mut pack).ok();
        command::run(self.client().args(["image", "import", &image, "--alias", "base"])).ok();
    }

    /// Has Incus start `ambit lxcfs` for each container.
    #[track_caller]
    pub(super) fn replace_lxcfs(&self) {
        let pid = self.daemon.as_ref().unwrap().pid();
        let program = PathBuf::from(format!("/proc/{pid}/root/usr/bin/lxcfs"));
        fs::remove_file(&program).unwrap();
        std::os::unix::fs::symlink(machine::AMBIT, program).unwrap();
        let mut set = self.client();
        command::run(set.args(["config", "set", "instances.lxcfs.per_instance", "true"])).ok();
    }

    /// Has `ambit drop-in lxc` in common.conf.d, and the listener of ambit in the default profile.
    #[track_caller]
    fn drop_in(&self, place: &Place) {
        let pid = self.daemon.as_ref().unwrap().pid();
        let root = PathBuf::from(format!("/proc/{pid}/root"));
        let text = drop_in(place, "lxc");
        fs::write(root.join("usr/share/lxc/config/common.conf.d/ambit.conf"), &text).unwrap();
        let is_profile = |line: &&str| line.starts_with("lxc.seccomp");
        let lines: Vec<_> = [INIT].into_iter().chain(text.lines().filter(is_profile)).collect();
        let mut set = self.client();
        set.args(["profile", "set", "default", "raw.lxc", &lines.join("\n")]);
        command::run(&mut set).ok();
    }

    /// From now on containers are equipped by `ambit oci-runtime` in the place of their runtime, or by
    /// the drop-in and the profile of Incus, with this daemon of ambit.
    #[track_caller]
    pub(super) fn wrap(&mut self, place: &Place) {
        self.is_wrapped = true;
        if self.client == Client::Incus {
            return self.drop_in(place);
        }
        let path = self.write("runc", &wrapper(place, "runc"), 0o755);
        if self.client == Client::Docker {
            let runtimes = json!({ "ambit": { "path": path } });
            let keys = json!({ "runtimes": runtimes, "default-runtime": "ambit" });
            self.write("daemon.json", &keys.to_string(), 0o644);
            self.daemon.as_ref().unwrap().signal(Signal::HUP);
            let until = Instant::now() + machine::patience(20);
            let mut info = self.client();
            info.args(["info", "--format", "{{.DefaultRuntime}}"]);
            while command::run(&mut info).ok().trim() != "ambit" {
                assert!(Instant::now() < until, "the default runtime stays");
            }
        }
    }
}

/// A folder that `tests/guest/fetch` has made.
#[track_caller]
pub(super) fn fetched(part: &str, suite: &str) -> PathBuf {
    let cache = std::env::var("AMBIT_VM_CACHE");
    let cache = cache.unwrap_or_else(|_| "/var/cache/ambit-vm".to_owned());
    let folder = Path::new(&cache).join(format!("{part}-{suite}"));
    let is_there = folder.join("version").exists();
    assert!(is_there, "{suite} is missing; run tests/guest/fetch {part} {suite}");
    folder
}

impl Drop for Served {
    fn drop(&mut self) {
        let Some(daemon) = self.daemon.take() else { return };
        // It is killed if a test fails.
        if !std::thread::panicking() {
            daemon.signal(Signal::TERM);
            daemon.finish(machine::patience(30));
        }
    }
}
