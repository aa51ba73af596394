//! `ambit setup` on the files of machines with all engines, with one and with none.

use std::collections::BTreeMap;
use std::fs;
use std::os::unix::fs::{MetadataExt, PermissionsExt, chown, symlink};
use std::path::{Path, PathBuf};

use rustix::mount::{MountFlags, MountPropagationFlags, UnmountFlags};

use crate::harness::command::{Output, quiet, run};
use crate::harness::daemon::readable_dir;
use crate::harness::machine::AMBIT;

const DAEMON: &str = "{\n    \"log-driver\": \"json-file\",\n    \"runtimes\": {\n        \
                      \"nvidia\": { \"args\": [], \"path\": \"nvidia-container-runtime\" }\n    }\n}\n";

/// The root of a machine with these programs.
struct Machine(tempfile::TempDir);

impl Machine {
    fn new(programs: &[&str]) -> Self {
        let machine = Self(readable_dir());
        for program in programs.iter().chain(&["usr/bin/ambit", "usr/libexec/ambit/runc"]) {
            machine.write(program, "");
        }
        machine
    }

    fn with_all_engines() -> Self {
        let machine = Self::new(&[
            "usr/bin/lxc-start",
            "usr/bin/podman",
            "usr/sbin/dockerd",
            "usr/bin/containerd",
            "usr/bin/crio",
            "usr/libexec/incus/incusd",
            "usr/bin/lxd",
            "usr/sbin/pct",
            "usr/bin/systemd-nspawn",
        ]);
        machine.write("etc/docker/daemon.json", DAEMON);
        machine.write("etc/containerd/config.toml", "version = 2\n\n[plugins]\n");
        machine.write("etc/ambit/ambit.toml", "[attach]\n#auto = false\n");
        machine.write("usr/share/lxc/config/common.conf.d/README", "");
        machine
    }

    fn at(&self, path: &str) -> PathBuf {
        self.0.path().join(path)
    }

    fn write(&self, path: &str, text: &str) {
        fs::create_dir_all(self.at(path).parent().unwrap()).unwrap();
        fs::write(self.at(path), text).unwrap();
    }

    fn read(&self, path: &str) -> String {
        fs::read_to_string(self.at(path)).unwrap_or_default()
    }

    fn setup(&self, args: &[&str]) -> Output {
        run(quiet(AMBIT).args(["setup", "--root"]).arg(self.0.path()).args(args))
    }

    /// Returns all files and folders with their content, mode and owner.
    fn all(&self) -> BTreeMap<PathBuf, (u32, u32, Vec<u8>)> {
        let mut all = BTreeMap::new();
        let mut folders = vec![self.0.path().to_owned()];
        while let Some(folder) = folders.pop() {
            for entry in fs::read_dir(folder).unwrap() {
                let path = entry.unwrap().path();
                let status = path.symlink_metadata().unwrap();
                if status.is_dir() {
                    folders.push(path.clone());
                }
                let content = if status.is_file() { fs::read(&path).unwrap() } else { Vec::new() };
                all.insert(path, (status.mode(), status.uid(), content));
            }
        }
        all
    }
}

fn line<'a>(output: &'a str, start: &str) -> &'a str {
    output
        .lines()
        .find(|line| line.starts_with(start))
        .unwrap_or_else(|| panic!("{start}: {output}"))
}

#[test]
fn every_engine_is_set_up_once_and_undone_to_the_byte() {
    let machine = Machine::with_all_engines();
    fs::set_permissions(machine.at("etc/docker/daemon.json"), fs::Permissions::from_mode(0o640))
        .unwrap();
    chown(machine.at("etc/docker/daemon.json"), Some(7), Some(8)).unwrap();
    let before = machine.all();

    let plan = machine.setup(&["--dry-run"]).ok();
    assert!(plan.contains("nothing was changed"), "{plan}");
    assert_eq!(machine.all(), before);

    let done = machine.setup(&[]).ok();
    assert!(plan.starts_with(&done), "{plan}\n{done}");
    assert!(done.lines().all(|line| line.len() <= 80), "{done}");
    for (path, text) in [
        ("usr/share/lxc/config/common.conf.d/ambit.conf", "start-host = /usr/bin/ambit hook --lxc"),
        ("usr/share/containers/oci/hooks.d/ambit.json", "createContainer"),
        ("etc/containers/containers.conf.d/ambit.conf", "/usr/libexec/ambit/crun"),
        ("etc/cdi/ambit.json", "ambit/view"),
        ("etc/docker/daemon.json", "\"default-runtime\": \"ambit\""),
        ("etc/containerd/config.toml", "BinaryName = \"/usr/libexec/ambit/runc\""),
        ("etc/ambit/ambit.toml", "[attach]\nauto = true"),
    ] {
        assert!(machine.read(path).contains(text), "{path}: {}", machine.read(path));
    }
    let daemon = fs::metadata(machine.at("etc/docker/daemon.json")).unwrap();
    assert_eq!((daemon.mode() & 0o777, daemon.uid(), daemon.gid()), (0o640, 7, 8));

    let after = machine.all();
    let again = machine.setup(&[]).ok();
    assert_eq!(again.matches("\nsame    /").count(), 7, "{again}");
    assert_eq!(machine.all(), after);

    machine.setup(&["--undo"]).ok();
    assert_eq!(machine.all(), before);
    assert_eq!(machine.setup(&["--undo"]).ok(), "nothing of ambit is there\n");
}

