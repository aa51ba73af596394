//! `ambit hook` without an engine: what it covers, what it costs, and what it does when ambit is
//! down.

use std::fs;
use std::time::{Duration, Instant};

use rustix::process::{Pid, Signal, kill_process};

use super::all_files;
use crate::harness::command::{self, Output, quiet};
use crate::harness::daemon::{Daemon, Place, mounts, readable_dir};
use crate::harness::machine::{self, AMBIT};
use crate::survival::resends;

/// What engines hide by default.
const CONFIG: &str = r#"{"root":{"path":"rootfs"},
    "linux":{"maskedPaths":["/proc/kcore","/sys/firmware"],"readonlyPaths":["/proc/sys"]}}"#;

/// Runs a script in new mount and pid namespaces with a bundle whose root has `/proc` and `/sys`, as
/// runtimes have it when they start the hook. `$HOOK` runs the hook.
#[track_caller]
fn in_bundle(place: &Place, script: &str) -> Output {
    machine::needs(&["unshare", "strace"]);
    let bundle = readable_dir();
    let at = bundle.path().display().to_string();
    for folder in ["proc", "sys", "dev"] {
        fs::create_dir_all(bundle.path().join("rootfs").join(folder)).unwrap();
    }
    fs::write(bundle.path().join("config.json"), CONFIG).unwrap();
    let state = format!(r#"{{"ociVersion":"1.0.2","id":"c1","pid":1,"bundle":"{at}"}}"#);
    fs::write(bundle.path().join("state"), state).unwrap();
    let head = "cd \"$0\" && mount -t proc proc rootfs/proc && mount -t sysfs sysfs rootfs/sys &&\n\
                mount -t tmpfs tmpfs rootfs/dev || exit 9\n\
                mounts() { grep -c \"$PWD/rootfs/.* fuse.ambit \" /proc/self/mountinfo; }\n";
    let mut run = quiet("unshare");
    run.args(["--mount", "--propagation=private", "--pid", "--fork", "--kill-child", "sh", "-c"]);
    run.arg(format!("{head}{script}")).arg(at).args([AMBIT, "hook", "--config"]);
    command::run(run.arg(place.config()))
}

#[test]
fn the_hook_covers_all_files_once() {
    let daemon = Daemon::start();
    let script = "\"$@\" --required <state; echo $?; mounts; \"$@\" <state; echo $?; mounts";
    let said = in_bundle(daemon.place(), script);
    assert_eq!(said.stdout, format!("0\n{0}\n0\n{0}\n", all_files()), "{said:?}");
    // As attach does, it takes the container's own meminfo, whose size is that of its text.
    let said = in_bundle(daemon.place(), "\"$@\" <state; stat -c %s rootfs/proc/meminfo").ok();
    assert_eq!(said.trim() != "4096", resends(), "{said}");
    // An annotation leaves a container alone.
    let script = r#"sed 's/}$/,"annotations":{"ambit.view":"no"}}/' state >no
        "$@" --required <no; echo $?; mounts"#;
    let said = in_bundle(daemon.place(), script);
    assert_eq!(said.stdout, "0\n0\n", "{said:?}");
}

/// A fully visible procfs would undo what the engine hides. Where it hides nothing, nested containers
/// need one.
#[test]
fn what_the_engine_hides_stays_hidden() {
    let daemon = Daemon::start();
    let script = "\"$@\" --required <state; mounts; ls -A rootfs/dev
        echo '{\"root\":{\"path\":\"rootfs\"}}' >config.json; umount -R rootfs/proc rootfs/sys
        mount -t proc proc rootfs/proc; mount -t sysfs sysfs rootfs/sys
        \"$@\" --required <state; mounts; ls -A rootfs/dev/.ambit";
    let said = in_bundle(daemon.place(), script);
    assert_eq!(said.stdout, format!("{0}\n{0}\nproc\nsys\n", all_files()), "{said:?}");
}

/// A hook of another kind, or a bundle that names the machine's root.
#[test]
fn the_machine_is_not_covered_by_a_hook() {
    let daemon = Daemon::start();
    let bundle = readable_dir();
    let before = mounts();
    let root = "{\"root\":{\"path\":\"/\"}}";
    fs::write(bundle.path().join("config.json"), root).unwrap();
    let state = format!("{{\"id\":\"c1\",\"bundle\":\"{}\"}}", bundle.path().display());
    let mut hook = quiet("sh");
    hook.args(["-c", "echo \"$0\" | exec \"$@\"", &state, AMBIT, "hook", "--required"]);
    let said = command::run(hook.arg("--config").arg(daemon.place().config()));
    assert_eq!(said.status, 1, "{said:?}");
    assert!(said.stderr.contains("it must be a createContainer hook"), "{said:?}");
    assert_eq!(mounts(), before);
    // What is printed has one line, whatever the bundle is called.
    hook = quiet("sh");
    let state = "{\"id\":\"c1\",\"bundle\":\"/no\\u001b[2J\\n\"}";
    hook.args(["-c", "echo \"$0\" | exec \"$@\"", &state.replace('\\', "\\\\"), AMBIT, "hook"]);
    let said = command::run(hook.arg("--config").arg(daemon.place().config()));
    assert!(said.stderr.contains("cannot open /no?[2J?/config.json"), "{said:?}");
    assert_eq!((said.status, said.stderr.lines().count()), (0, 1), "{said:?}");
}

/// The number of system calls is what the hook adds to each start, and no engine changes it.
#[test]
fn the_hook_takes_few_system_calls() {
    let daemon = Daemon::start();
    let script = "a=$(date +%s%N); \"$@\" --required <state || exit 1; b=$(date +%s%N)
        umount -R rootfs/proc rootfs/sys; mount -t proc proc rootfs/proc; mount -t sysfs sysfs rootfs/sys
        strace -f -c -o calls \"$@\" --required <state || exit 1
        tail -n 1 calls; echo $(((b - a) / 1000)) us from fork to end";
    let said = in_bundle(daemon.place(), script).ok();
    let calls: u64 = said.split_whitespace().nth(3).unwrap().parse().unwrap();
    let time = said.lines().last().unwrap();
    // Around the capture of output.
    let _ = std::io::Write::write_fmt(
        &mut std::io::stderr(),
        format_args!("\nhook|{calls} system calls for {} files; {time}\n", all_files()),
    );
    assert!(calls < 1000, "{said}");
}

#[test]
fn a_container_starts_if_its_files_cannot_be_covered() {
    let place = Place::new();
    // No daemon has run here.
    let said =
        in_bundle(&place, "\"$@\" <state; echo $?; \"$@\" --required <state; echo $?; mounts");
    assert_eq!(said.stdout, "0\n1\n0\n", "{said:?}");
    let lines: Vec<_> = said.stderr.lines().collect();
    assert!(
        lines[0].contains("hook: the container c1: ") && lines[0].contains("daemon run?"),
        "{said:?}"
    );
    assert!(lines[0].contains("the machine's numbers until `ambit attach"), "{said:?}");
    assert!(lines[1].contains("--required") && lines.len() == 2, "{said:?}");
    // Other input than a state.
    for input in ["</dev/null", "</dev/zero", "<&-"] {
        let script = format!("\"$@\" {input}; echo $?; \"$@\" --required {input}; echo $?");
        let said = in_bundle(&place, &script);
        assert_eq!(said.stdout, "0\n1\n", "{input}: {said:?}");
        assert!(said.stderr.contains("createContainer hook"), "{input}: {said:?}");
    }
}

#[test]
fn a_daemon_that_does_not_answer_does_not_keep_a_container_from_starting() {
    let daemon = Daemon::start();
    let server = Pid::from_raw(i32::try_from(daemon.server_pid()).unwrap()).unwrap();
    kill_process(server, Signal::STOP).unwrap();
    let start = Instant::now();
    let said = in_bundle(daemon.place(), "\"$@\" <state; echo $?; mounts");
    let took = start.elapsed();
    kill_process(server, Signal::CONT).unwrap();
    assert_eq!(said.stdout.lines().next(), Some("0"), "{said:?}");
    assert!(said.stderr.contains("does not answer"), "{said:?}");
    // The deadline is a second, and the keeper kills a silent server only later.
    assert!(took < machine::patience(5) + Duration::from_secs(1), "{took:?}");
}
