//! A container of an engine that is served: starting it as the users of the engine do, running
//! something in it, removing it. Start reading at `Served::start`.

use std::fs;
use std::os::unix::fs::PermissionsExt;
use std::sync::atomic::{AtomicU32, Ordering};
use std::time::{Duration, Instant};

use rustix::process::Signal;
use serde_json::json;

use super::served::{Client, IMAGE, Served};
use crate::harness::cgroup::{self, Cgroup, Limits};
use crate::harness::command::{self, Running, quiet};
use crate::harness::machine;

const PATH: &str = "/usr/sbin:/usr/bin:/sbin:/bin";
const MEMORY: u64 = 160 << 20;

/// What a container is given beside its limits.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Kind {
    Plain,
    /// A user namespace, and the right to mount there.
    Users,
    Privileged,
}

/// A container that runs.
pub(super) struct Pod<'a> {
    served: &'a Served,
    id: String,
    /// The pod of the Container Runtime Interface.
    pod: String,
    running: Option<Running>,
    _service: Option<Cgroup>,
}

impl Served {
    /// Starts a container with 160 MiB and one processor that runs this script.
    #[track_caller]
    pub(super) fn start(&self, kind: Kind, script: &str) -> Pod<'_> {
        static NEXT: AtomicU32 = AtomicU32::new(0);
        let id = format!("served-{}", NEXT.fetch_add(1, Ordering::Relaxed));
        let programs = machine::programs().display().to_string();
        let mut pod = Pod { served: self, id, pod: String::new(), running: None, _service: None };
        match self.client {
            Client::Docker => {
                let mut run = self.client();
                run.args(["run", "--detach", "--name", &pod.id, "--network=none", "--cpus=1"]);
                run.args(["--memory=160m", "--volume=/usr:/usr:ro"]);
                run.arg(format!("--volume={programs}:/mnt:ro"));
                run.args(match kind {
                    Kind::Plain => &["--userns=host"][..],
                    Kind::Users => &["--cap-add=SYS_ADMIN"],
                    Kind::Privileged => &["--userns=host", "--privileged"],
                });
                command::run(run.args([IMAGE, "sh", "-c", script])).ok();
            }
            Client::Ctr => self.start_by_ctr(&pod.id, kind, script),
            Client::Cri => (pod.pod, pod.id) = self.start_by_cri(&pod.id, kind, script),
            Client::Nspawn => {
                // As systemd makes it for systemd-nspawn@.service.
                let limits =
                    Limits { memory: Some(MEMORY), quota: Some(100_000), ..Limits::default() };
                let service = Cgroup::new(&format!("systemd-nspawn@{}.service", pod.id), limits);
                let mut run = service.run("exec \"$0\" \"$@\"");
                run.args([
                    "systemd-nspawn",
                    "--quiet",
                    "--keep-unit",
                    "--register=no",
                    "--bind-ro=/usr",
                ]);
                run.arg(format!("--bind-ro={programs}:/mnt")).arg(format!("--machine={}", pod.id));
                run.arg(format!("--setenv=PATH={PATH}")).arg("--directory").arg(self.root.path());
                // As with a network of its own: then its /sys is a tmpfs with folders of a sysfs.
                if kind == Kind::Users {
                    run.args(["--private-users=100000:65536", "--private-users-ownership=off"]);
                    run.arg("--private-network");
                }
                pod.running = Some(command::start(run.args(["sh", "-c", script])));
                pod._service = Some(service);
            }
            Client::Incus => {
                let folder = format!("pods/{}", pod.id);
                let init = format!("export PATH={PATH}; exec >/pod/said 2>&1\n{script}");
                self.write(&format!("{folder}/init"), &init, 0o644);
                let open_for_all = fs::Permissions::from_mode(0o777);
                fs::set_permissions(self.path(&folder), open_for_all).unwrap();
                let mut init = self.client();
                init.args(["init", "base", &pod.id, "--config=limits.memory=160MiB"]);
                init.arg("--config=limits.cpu.allowance=100ms/100ms");
                if kind == Kind::Privileged {
                    init.arg("--config=security.privileged=true");
                }
                command::run(&mut init).ok();
                let mut add = self.client();
                add.args(["config", "device", "add", &pod.id, "pod", "disk", "path=/pod"]);
                command::run(add.arg(format!("source={}", self.path(&folder)))).ok();
                command::run(self.client().args(["start", &pod.id])).ok();
            }
        }
        pod
    }

    #[track_caller]
    fn start_by_ctr(&self, id: &str, kind: Kind, script: &str) {
        let programs = machine::programs().display().to_string();
        let mut run = self.client();
        run.args(["run", "--detach", "--cpus=1"]);
        run.arg(format!("--memory-limit={MEMORY}")).arg(format!("--env=PATH={PATH}"));
        run.arg(format!("--log-uri=file://{}", self.path(id)));
        run.arg(format!("--cgroup={}/default/{}", cgroup::base(), id));
        for (from, to) in [("/usr", "/usr"), (&*programs, "/mnt")] {
            run.arg(format!("--mount=type=bind,src={from},dst={to},options=rbind:ro"));
        }
        // A user namespace needs an image whose files get other owners.
        let rights = ["--cap-add=CAP_SYS_ADMIN", "--uidmap=0:100000:65536"];
        match kind {
            Kind::Plain => run.arg("--rootfs"),
            Kind::Users => run.args(rights).arg("--gidmap=0:100000:65536"),
            Kind::Privileged => run.args(["--rootfs", "--privileged"]),
        };
        if self.is_wrapped {
            run.arg(format!("--runc-binary={}", self.path("runc")));
        }
        // ctr ignores that option beside a mapping.
        let _ = fs::remove_file(self.path("first/runc"));
        if self.is_wrapped && kind == Kind::Users {
            std::os::unix::fs::symlink(self.path("runc"), self.path("first/runc")).unwrap();
        }
        match kind {
            Kind::Users => run.arg(IMAGE),
            _ => run.arg(self.root.path()),
        };
        command::run(run.args([id, "sh", "-c", script])).ok();
    }

    /// Returns the ids of the pod and of the container.
    #[track_caller]
    fn start_by_cri(&self, id: &str, kind: Kind, script: &str) -> (String, String) {
        let programs = machine::programs().display().to_string();
        let given = json!({
            "name": id,
            "image": IMAGE,
            "privileged": kind == Kind::Privileged,
            "users": kind == Kind::Users,
            "rights": if kind == Kind::Users { &["SYS_ADMIN"][..] } else { &[] },
            "logs": self.path("logs"),
            "cgroup": format!("{}/kubepods/pod{}", cgroup::base(), id),
            "handler": if self.is_wrapped { "ambit" } else { "runc" },
            "memory": MEMORY,
            "quota": 100_000,
            "environment": { "PATH": PATH },
            "mounts": { "/usr": "/usr", "/mnt": programs },
            "command": ["sh", "-c", script],
        });
        let _ = fs::remove_file(self.path("logs/log"));
        let said = command::run(self.cri().args(["run", &given.to_string()])).ok();
        let (sandbox, container) = said.trim().split_once(' ').unwrap();
        (sandbox.to_owned(), container.to_owned())
    }
}

