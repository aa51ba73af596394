//! The program as a user meets it: what `run` passes through, what mistakes are answered with.

use std::fs;
use std::io::Write;
use std::os::unix::fs::PermissionsExt;
use std::process::Stdio;

use rustix::process::Signal;

use crate::harness::command::{Output, quiet, run, start};
use crate::harness::daemon::{Daemon, Place, readable_dir};
use crate::harness::machine::{self, AMBIT};
use crate::harness::sandbox;

fn ambit(args: &[&str]) -> Output {
    run(quiet(AMBIT).args(args))
}

/// One clear line, and status 2.
#[track_caller]
fn is_refused(output: &Output, mentions: &[&str]) {
    is_refused_with(2, output, mentions);
}

#[track_caller]
fn is_refused_with(status: i32, output: &Output, mentions: &[&str]) {
    assert_eq!(output.status, status, "{output:?}");
    assert!(output.stdout.is_empty(), "{output:?}");
    for word in mentions {
        assert!(output.stderr.contains(word), "{word:?} is not in {:?}", output.stderr);
    }
    assert!(!output.stderr.contains("panicked"), "{output:?}");
}

#[test]
fn exit_status_and_streams_pass_through() {
    let daemon = Daemon::start();
    let output = sandbox::run(&daemon, &[], "echo out; echo err >&2; exit 7");
    assert_eq!((output.status, output.stdout.as_str()), (7, "out\n"), "{output:?}");
    assert!(output.stderr.contains("err\n"), "{output:?}");
    assert_eq!(sandbox::run(&daemon, &[], "true").status, 0);
}

#[test]
fn standard_input_passes_through() {
    let daemon = Daemon::start();
    let mut input = tempfile::tempfile().unwrap();
    input.write_all(b"one\ntwo\n").unwrap();
    std::io::Seek::rewind(&mut input).unwrap();
    let mut command = sandbox::command(&daemon, &[], "tr a-z A-Z");
    assert_eq!(run(command.stdin(Stdio::from(input))).ok(), "ONE\nTWO\n");
}

#[test]
fn signals_pass_through_in_both_directions() {
    let daemon = Daemon::start();
    let output = sandbox::run(&daemon, &[], "sh -c 'kill -KILL $$'; echo inner $?");
    assert!(output.stdout.contains("inner 137"), "{output:?}");

    let script = "trap 'exit 42' TERM; echo ready; while :; do sleep 0.05; done";
    let mut running = start(&mut sandbox::command(&daemon, &[], script));
    running.wait_for("ready", machine::patience(20));
    running.signal(Signal::TERM);
    assert_eq!(running.finish(machine::patience(20)).status, 42);
}

#[test]
fn a_command_that_cannot_be_started_is_told_from_one_that_failed() {
    let daemon = Daemon::start();
    let config = daemon.place().config();
    let with = |command: &str| {
        run(quiet(AMBIT).arg("run").arg("--config").arg(&config).args(["--", command]))
    };
    let missing = with("/no/such/command");
    assert_eq!(missing.status, 127, "{missing:?}");
    assert!(missing.stderr.contains("/no/such/command"), "{missing:?}");
    assert_eq!(with("/etc/passwd").status, 126);
}

#[test]
fn without_a_daemon_it_serves_itself() {
    let place = Place::new();
    let output = run(quiet(AMBIT).arg("run").arg("--config").arg(place.config()).args([
        "--memory",
        "100M",
        "--",
        "sh",
        "-c",
        "free -k; busybox free -k",
    ]));
    let text = output.ok();
    let totals = text.lines().filter_map(|line| line.strip_prefix("Mem:"));
    let totals = totals.map(|line| line.split_whitespace().next());
    assert_eq!(totals.collect::<Vec<_>>(), [Some("102400"); 2], "{text}");
    assert!(!place.is_mounted(), "a mount was left behind");
}

