//! A request that crashes every server that handles it is refused after three crashes, and other
//! callers are not affected.

use std::fs;

use crate::harness::cgroup::{Cgroup, Limits};
use crate::harness::daemon::{Daemon, Place};
use crate::harness::{machine, sandbox, text};
use crate::survival::{resends, survivors};

/// What is logged of a request that is not handled any more.
const LINE: &str = "servers died at the same request";

/// A daemon with a defect: programs called `deadly-…` kill it by opening a file or calling sysinfo.
/// What it may use of memory is limited: all of it is one of the ways.
fn defective() -> (Daemon, Cgroup) {
    let place = Place::intercepting("mknod = true\n");
    let mut serve = place.serve();
    serve.env("LD_PRELOAD", machine::program("deadly.so"));
    let daemon = Daemon::start_below(place, &mut serve);
    let cgroup = Cgroup::new("daemon", Limits { memory: Some(128 << 20), ..Limits::default() });
    let keeper = daemon.status()["pid"].as_u64().unwrap();
    let is_of_it = |status: &str| {
        status.contains(&format!("\nPid:\t{keeper}\n"))
            || status.contains(&format!("\nPPid:\t{keeper}\n"))
    };
    let all = fs::read_dir("/proc").unwrap().flatten();
    let of_it = all.filter(|entry| {
        fs::read_to_string(entry.path().join("status")).is_ok_and(|status| is_of_it(&status))
    });
    for process in of_it {
        for dir in cgroup.dirs() {
            let pid = process.file_name().into_encoded_bytes();
            fs::write(dir.join("cgroup.procs"), pid).unwrap();
        }
    }
    (daemon, cgroup)
}

fn restarts(daemon: &Daemon) -> u64 {
    daemon.status()["restarts"].as_u64().unwrap()
}

#[test]
fn a_request_that_crashes_every_server_is_refused() {
    let (daemon, _cgroup) = defective();
    let (stop, others) = survivors(&daemon, 2);
    for (how, call) in [("abort", "fault"), ("stack", "memory")] {
        let before = restarts(&daemon);
        let script = format!(
            "cp /bin/cat /tmp/deadly-{how}; cp /mnt/sysinfo /tmp/deadly-{call}
             for turn in 1 2 3 4 5; do /tmp/deadly-{how} /proc/swaps; done 2>&1
             unshare --pid --fork /tmp/deadly-{how} /proc/swaps 2>&1
             echo calls; for turn in 1 2 3 4; do /tmp/deadly-{call} | grep ^total_kb; done
             echo well; head -1 /proc/stat; cat /proc/uptime; /mnt/sysinfo | grep ^total_kb"
        );
        let output = sandbox::run(&daemon, &["--memory", "64M"], &script).ok();
        let (files, rest) = output.split_once("calls\n").unwrap();
        let (calls, well) = rest.split_once("well\n").unwrap();
        assert_eq!(files.lines().count(), 6, "{output}");
        let is_error = |line: &str| line.ends_with(": Input/output error");
        // Before Linux 6.9 what was in hand ends with the server.
        let aborted = |line: &str| !resends() && line.ends_with("connection abort");
        assert!(files.lines().all(|line| is_error(line) || aborted(line)), "{output}");
        assert!(files.lines().last().is_some_and(is_error), "{output}");
        // The kernel's own answer is the machine's.
        let machines = format!("={}", machine::memory_kb());
        assert_eq!(calls.lines().count(), 4, "{output}");
        assert!(calls.lines().all(|line| line.contains(&machines)), "{machines}: {output}");
        let well: Vec<_> = well.lines().collect();
        assert!(
            well.len() == 3 && well[0].starts_with("cpu ") && well[1].contains('.'),
            "{output}"
        );
        // The same program that is called otherwise makes the same call, which is refused too.
        assert!(well[2].contains(&machines), "{output}");
        assert_eq!(restarts(&daemon) - before, 6, "three for each: {output}");
    }
    fs::write(stop.path().join("stop"), "").unwrap();
    for one in others {
        let output = one.finish(machine::patience(60)).ok();
        assert!(!resends() || output.contains(" failures=0 "), "{output}");
        assert!(!output.contains("goes back") && !output.contains("wrong memory"), "{output}");
    }
    let meminfo = fs::read_to_string(daemon.file("proc/meminfo")).unwrap();
    assert!(text::kb(&meminfo, "MemTotal") > 0);
    let (output, _) = daemon.stop();
    let lines: Vec<_> = output.stderr.lines().filter(|line| line.contains(LINE)).collect();
    assert_eq!(lines.len(), 4, "{lines:#?}");
    assert!(lines.iter().filter(|line| line.contains("OPEN of proc/swaps")).count() == 2);
}