impl Pod<'_> {
    /// What its first process has printed.
    pub(super) fn printed(&mut self) -> String {
        let served = self.served;
        match served.client {
            Client::Docker => {
                let said = command::run(served.client().args(["logs", &self.id]));
                said.stdout + &said.stderr
            }
            Client::Ctr => fs::read_to_string(served.path(&self.id)).unwrap_or_default(),
            Client::Cri => {
                let log = fs::read_to_string(served.path("logs/log")).unwrap_or_default();
                // Time, stream and tag are before each line.
                let lines = log.lines().filter_map(|line| line.splitn(4, ' ').nth(3));
                lines.map(|line| format!("{line}\n")).collect()
            }
            Client::Incus => {
                let said = format!("pods/{}/said", self.id);
                fs::read_to_string(served.path(&said)).unwrap_or_default()
            }
            Client::Nspawn => {
                let (stdout, stderr) = self.running.as_mut().unwrap().printed();
                stdout + &stderr
            }
        }
    }

    #[track_caller]
    pub(super) fn wait_for(&mut self, text: &str) -> String {
        let until = Instant::now() + machine::patience(60);
        loop {
            let said = self.printed();
            if said.contains(text) {
                return said;
            }
            assert!(
                Instant::now() < until,
                "{:?} did not print {text}: {said}",
                self.served.client
            );
            std::thread::sleep(Duration::from_millis(20));
        }
    }

    /// Runs a script in it as another process.
    #[track_caller]
    pub(super) fn exec(&self, script: &str) -> String {
        static NEXT: AtomicU32 = AtomicU32::new(0);
        let mut exec = match self.served.client {
            Client::Docker => {
                let mut exec = self.served.client();
                exec.arg("exec");
                exec
            }
            Client::Ctr => {
                let mut exec = self.served.client();
                let number = NEXT.fetch_add(1, Ordering::Relaxed).to_string();
                exec.args(["tasks", "exec", "--exec-id", &number]);
                exec
            }
            Client::Cri => {
                let mut exec = self.served.cri();
                exec.arg("exec");
                exec
            }
            Client::Incus => {
                let mut exec = self.served.client();
                exec.args(["exec", &self.id, "--env", &format!("PATH={PATH}"), "--"]);
                exec
            }
            Client::Nspawn => {
                // machinectl(1) needs systemd.
                let mut exec = quiet("nsenter");
                exec.args(["--all", "--target", &self.pid().to_string()]);
                exec
            }
        };
        if !matches!(self.served.client, Client::Nspawn | Client::Incus) {
            exec.arg(&self.id);
        }
        exec.args(["sh", "-c", script]);
        let mut said = command::run(&mut exec);
        // In liblxc two processes of an attach write to one socket: if the one with the listener is
        // first, nothing is executed.
        for _ in 0..20 {
            if !said.stderr.contains("Failed to retrieve PID of executing child") {
                break;
            }
            said = command::run(&mut exec);
        }
        said.stdout + &said.stderr
    }

    /// Its first process.
    #[track_caller]
    pub(super) fn pid(&self) -> u32 {
        let mut ask = match self.served.client {
            Client::Docker => {
                let mut ask = self.served.client();
                ask.args(["inspect", "--format", "{{.State.Pid}}", &self.id]);
                ask
            }
            Client::Ctr | Client::Cri => {
                let mut ask = self.served.client();
                ask.args(["tasks", "list"]);
                ask
            }
            Client::Incus => {
                let mut ask = self.served.client();
                ask.args(["list", &self.id, "--format=csv", "--columns=p"]);
                ask
            }
            Client::Nspawn => {
                let mut ask = quiet("pgrep");
                ask.args(["--parent", &self.running.as_ref().unwrap().pid().to_string()]);
                ask
            }
        };
        let said = command::run(&mut ask).ok();
        let mut words = said.split_whitespace();
        if matches!(self.served.client, Client::Ctr | Client::Cri) {
            words.find(|word| *word == self.id);
        }
        let pid = words.next().and_then(|word| word.parse().ok());
        pid.unwrap_or_else(|| panic!("no process of {}: {said}", self.id))
    }
}

impl Drop for Pod<'_> {
    fn drop(&mut self) {
        let served = self.served;
        match served.client {
            Client::Docker => {
                command::run(served.client().args(["rm", "--force", &self.id]));
            }
            Client::Ctr => {
                command::run(served.client().args(["tasks", "rm", "--force", &self.id]));
                command::run(served.client().args(["containers", "rm", &self.id]));
            }
            Client::Cri => {
                command::run(served.cri().args(["remove", &self.pod]));
            }
            Client::Incus => {
                command::run(served.client().args(["delete", "--force", &self.id]));
            }
            Client::Nspawn => {
                let running = self.running.take().filter(|_| !std::thread::panicking());
                if let Some(running) = running {
                    running.signal(Signal::TERM);
                    running.finish(machine::patience(20));
                }
            }
        }
    }
}