#[test]
fn another_user_cannot_keep_a_sandbox_from_its_own_server() {
    let place = Place::new();
    // A shared folder, with every name that a process number could give.
    let shared = readable_dir();
    fs::set_permissions(shared.path(), fs::Permissions::from_mode(0o1777)).unwrap();
    let own = std::process::id();
    for pid in own..own + 3000 {
        let path = shared.path().join(format!("ambit-{pid}"));
        match pid % 2 {
            0 => fs::create_dir(&path).unwrap(),
            _ => std::os::unix::fs::symlink("/nowhere", &path).unwrap(),
        }
        std::os::unix::fs::lchown(&path, Some(65534), Some(65534)).unwrap();
    }
    let names = || fs::read_dir(shared.path()).unwrap().count();
    let before = names();
    let mounts = crate::harness::daemon::mounts();
    let sandbox = |script: &str| {
        let mut command = quiet(AMBIT);
        command.env("TMPDIR", shared.path()).arg("run").arg("--config").arg(place.config());
        command.args(["--memory", "100M", "--", "sh", "-c", script]);
        command
    };
    let text = run(&mut sandbox("grep MemTotal /proc/meminfo")).ok();
    assert!(text.contains(" 102400 kB"), "{text}");
    // One that is killed leaves nothing either.
    let mut killed = start(&mut sandbox("echo ready; while :; do sleep 0.1; done"));
    killed.wait_for("ready", machine::patience(20));
    killed.signal(Signal::KILL);
    killed.finish(machine::patience(20));
    assert_eq!(names(), before);
    assert_eq!(crate::harness::daemon::mounts(), mounts);
}

#[test]
fn binds_are_writable_or_not_as_asked() {
    let daemon = Daemon::start();
    let (open, closed) = (readable_dir(), readable_dir());
    // Where the filesystem cannot be idmapped, root of the sandbox is the overflow user.
    let anybody = std::os::unix::fs::PermissionsExt::from_mode(0o777);
    fs::set_permissions(open.path(), anybody).unwrap();
    let binds =
        [format!("{}:/srv", open.path().display()), format!("{}:/opt:ro", closed.path().display())];
    let args = ["--bind", &binds[0], "--bind", &binds[1]];
    let script = "echo hello >/srv/file; echo x >/opt/file || echo refused; echo x >/etc/x || \
                  echo refused; echo fine >/tmp/x && echo fine >/run/x && cat /tmp/x /run/x";
    let output = sandbox::run(&daemon, &args, script).ok();
    assert_eq!(output, "refused\nrefused\nfine\nfine\n");
    assert_eq!(fs::read_to_string(open.path().join("file")).unwrap(), "hello\n");
    assert!(!closed.path().join("file").exists());
}

#[test]
fn the_first_process_names_no_path_of_the_host() {
    let daemon = Daemon::start();
    let output = sandbox::run(&daemon, &[], "tr -d '\\0' </proc/1/cmdline");
    assert_eq!(output.ok(), "ambit-init");
}

#[test]
fn unknown_flags_are_refused() {
    is_refused(&ambit(&["serve", "--frobnicate"]), &["--frobnicate"]);
    is_refused(&ambit(&["run", "--momory", "5M", "--", "true"]), &["--momory"]);
    is_refused(&ambit(&["launch"]), &["launch"]);
    is_refused(&ambit(&["run", "--memory", "5M"]), &["COMMAND"]);
}

#[test]
fn bad_sizes_and_numbers_are_refused() {
    is_refused(&ambit(&["run", "--memory", "5X", "--", "true"]), &["5X", "--memory"]);
    is_refused(&ambit(&["run", "--memory", "-1", "--", "true"]), &["-1"]);
    is_refused(&ambit(&["run", "--cpus", "many", "--", "true"]), &["many", "--cpus"]);
    is_refused(&ambit(&["run", "--cpus", "0", "--", "true"]), &["--cpus"]);
    is_refused(&ambit(&["run", "--cpuset", "3-1", "--", "true"]), &["3-1", "--cpuset"]);
    is_refused(&ambit(&["run", "--intercept", "sisinfo", "--", "true"]), &["sisinfo"]);
}

#[test]
fn a_bad_configuration_is_located() {
    let dir = readable_dir();
    let file = dir.path().join("bad.toml");
    let path = file.to_str().unwrap();
    let refused = |text: &str, mentions: &[&str]| {
        fs::write(&file, text).unwrap();
        // A service manager does not try the first one again. The other one asks the usual daemon,
        // because the sockets' folder is not found in the file.
        for (status, word, lines) in [(78, "serve", 1), (2, "status", 2)] {
            let output = ambit(&[word, "--config", path]);
            is_refused_with(status, &output, mentions);
            assert_eq!(output.stderr.lines().count(), lines, "{output:?}");
        }
    };
    refused("[daemon]\nruntime_dri = \"/x\"\n", &["bad.toml:2:1", "runtime_dri"]);
    refused("[overlay]\nmount = 5\n", &["bad.toml:2:9"]);
    refused("[overlay\n", &["bad.toml:1:"]);
    refused("[intercept]\nsysinfo = true\nsisinfo = true\n", &["bad.toml:3:1", "mean sysinfo?"]);
    refused("[intercept.mount]\nshift = true\n", &["bad.toml:1:12", "set enabled = true"]);
    refused("[intercept]\n\"mount.shift\" = true\n", &["bad.toml:2:1", "write mount = {"]);
    is_refused_with(78, &ambit(&["serve", "--config", "/no/such.toml"]), &["/no/such.toml"]);
}

