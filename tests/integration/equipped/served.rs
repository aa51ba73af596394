//! Engines that have a daemon of their own (Docker, and containerd by ctr and by the Container
//! Runtime Interface), and systemd-nspawn.
//!
//! The daemons of Docker and containerd are those that `tests/guest/fetch engines` has unpacked, and
//! run in a folder of the test. Each serves all rows of a test. Their containers are in `pod.rs`.
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
use super::wrapper;
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
}

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
            Client::Nspawn => &[],
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
        fs::create_dir(served.folder.path().join("logs")).unwrap();
        if client != Client::Nspawn {
            let cache = std::env::var("AMBIT_VM_CACHE");
            let cache = cache.unwrap_or_else(|_| "/var/cache/ambit-vm".to_owned());
            served.programs = Path::new(&cache).join(format!("engines-{suite}/usr/bin"));
            let is_there = served.programs.join("ctr").exists();
            assert!(is_there, "{suite} is missing; run tests/guest/fetch engines {suite}");
        }
        match client {
            Client::Docker => served.start_docker(),
            Client::Ctr | Client::Cri => served.start_containerd(),
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
        let (name, option) = match self.client {
            Client::Docker => ("dockerd", "--version"),
            Client::Ctr | Client::Cri => ("containerd", "--version"),
            Client::Nspawn => ("systemd-nspawn", "--version"),
        };
        let said = command::run(self.program(name).arg(option)).ok();
        let is_version = |word: &&str| word.starts_with(|first: char| first.is_ascii_digit());
        let version = said.split_whitespace().find(is_version).unwrap_or("?");
        version.split(['+', '~', ',']).next().unwrap().to_owned()
    }

    pub(super) fn path(&self, name: &str) -> String {
        self.folder.path().join(name).display().to_string()
    }

    fn write(&self, name: &str, text: &str, mode: u32) -> String {
        let path = self.path(name);
        fs::create_dir_all(Path::new(&path).parent().unwrap()).unwrap();
        fs::write(&path, text).unwrap();
        fs::set_permissions(&path, fs::Permissions::from_mode(mode)).unwrap();
        path
    }

    /// A program of the engine, which finds the others of it.
    pub(super) fn program(&self, name: &str) -> Command {
        let path = std::env::var("PATH").unwrap_or_default();
        let mut program = quiet("env");
        program.arg(format!("PATH={}:{path}", self.programs.display())).arg(name);
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
            _ => {
                let mut ctr = self.program("ctr");
                let namespace = if self.client == Client::Ctr { "default" } else { "k8s.io" };
                ctr.args(["--address", &self.path("sock"), "--namespace", namespace]);
                ctr
            }
        }
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
        let mut import = self.program("ctr");
        import.args(["--address", &self.path("sock"), "--namespace", "k8s.io"]);
        command::run(import.args(["images", "import", &image])).ok();
    }

    /// From now on the runtime of containers is `ambit oci-runtime`, with this daemon of ambit.
    #[track_caller]
    pub(super) fn wrap(&mut self, place: &Place) {
        self.is_wrapped = true;
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
