//! What one warm read costs the daemon, counted and not timed.

use std::fs;

use rustix::process::Signal;

use crate::harness::cgroup::{Cgroup, Limits};
use crate::harness::command::{quiet, run, start};
use crate::harness::daemon::{Daemon, readable_dir};
use crate::harness::machine;
use crate::harness::text::number;

/// System calls per open, read and close of meminfo, beyond those on the FUSE device.
const BUDGET: u64 = 20;

#[test]
fn a_warm_read_takes_few_system_calls_and_no_fork() {
    stays_within_the_budget(&[]);
}

/// The mounts of the reader are not those of the container's first process, as in a service of a
/// system container: its cgroup tells that it is in no other container.
#[test]
fn a_warm_read_in_a_pid_namespace_costs_the_same() {
    let first = "for d in \"$@\"; do [ -d \"$d\" ] && echo 0 >\"$d/cgroup.procs\"; done
                 unshare --mount \"$@\"; exit $?";
    stays_within_the_budget(&[
        "unshare",
        "--pid",
        "--fork",
        "--kill-child",
        "sh",
        "-c",
        first,
        "sh",
    ]);
}

/// Counts what the daemon does for a reader that this command starts.
#[track_caller]
fn stays_within_the_budget(by: &[&str]) {
    if machine::slowness() > 1 {
        return machine::not_on_this_kernel("counting by ptrace at native speed");
    }
    machine::needs(&["strace"]);
    let daemon = Daemon::start();
    let dir = readable_dir();
    let trace = dir.path().join("trace");
    let cgroup = Cgroup::new("budget", Limits { memory: Some(64 << 20), ..Limits::default() });
    // Warm it, then trace while the same container goes on reading.
    let program = machine::program("reader");
    let words: Vec<_> = by.iter().copied().chain([program.to_str().unwrap()]).collect();
    let mut reader = quiet(words[0]);
    reader
        .args(&words[1..])
        .args(["7", "65536"])
        .arg(daemon.file("proc/meminfo"))
        .args(cgroup.dirs());
    let reading = start(&mut reader);
    std::thread::sleep(std::time::Duration::from_secs(4));
    let mut strace = quiet("strace");
    strace.args(["-f", "-y", "-o"]).arg(&trace).args(["-p", &daemon.server_pid().to_string()]);
    let tracing = start(&mut strace);
    std::thread::sleep(std::time::Duration::from_secs(2));
    tracing.signal(Signal::INT);
    tracing.finish(machine::patience(10));
    let reads = number(&reading.finish(machine::patience(20)).ok(), "reads");
    assert!(reads > 10);

    let text = fs::read_to_string(&trace).unwrap();
    let calls = Calls::of(&text);
    assert!(calls.opens > 50, "the trace saw {} requests:\n{text:.2000}", calls.opens);
    assert_eq!(calls.forks, 0, "the daemon forked");
    let each = calls.others as f64 / calls.opens as f64;
    assert!(each <= BUDGET as f64, "{each:.1} calls for each read: {:?}", calls.names);
    eprintln!("{each:.1} calls for each warm read beyond the device: {:?}", calls.names);
    // The container is gone: nothing may be kept open of it for ever.
    drop(cgroup);
    run(&mut quiet("true"));
}

#[derive(Debug, Default)]
struct Calls {
    opens: u64,
    others: u64,
    forks: u64,
    names: std::collections::BTreeMap<String, u64>,
}

impl Calls {
    /// Counts the lines of `strace -f -y`: requests arrive by read and leave by writev on the
    /// device; each read of a file is two or three of them (open, read, release).
    fn of(text: &str) -> Self {
        let mut calls = Self::default();
        for line in text.lines() {
            let call = line.split_once(' ').map_or("", |(_, rest)| rest.trim_start());
            let Some((name, arguments)) = call.split_once('(') else { continue };
            if name.contains("resumed>") || name.starts_with(['+', '-', '<']) {
                continue;
            }
            match name {
                "fork" | "vfork" | "clone" | "clone3" | "execve" => calls.forks += 1,
                _ if on_device(arguments) => {
                    // An answer with the file's text is the only long one.
                    calls.opens += u64::from(name.starts_with("write") && long_answer(arguments));
                }
                _ => {
                    calls.others += 1;
                    *calls.names.entry(name.to_owned()).or_default() += 1;
                }
            }
        }
        calls
    }
}

fn on_device(arguments: &str) -> bool {
    let first = arguments.split(',').next().unwrap_or_default();
    first.contains("/dev/fuse") || first.contains("UNIX-SEQPACKET")
}

fn long_answer(arguments: &str) -> bool {
    arguments.contains("MemTotal")
        || arguments.rsplit(" = ").next().and_then(|n| n.trim().parse::<u64>().ok()) > Some(512)
}