#[test]
fn what_setup_writes_is_what_the_package_has() {
    let machine = Machine::with_all_engines();
    machine.setup(&[]).ok();
    let contrib = Path::new(env!("CARGO_MANIFEST_DIR")).join("contrib");
    for (path, file) in [
        ("usr/share/lxc/config/common.conf.d/ambit.conf", "lxc/ambit.conf"),
        ("usr/share/containers/oci/hooks.d/ambit.json", "containers/hooks.json"),
        ("etc/containers/containers.conf.d/ambit.conf", "containers/containers.conf"),
        ("etc/cdi/ambit.json", "cdi/ambit.json"),
    ] {
        assert_eq!(machine.read(path), fs::read_to_string(contrib.join(file)).unwrap(), "{path}");
    }
}

#[test]
fn a_machine_without_engines_stays_as_it_is() {
    let machine = Machine::new(&[]);
    let before = machine.all();
    let output = machine.setup(&[]).ok();
    assert!(output.contains("No engine was found."), "{output}");
    assert_eq!(machine.all(), before);
    // A named one is set up before it is installed.
    machine.setup(&["podman"]).ok();
    assert!(machine.read("usr/share/containers/oci/hooks.d/ambit.json").contains("hook"));
    machine.setup(&["--undo", "podman"]).ok();
    assert!(!machine.at("usr/share/containers/oci").exists() && !machine.at("etc/cdi").exists());
}

#[test]
fn undo_of_one_engine_keeps_what_others_need() {
    let machine = Machine::with_all_engines();
    machine.setup(&[]).ok();
    let output = machine.setup(&["--undo", "docker", "lxc"]).ok();
    assert_eq!(output, "change  /etc/docker/daemon.json\n");
    assert_eq!(machine.read("etc/docker/daemon.json"), DAEMON);
    assert!(machine.read("etc/ambit/ambit.toml").contains("auto = true"));
}

#[test]
fn files_of_the_package_are_left_to_it() {
    let machine = Machine::with_all_engines();
    machine.setup(&["lxc"]).ok();
    let drop_in = "/usr/share/lxc/config/common.conf.d/ambit.conf";
    machine.write("var/lib/dpkg/info/ambit.list", &format!("/.\n{drop_in}\n"));
    let output = machine.setup(&["--undo"]).ok();
    assert_eq!(line(&output, "left"), format!("left    {drop_in}"));
    assert!(output.contains("a part of the package ambit"), "{output}");
    assert!(machine.at(&drop_in[1..]).exists());
}

