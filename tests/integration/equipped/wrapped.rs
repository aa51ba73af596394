//! `ambit oci-runtime`: what it leaves as it is, and what it does when it cannot equip a container.

use std::fs;
use std::os::unix::fs::{PermissionsExt, symlink};

use rustix::process::Signal;
use serde_json::Value;
use tempfile::TempDir;

use super::engine::{Container, Covered, Engine};
use super::{MEMORY, TOTAL, number, wrapper};
use crate::harness::command::{self, Output, quiet};
use crate::harness::daemon::{Daemon, Place, readable_dir};
use crate::harness::{machine, oci};

/// A folder with a bundle without hook and profile, and the programs of the test.
struct Bundle {
    folder: TempDir,
    _root: TempDir,
}

impl Bundle {
    fn new(script: &str) -> Self {
        Self::of(oci::Container { userns: false, ..oci::Container::with_users(script) })
    }

    fn of(container: oci::Container<'_>) -> Self {
        let (folder, root) = (readable_dir(), oci::root());
        let config = oci::plain_config(container, &Value::Null, root.path(), "wrapped");
        fs::write(folder.path().join("config.json"), config.to_string()).unwrap();
        Self { folder, _root: root }
    }

    fn config(&self) -> String {
        fs::read_to_string(self.folder.path().join("config.json")).unwrap()
    }

    /// Writes a program.
    fn program(&self, name: &str, text: &str) -> String {
        let path = self.folder.path().join(name);
        fs::write(&path, text).unwrap();
        fs::set_permissions(&path, fs::Permissions::from_mode(0o755)).unwrap();
        path.to_str().unwrap().to_owned()
    }

    /// Runs the container under runc by the wrapper.
    #[track_caller]
    fn run(&self, place: &Place) -> Output {
        let runc = self.program("runc", &wrapper(place, "runc"));
        let mut run = quiet(&runc);
        run.arg("--root").arg(self.folder.path().join("state"));
        command::run(run.args(["run", "--bundle"]).arg(self.folder.path()).arg("wrapped"))
    }
}

#[test]
fn other_commands_are_those_of_the_runtime() {
    machine::needs(&["runc", "crun"]);
    let folder = readable_dir();
    for name in ["runc", "crun"] {
        // As the package has it.
        let link = folder.path().join(name);
        symlink(machine::AMBIT, &link).unwrap();
        let state = folder.path().join("state").display().to_string();
        for line in [
            "--version",
            "--help",
            "create --help",
            "--root=STATE list",
            "--root STATE state none",
            "--root STATE kill none",
            "--root STATE kill none KILL",
            "--root STATE create --bundle /none none",
            "--no-such-option",
            "no-such-command",
            "",
        ] {
            let words: Vec<_> =
                line.split_whitespace().map(|word| word.replace("STATE", &state)).collect();
            let real = command::run(quiet(name).args(&words));
            let ours = command::run(quiet(link.to_str().unwrap()).args(&words));
            assert_eq!(
                (ours.status, &ours.stdout),
                (real.status, &real.stdout),
                "{name} {line}: {ours:?} {real:?}"
            );
        }
    }
}

#[test]
fn a_privileged_container_of_podman_sees_its_own_bounds() {
    for engine in [Engine::PodmanRunc, Engine::PodmanCrun] {
        engine.needs();
        let daemon = Daemon::start();
        let script = format!("{TOTAL}; busybox free -k; echo ready; sleep 600");
        let mut container =
            Container::start_with(engine, daemon.place(), &["--privileged"], &script);
        container.wait_for("ready");
        let said = container.printed();
        assert_eq!(number(&said, "total"), Some(MEMORY), "{engine}: {said}");
        assert_eq!(number(&said, "Mem:"), Some(MEMORY), "{engine}: {said}");
        container.end();
    }
}

/// fuse2fs of Debian 12 opens `/dev/fuse`. Engines neither make it nor allow it.
#[test]
fn a_container_with_helpers_has_the_device_that_they_open() {
    machine::needs(&["runc", "mke2fs", "fuse2fs"]);
    let lines = "mount.enabled = true\nmount.fuse = { ext4 = \"fuse2fs\" }\n";
    // Without udev, only the machine's root may open it.
    let folder = readable_dir();
    let node = folder.path().join("fuse").display().to_string();
    command::run(quiet("mknod").args(["-m", "666", &node, "c", "10", "229"])).ok();
    let _covered = Covered::by(node.as_ref(), "/dev/fuse");
    let mut daemon = Daemon::start_at(Place::intercepting(lines));
    let script = "PATH=$PATH:/sbin; cd /root; mkdir m; truncate -s 8M e; mke2fs -q -F e
        /mnt/mount_call /root/e /root/m ext4 0; ls m; umount m; stat -c %t:%T /dev/fuse";
    let bundle = Bundle::of(oci::Container::with_users(script));
    let said = bundle.run(daemon.place());
    assert_eq!(said.stdout, "ok\nlost+found\na:e5\n", "{said:?} {}", daemon.log());
    daemon.stop();
}