#[test]
fn a_configuration_is_checked_before_it_is_used() {
    let dir = readable_dir();
    let file = dir.path().join("a.toml");
    let path = file.to_str().unwrap();
    fs::write(&file, ambit(&["config", "--default"]).ok()).unwrap();
    let view = "[intercept] answers sysinfo, sched_getaffinity\n";
    assert_eq!(
        ambit(&["config", "--config", path]).ok(),
        format!("{path} has no mistakes\n{view}")
    );
    let more = "[intercept]\nview = false\nmount = true\n[[container]]\nid = \"a\"\n\
                intercept = { mknod = true, mount = false }\n";
    fs::write(&file, more).unwrap();
    let said = ambit(&["config", "--config", path]).ok();
    for line in [
        "[intercept] answers mount\n",
        "[[container]] 1 answers mknod\n",
        "note: [intercept]: mount grants nothing without mount.allowed or mount.fuse\n",
    ] {
        assert!(said.contains(line), "{said}");
    }
    fs::write(&file, "[intercept.mount]\nallowed = [\"ext4\"]\n").unwrap();
    let refused = ambit(&["config", "--config", path]);
    is_refused_with(2, &refused, &["a.toml:1:12", "set enabled = true"]);
}

#[test]
fn a_user_other_than_root_is_refused_with_a_message() {
    machine::needs(&["setpriv"]);
    let place = Place::new();
    // The program is copied to a path that the other user may execute.
    let dir = readable_dir();
    let copy = dir.path().join("ambit");
    fs::copy(AMBIT, &copy).unwrap();
    fs::set_permissions(&copy, fs::Permissions::from_mode(0o755)).unwrap();
    let as_other_user = |args: &[&str]| {
        let mut command = quiet("setpriv");
        command.args(["--reuid=65534", "--regid=65534", "--clear-groups"]).arg(&copy).args(args);
        run(&mut command)
    };
    let config = place.config();
    let config = config.to_str().unwrap();
    let output = as_other_user(&["serve", "--config", config]);
    is_refused(&output, &["root"]);
    assert_eq!(output.stderr.lines().count(), 1, "{output:?}");
    // Sandboxes of ordinary users are tested in rootless.rs.
    let words = ["run", "--config", config, "--intercept", "mknod", "--", "true"];
    is_refused(&as_other_user(&words), &["root"]);
}

#[test]
fn help_and_version_succeed() {
    for args in [&["--help"][..], &["run", "--help"], &["serve", "--help"]] {
        let text = ambit(args).ok();
        assert!(text.contains("Usage: ambit"), "{text}");
    }
    assert!(ambit(&["--version"]).ok().starts_with("ambit 0."));
}

#[test]
fn check_succeeds_on_this_machine() {
    let text = ambit(&["check"]).ok();
    assert!(text.to_lowercase().contains("fuse") && text.contains("seccomp"), "{text}");
}

#[test]
fn status_lists_a_container_with_its_numbers() {
    let daemon = Daemon::start();
    assert_eq!(daemon.status()["pid"], daemon.pid());
    let script = "cat /proc/meminfo >/dev/null; echo ready; while :; do sleep 0.05; done";
    let args = ["--memory", "96M", "--cpus", "1"];
    let mut running = start(&mut sandbox::command(&daemon, &args, script));
    running.wait_for("ready", machine::patience(20));
    let status = daemon.status();
    let container = status["containers"]
        .as_array()
        .and_then(|all| all.iter().find(|c| c["memory_total"] == 96 << 20))
        .unwrap_or_else(|| panic!("no container of 96 MiB in {status:#}"));
    assert_eq!(container["cpu_count"], 1, "{container:#}");
    assert!(container["memory_free"].as_u64().unwrap() < 96 << 20, "{container:#}");
    assert!(container["threads"].as_u64().unwrap() >= 1, "{container:#}");
    assert!(status["files"]["opened"].as_u64().unwrap() >= 1, "{status:#}");
    assert_eq!(status["files"]["failed"], 0, "{status:#}");
}

#[test]
fn status_without_a_daemon_is_refused() {
    let place = Place::new();
    let output = run(quiet(AMBIT).args(["status", "--config"]).arg(place.config()));
    is_refused(&output, &["control.sock", "ambit serve"]);
}