#[test]
fn containers_of_docker_can_be_started_after_undo() {
    let machine = Machine::with_all_engines();
    machine.setup(&["docker"]).ok();
    machine.write("var/lib/docker/containers/a/hostconfig.json", r#"{"Runtime":"ambit"}"#);
    machine.write("var/lib/docker/containers/b/hostconfig.json", r#"{"Runtime":"runc"}"#);
    let output = machine.setup(&["--undo", "docker"]).ok();
    assert!(output.contains("made with the runtime ambit: 1."), "{output}");
    let daemon: serde_json::Value =
        serde_json::from_str(&machine.read("etc/docker/daemon.json")).unwrap();
    assert_eq!(daemon["runtimes"]["ambit"]["path"], "runc");
    assert_eq!(daemon.get("default-runtime"), None);
    fs::remove_dir_all(machine.at("var/lib/docker")).unwrap();
    machine.setup(&["--undo", "docker"]).ok();
    assert_eq!(machine.read("etc/docker/daemon.json"), DAEMON);
}

#[test]
fn a_file_that_cannot_be_changed_is_named_and_the_rest_is_done() {
    let machine = Machine::with_all_engines();
    machine.write("etc/docker/daemon.json", "{ // mine\n}\n");
    machine.write("etc/cdi/ambit.json", "{}\n");
    fs::remove_file(machine.at("usr/share/lxc/config/common.conf.d/README")).unwrap();
    symlink("/gone", machine.at("usr/share/lxc/config/common.conf.d/ambit.conf")).unwrap();
    let output = machine.setup(&[]);
    assert_eq!(output.status, 1);
    let (out, daemon) = (output.stdout, machine.read("etc/docker/daemon.json"));
    assert!(out.contains("failed  /etc/docker/daemon.json"), "{out}");
    assert!(out.contains("it is no JSON: mend or remove it: "), "{out}");
    assert!(out.contains("failed  /etc/cdi/ambit.json"), "{out}");
    assert!(out.contains("it is a link to nothing"), "{out}");
    assert_eq!(
        (daemon.as_str(), machine.read("etc/cdi/ambit.json").as_str()),
        ("{ // mine\n}\n", "{}\n")
    );
    assert!(machine.read("etc/ambit/ambit.toml").contains("auto = true"));
    // Nor is a changed file taken away.
    let output = machine.setup(&["--undo"]);
    assert_eq!(output.status, 1);
    assert_eq!(machine.read("etc/cdi/ambit.json"), "{}\n");
}

#[test]
fn a_run_that_was_killed_is_finished_by_the_next() {
    let machine = Machine::with_all_engines();
    machine.setup(&["podman"]).ok();
    machine.write("etc/docker/.daemon.json.ambit-setup", "{ half");
    fs::remove_file(machine.at("etc/cdi/ambit.json")).unwrap();
    let output = machine.setup(&[]).ok();
    assert!(output.contains("\nsame    /usr/share/containers/oci/hooks.d/ambit.json"), "{output}");
    assert!(output.contains("\nwrite   /etc/cdi/ambit.json"), "{output}");
    assert!(!machine.at("etc/docker/.daemon.json.ambit-setup").exists());
}

#[test]
fn a_read_only_etc_is_an_error_that_loses_nothing() {
    let machine = Machine::with_all_engines();
    let etc = machine.at("etc");
    rustix::mount::mount_bind(&etc, &etc).unwrap();
    rustix::mount::mount_change(&etc, MountPropagationFlags::PRIVATE).unwrap();
    rustix::mount::mount_remount(&etc, MountFlags::BIND | MountFlags::RDONLY, c"").unwrap();
    let output = machine.setup(&["docker"]);
    rustix::mount::unmount(&etc, UnmountFlags::DETACH).unwrap();
    assert_eq!(output.status, 1);
    let said = output.stdout.split_whitespace().collect::<Vec<_>>().join(" ");
    let reason = "cannot write /etc/docker/daemon.json, which is as it was: Read-only file system";
    assert!(said.contains(reason), "{said}");
    assert_eq!(machine.read("etc/docker/daemon.json"), DAEMON);
}

#[test]
fn bad_input_is_an_error_before_anything_is_written() {
    let machine = Machine::with_all_engines();
    let before = machine.all();
    let wrong = |args: &[&str]| {
        let output = machine.setup(args);
        assert_eq!(output.status, 2, "{output:?}");
        assert_eq!(output.stderr.lines().count(), 1, "{output:?}");
        output.stderr
    };
    assert!(wrong(&["dokcer"]).contains("a similar value exists: 'docker'"));
    assert!(wrong(&["--program", "ambit"]).contains("use an absolute path"));
    assert!(wrong(&["--config", "/etc/none.toml"]).contains("there is no /etc/none.toml"));
    machine.write("etc/ambit/ambit.toml", "[attach]\nauot = true\n");
    assert!(wrong(&[]).contains("/etc/ambit/ambit.toml:2:1: "));
    machine.write("etc/ambit/ambit.toml", "[attach]\n#auto = false\n");
    assert_eq!(machine.all(), before);
    let output = run(quiet("setpriv").args(["--reuid=65534", "--clear-groups", AMBIT, "setup"]));
    assert_eq!(output.status, 2, "{output:?}");
    assert!(output.stderr.contains("setup needs root"), "{output:?}");
}

#[test]
fn without_the_names_of_the_runtimes_docker_is_not_told_of_them() {
    let machine = Machine::new(&["usr/sbin/dockerd"]);
    fs::remove_dir_all(machine.at("usr/libexec")).unwrap();
    let output = machine.setup(&[]);
    assert_eq!(output.status, 1);
    assert!(output.stdout.contains("there is no /usr/libexec/ambit/runc"), "{output:?}");
    assert!(!machine.at("etc/docker/daemon.json").exists());
}