#[test]
fn containers_start_without_the_daemon() {
    machine::needs(&["runc"]);
    let script = format!("{TOTAL}; busybox free -k; exit 7");
    let bundle = Bundle::new(&script);
    let before = bundle.config();
    let place = Place::new();
    let said = bundle.run(&place);
    let is_plain = |said: &Output| {
        assert_eq!(said.status, 7, "{said:?}");
        assert!(number(&said.stdout, "total").is_some_and(|total| total != MEMORY), "{said:?}");
        assert!(number(&said.stdout, "Mem:").is_some_and(|total| total != MEMORY), "{said:?}");
        let lines: Vec<_> = said.stderr.lines().collect();
        assert_eq!(lines.len(), 1, "{said:?}");
        assert!(lines[0].starts_with("ambit: oci-runtime: "), "{said:?}");
        assert!(lines[0].contains("does the daemon run?"), "{said:?}");
    };
    is_plain(&said);
    assert_eq!(bundle.config(), before);

    let mut daemon = Daemon::start_at(place);
    let said = bundle.run(daemon.place());
    assert_eq!((said.status, said.stderr.as_str()), (7, ""), "{said:?}");
    assert_eq!(number(&said.stdout, "total"), Some(MEMORY), "{said:?}");
    assert_eq!(number(&said.stdout, "Mem:"), Some(MEMORY), "{said:?}");
    assert!(bundle.config().contains("listenerPath"));
    // The wrapper's look at the socket is no error of a runtime.
    let log = daemon.log();
    assert!(log.contains("calls are answered") && !log.contains("ERROR"), "{log}");

    // The bundle has the profile now, and the runtime would not start it.
    daemon.signal(Signal::TERM);
    let place = daemon.ended_at();
    let said = bundle.run(&place);
    let hook = said.stderr.lines().filter(|line| line.contains("ambit: hook: ")).count();
    assert!(hook <= 1, "{said:?}");
    let rest: Vec<_> = said.stderr.lines().filter(|line| !line.contains("hook: ")).collect();
    is_plain(&Output { stderr: rest.join("\n"), ..said });
    assert!(!bundle.config().contains("listenerPath"));
}

/// A runtime that prints what it has been given.
const RUNTIME: &str = "#!/bin/sh\necho \"$$ $*\"; cat <&7; exit 9\n";

#[test]
fn containers_of_other_users_are_left_to_the_runtime() {
    machine::needs(&["setpriv", "unshare"]);
    let daemon = Daemon::start();
    let bundle = Bundle::new("true");
    let before = bundle.config();
    let runtime = bundle.program("fake", RUNTIME);
    let config = daemon.place().config().display().to_string();
    let at = bundle.folder.path().display().to_string();
    let script = "cd \"$0\" && echo given >given && chown 65534 . config.json && exec 7<given && \
                  exec \"$@\" --log 'a  b' create --pid-file x -- id";
    for (user, is_equipped) in [
        (&["setpriv", "--reuid=65534", "--regid=65534", "--clear-groups"][..], false),
        (&["unshare", "--user", "--map-root-user"][..], false),
        (&["env"][..], true),
    ] {
        let mut run = quiet("sh");
        run.args(["-c", script, &at]).args(user);
        run.args([machine::AMBIT, "oci-runtime", "--config", &config, "--runtime", &runtime]);
        let said = command::run(&mut run);
        assert_eq!(said.status, 9, "{user:?}: {said:?}");
        let (first, rest) = said.stdout.split_once('\n').unwrap();
        assert!(first.ends_with(" --log a  b create --pid-file x -- id"), "{user:?}: {said:?}");
        assert_eq!(rest, "given\n", "{user:?}");
        let is_merged = bundle.config() != before;
        assert_eq!(is_merged, is_equipped, "{user:?}: {said:?}");
    }
}

#[test]
fn a_bundle_that_cannot_be_read_is_left_to_the_runtime() {
    let daemon = Daemon::start();
    let bundle = Bundle::new("true");
    let path = bundle.folder.path().join("config.json");
    let runtime = bundle.program("fake", "#!/bin/sh\nexit 9\n");
    let config = daemon.place().config().display().to_string();
    let run = || {
        let mut run = quiet(machine::AMBIT);
        run.args(["oci-runtime", "--config", &config, "--runtime", &runtime, "run", "-b"]);
        command::run(run.arg(bundle.folder.path()).arg("id"))
    };
    let is_left = |reason: &str| {
        let said = run();
        assert_eq!((said.status, said.stdout.as_str()), (9, ""), "{said:?}");
        assert!(said.stderr.contains(reason) && said.stderr.lines().count() == 1, "{said:?}");
    };
    fs::write(&path, "{").unwrap();
    is_left("config.json: EOF while parsing");
    fs::File::create(&path).unwrap().set_len((16 << 20) + 1).unwrap();
    is_left("more than 16777216 bytes");
    fs::remove_file(&path).unwrap();
    is_left("config.json: No such file");
    command::run(quiet("mkfifo").arg(&path)).ok();
    is_left("no regular file");
}

#[test]
fn the_runtime_is_that_of_the_configuration() {
    let bundle = Bundle::new("true");
    let runtime = bundle.program("fake", "#!/bin/sh\necho \"fake $*\"\nexit 9\n");
    let place = Place::new();
    let text = fs::read_to_string(place.config()).unwrap();
    let run = |runtime: &str| {
        let text = format!("{text}[attach]\nruntime = \"{runtime}\"\n");
        fs::write(place.config(), text).unwrap();
        let mut run = quiet(machine::AMBIT);
        run.args(["oci-runtime", "--config"]).arg(place.config());
        command::run(run.args(["--root", "/r", "state", "--", "id"]))
    };
    let said = run(&runtime);
    assert_eq!(
        (said.status, said.stdout.as_str()),
        (9, "fake --root /r state -- id\n"),
        "{said:?}"
    );
    let said = run("no-such-runtime");
    assert_eq!((said.status, said.stdout.as_str()), (127, ""), "{said:?}");
    assert!(said.stderr.starts_with("ambit: oci-runtime: there is no no-such-runtime in /usr/bin"));
    let said = run(machine::AMBIT);
    assert_eq!(said.status, 127, "{said:?}");
    assert!(said.stderr.ends_with(" is no OCI runtime\n"), "{said:?}");
}
